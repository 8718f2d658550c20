/** The hooks around a failover: one fences the peer before it, the other starts the VM after it. */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { FailoverAnswer } from "../../proto/control-api.ts";
import type { AgentEvent } from "../../proto/status.ts";
import { AgentPair } from "../support/agent-pair.ts";
import type { ErrorDocument } from "../support/cli-runner.ts";

async function pairWithHook(script: string, ...flags: string[]): Promise<AgentPair> {
  const pair = await AgentPair.create({ flags: ["--peer-timeout", "1s"] });
  const path = join(pair.root, "fence.sh");
  writeFileSync(path, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  pair.secondary.command.push("--fence-peer", path, ...flags);
  await pair.start();
  await pair.primary.crash();
  await pair.secondary.until("alone", ({ peers }) => peers[0]?.connection === "Connecting");
  return pair;
}

describe("the fence hook", () => {
  it.each([3, 4, 5, 7])("lets a failover go on with exit code %i", async (code) => {
    const { secondary, primary } = await pairWithHook(`echo "fencing $DRBD_RESOURCE, $COLOBUS_PEER"; exit ${code}`);
    expect(await secondary.get<FailoverAnswer>("failover")).toMatchObject({ already: false });
    expect(secondary.log).toContain("fencing test, ");
    expect((await secondary.status()).role).toBe("Primary");
    expect(primary.isRunning).toBe(false);
  });

  it.each([
    ["says that the peer is Primary", "exit 6", "peer is Primary"],
    ["says nothing that is known", "exit 1", "ended with 1"],
    ["takes too long", "sleep 600", "has not ended within 300 ms"],
    ["leaves another process that keeps its output open", "setsid sleep 20 & exit 7", "has not ended within 300 ms"],
  ])("that %s stops a failover, unless that is forced", async (_, script, message) => {
    const { secondary } = await pairWithHook(script, "--fence-timeout", "300ms");
    const refused = await secondary.ask<ErrorDocument>("failover");
    expect(refused).toMatchObject({ code: 1, json: { error: { code: "fence-failed" } } });
    expect(refused.json.error.message).toContain(message);
    expect((await secondary.status()).role).toBe("Secondary");
    expect(await secondary.get<FailoverAnswer>("failover", "--dry-run")).toMatchObject({ dryRun: true });
    expect(await secondary.get<FailoverAnswer>("failover", "--force")).toMatchObject({ already: false });
  });
});

/** What the kernel says of a process; one that has ended is a zombie until init, whose child it is by then, has looked. */
function stateOf(pid: number): string {
  try {
    const [, state = ""] = /^State:\s+\S \((\w+)\)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8")) ?? [];
    return state;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return "gone";
    throw error;
  }
}

describe("a secondary that is stopped", () => {
  it("while the fence hook runs ends it, and stays Secondary", async () => {
    const { root, secondary } = await pairWithHook(`echo $$ >"$0.pid"; sleep 600`, "--fence-timeout", "10m");
    const refused = secondary.ask<ErrorDocument>("failover");
    const pidFile = join(root, "fence.sh.pid");
    await secondary.until("fencing", () => existsSync(pidFile) && readFileSync(pidFile, "utf8").endsWith("\n"));
    expect(await secondary.stop()).toMatchObject({ code: 0 });
    expect(await refused).toMatchObject({ code: 1, json: { error: { code: "shutting-down" } } });
    await expect.poll(() => stateOf(Number(readFileSync(pidFile, "utf8")))).toMatch(/^(?:gone|zombie)/);
    await secondary.start();
    expect((await secondary.status()).role).toBe("Secondary");
  });
});

describe("the hook that starts the VM", () => {
  const START =
    'echo "starting"; echo "$COLOBUS_VM $COLOBUS_EPOCH $COLOBUS_NBD_URIS $COLOBUS_VMSTATE_BYTES." >"$COLOBUS_RUN/vm"';

  const WITHIN_2S = ["--on-failover-timeout", "2s"];

  async function promote(command: string, flags = WITHIN_2S, failover: readonly string[] = []): Promise<AgentPair> {
    const pair = await AgentPair.create({ flags: ["--peer-timeout", "1s"] });
    pair.secondary.command.push("--on-failover", command, ...flags);
    await pair.start();
    await pair.primary.crash();
    await pair.secondary.until("alone", ({ peers }) => peers[0]?.connection === "Connecting");
    await pair.secondary.get("failover", ...failover);
    return pair;
  }

  async function untilEvent(pair: AgentPair, type: string): Promise<AgentEvent> {
    for (;;) {
      const found = (await pair.secondary.control.events(0)).find((event) => event.type === type);
      if (found !== undefined) return found;
      await pair.secondary.until("another state", () => true);
    }
  }

  it("is told what to start it from", async () => {
    const pair = await promote(START);
    const { secondary } = pair;
    await untilEvent(pair, "vm-started");
    const { epoch } = await secondary.status();
    const told = readFileSync(join(secondary.run, "vm"), "utf8");
    expect(told).toBe(`test ${epoch.committed} ${secondary.uri()} .\n`);
    expect(secondary.log).toContain("starting");
  });

  it.each([
    ["fails", "exit 3", "ended with 3"],
    ["takes too long", "sleep 600", "has not ended within 2000 ms"],
  ])("that %s leaves the promotion as it is", async (_, command, message) => {
    const pair = await promote(command);
    const { data } = await untilEvent(pair, "vm-start-failed");
    expect(data).toMatchObject({ code: "hook-failed" });
    expect(JSON.stringify(data)).toContain(message);
    expect((await pair.secondary.status()).role).toBe("Primary");
  });

  it("is ended when the agent is stopped, which says that the VM was not started", async () => {
    const { secondary } = await promote("sleep 600", ["--on-failover-timeout", "10m"]);
    const { code, stderr } = await secondary.stop();
    expect(code).toBe(0);
    expect(stderr).toMatch(/"event":"vm-start-failed".*was ended before its time/);
    await secondary.start();
    expect((await secondary.status()).role).toBe("Primary");
  });

  it("is not run where the operator's command says how to start it", async () => {
    const pair = await promote(START, WITHIN_2S, ["--exec", "true"]);
    const types = (await pair.secondary.control.events(0)).map(({ type }) => type);
    expect(types).toContain("failover");
    expect(types).not.toContain("vm-started");
  });
});
