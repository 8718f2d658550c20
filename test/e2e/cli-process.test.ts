/** The command line as a process: signals, and a reader of its output that goes away. */
import { spawn, type ChildProcessByStdio } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { fileURLToPath } from "node:url";
import { describe, expect, it, onTestFinished } from "vitest";
import { AgentPair, MIB } from "../support/agent-pair.ts";
import { ColobusProcess } from "../support/cli-runner.ts";
import { serveFakeAgent } from "../support/control-harness.ts";
import { untilAborted } from "../support/fake-agent-control.ts";
import { serveProtectableAgent } from "../support/protect-run.ts";

const MAIN = fileURLToPath(new URL("../../cli/main.ts", import.meta.url));

interface RunningCli {
  readonly child: ChildProcessByStdio<null, Readable, Readable>;
  readonly exit: Promise<{ code: number | null; signal: string | null }>;
  readonly stderr: () => string;
}

function startCli(...argv: string[]): RunningCli {
  const child = spawn(process.execPath, ["--import", "tsx", MAIN, ...argv], { stdio: ["ignore", "pipe", "pipe"] });
  onTestFinished(() => void child.kill("SIGKILL"));
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  const exit = once(child, "close").then(([code, signal]) => ({
    code: code as number | null,
    signal: signal as string | null,
  }));
  return { child, exit, stderr: () => stderr };
}

describe("the colobus process", () => {
  it("prints an answer and exits with 0", async () => {
    const { run } = await serveFakeAgent();
    const { child, exit, stderr } = startCli("checkpoint", "--run", run);
    const [text] = (await once(child.stdout, "data")) as [Buffer];
    expect(text.toString()).toBe("checkpoint 43 committed (prepare 0.8 ms, commit 0.5 ms)\n");
    expect(await exit).toEqual({ code: 0, signal: null });
    expect(stderr()).toBe("");
  });

  it.each(["SIGINT", "SIGTERM"] as const)("exits with 4 when %s interrupts a request", async (signal) => {
    const { control, run } = await serveFakeAgent();
    const called = new Promise<void>((resolve) => {
      control.before = (call) => {
        resolve();
        return untilAborted(call);
      };
    });
    const { child, exit, stderr } = startCli("wait", "synced", "--run", run);
    await called;
    child.kill(signal);
    expect(await exit).toEqual({ code: 4, signal: null });
    expect(stderr()).toContain("Interrupted");
  });

  it("exits with 0 when SIGINT ends a command that follows", async () => {
    const { control, run } = await serveFakeAgent();
    control.log.emit("agent-started");
    const { child, exit, stderr } = startCli("events", "--follow", "--run", run);
    await once(child.stdout, "data");
    child.kill("SIGINT");
    expect(await exit).toEqual({ code: 0, signal: null });
    expect(stderr()).toBe("");
  });

  it("exits with 1 when its output cannot be written", async () => {
    const { run } = await serveFakeAgent();
    const full = openSync("/dev/full", "w");
    onTestFinished(() => closeSync(full));
    const child = spawn(process.execPath, ["--import", "tsx", MAIN, "status", "--run", run], {
      stdio: ["ignore", full, "pipe"],
    });
    onTestFinished(() => void child.kill("SIGKILL"));
    let stderr = "";
    child.stderr?.setEncoding("utf8").on("data", (text: string) => (stderr += text));
    expect(await once(child, "close")).toEqual([1, null]);
    expect(stderr).toContain("Cannot write the output");
  });

  it("exits quietly when the reader of its output goes away, as in `colobus events --follow | head`", async () => {
    const { control, run } = await serveFakeAgent();
    control.log.emit("agent-started");
    const { child, exit, stderr } = startCli("events", "--follow", "--run", run);
    await once(child.stdout, "data");
    child.stdout.destroy();
    await once(child.stdout, "close");
    control.log.emit("merged");
    control.log.emit("merged");
    expect(await exit).toEqual({ code: 0, signal: null });
    expect(stderr()).toBe("");
  });

  it.each(["status --watch", "status --watch --json", "events --follow"])(
    "ends when the reader goes away and nothing happens any more: colobus %s",
    async (words) => {
      const { control, run } = await serveFakeAgent();
      control.log.emit("agent-started");
      const command = [process.execPath, "--import", "tsx", MAIN, ...words.split(" "), "--run", run];
      const script = 'set -o pipefail; "$@" | head -n 1';
      const shell = spawn("bash", ["-c", script, "bash", ...command], {
        stdio: ["ignore", "pipe", "pipe"],
        detached: true,
      });
      const ended = once(shell, "close");
      onTestFinished(() => {
        if (shell.exitCode === null && shell.pid !== undefined) process.kill(-shell.pid, "SIGKILL");
      });
      let [stdout, stderr] = ["", ""];
      shell.stdout.on("data", (text: Buffer) => (stdout += text.toString()));
      shell.stderr.on("data", (text: Buffer) => (stderr += text.toString()));
      expect(await ended).toEqual([0, null]);
      expect(stderr).toBe("");
      expect(stdout).toMatch(/^[^\n]+\n$/);
    },
  );

  it("ends when what it does for long has failed, though the agent goes on", async () => {
    const { run } = await serveProtectableAgent();
    const protect = new ColobusProcess(["protect", "--disks-only", "--qga", join(run, "none"), "--run", run]);
    expect(await protect.ended).toMatchObject({
      code: 1,
      signal: null,
      stdout: expect.stringMatching(/^a checkpoint failed, and the one before stands: the connection to /),
    });
  });

  it("waits for an agent that is gone, though it has nothing but time to wait for", async () => {
    const pair = await AgentPair.protected({ disks: { vda: MIB } });
    const { primary } = pair;
    const protect = new ColobusProcess([
      "protect",
      "--disks-only",
      "--timeout",
      "1h",
      "--interval",
      "100ms",
      "--json",
      "--run",
      primary.run,
    ]);
    await protect.untilPrinted('"committed"');
    await primary.crash();
    await protect.untilPrinted('"waiting"');
    const { epoch } = await pair.secondary.status();
    await primary.start();
    await pair.secondary.until("at a later checkpoint", (now) => now.epoch.committed > epoch.committed + 1);

    // Nor does its end wait for an agent that does not answer, as behind a service manager's socket.
    await primary.crash();
    const socket = join(primary.run, "control.sock");
    rmSync(socket);
    const silent = createServer();
    onTestFinished(() => void silent.close());
    const asked = new Promise<void>((resolve) => {
      let requests = 0;
      silent.on("connection", () => {
        requests += 1;
        if (requests === 2) resolve(); // the round's, and that for events
      });
    });
    silent.listen({ path: socket });
    await asked;
    protect.child.kill("SIGTERM");
    expect(await protect.ended).toMatchObject({ code: 0, signal: null });
  });
});
