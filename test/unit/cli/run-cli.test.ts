import { once } from "node:events";
import { createServer } from "node:net";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { ERRORS, ColobusError, type ErrorCode } from "../../../proto/errors.ts";
import { AGENT_VERSION } from "../../../proto/versions.ts";
import { runInProcess, serveFakeAgent } from "../../support/control-harness.ts";
import { untilAborted } from "../../support/fake-agent-control.ts";
import { scratchDirectory } from "../../support/scratch.ts";
import { lonelySecondary } from "../../support/status-examples.ts";

/** Something that takes connections at an agent's socket and ends each as soon as a request comes. */
async function serveDyingAgent(): Promise<string> {
  const run = scratchDirectory();
  const server = createServer((socket) => socket.on("data", () => socket.destroy()));
  server.listen({ path: join(run, "control.sock") });
  await once(server, "listening");
  onTestFinished(() => void server.close());
  return run;
}

/** Something that takes connections at an agent's socket and never answers, like a stopped process. */
async function serveFrozenAgent(): Promise<string> {
  const run = scratchDirectory();
  const server = createServer();
  server.listen({ path: join(run, "control.sock") });
  await once(server, "listening");
  onTestFinished(() => void server.close());
  return run;
}

describe("mirror", () => {
  it.each([[[], true] as const, [["--no-unmap"], false] as const])(
    "with %j: the target's space is freed: %s",
    async (flags, unmap) => {
      const { control, run } = await serveFakeAgent();
      const { code } = await runInProcess(["mirror", "vda", "--to", "/new.img", "--json", "--run", run, ...flags]);
      expect(code).toBe(0);
      expect(control.calls.find(({ name }) => name === "mirror")?.request).toMatchObject({ target: "/new.img", unmap });
    },
  );
});

describe("exit codes", () => {
  it.each(Object.keys(ERRORS) as ErrorCode[])("are the error table's: %s", async (code) => {
    const { control, run } = await serveFakeAgent();
    control.before = () => {
      throw new ColobusError(code, `It is ${code}.`, "Do something.");
    };
    const result = await runInProcess(["checkpoint", "--run", run]);
    expect(result).toMatchObject({ code: ERRORS[code].exit, stdout: "" });
    expect(result.stderr).toContain(`colobus: It is ${code}.\n  Do something.\n`);
  });

  it("are 0 when done", async () => {
    const { run } = await serveFakeAgent();
    expect(await runInProcess(["checkpoint", "--run", run])).toEqual({
      code: 0,
      stdout: "checkpoint 43 committed (prepare 0.8 ms, commit 0.5 ms)\n",
      stderr: "",
    });
  });

  it("are 3 where no agent is", async () => {
    expect(await runInProcess(["status", "--run", scratchDirectory()])).toMatchObject({ code: 3, stdout: "" });
    const { run, server } = await serveFakeAgent();
    await server.close();
    expect(await runInProcess(["status", "--control", `unix:${run}/control.sock`])).toMatchObject({
      code: 3,
      stdout: "",
    });
  });

  it("are 4 when the agent dies after the request was sent", async () => {
    const run = await serveDyingAgent();
    const result = await runInProcess(["commit", "3", "--run", run, "--json"]);
    expect(result.code).toBe(4);
    expect(JSON.parse(result.stdout)).toMatchObject({ error: { code: "outcome-unknown" } });
  });

  it("are 4 when a frozen agent does not answer in time", async () => {
    const run = await serveFrozenAgent();
    const result = await runInProcess(["status", "--run", run, "--timeout", "20ms", "--json"]);
    expect(result.code).toBe(4);
    expect(JSON.parse(result.stdout)).toMatchObject({ error: { code: "timed-out" } });
  });

  it("are 4 when a waiting command is interrupted, and the agent hears of it", async () => {
    const { control, run } = await serveFakeAgent();
    const interrupt = new AbortController();
    const released = new Promise<void>((resolve) => {
      control.before = (call) => {
        interrupt.abort();
        return untilAborted(call).finally(resolve);
      };
    });
    const result = await runInProcess(["wait", "synced", "--run", run], { interrupted: interrupt.signal });
    expect(result).toMatchObject({ code: 4, stdout: "", stderr: expect.stringContaining("Interrupted") });
    await released;
  });

  it("are 1, with the trace on stderr, for a bug in the command line", async () => {
    const { run } = await serveFakeAgent();
    const result = await runInProcess(["status", "--run", run], {
      onStdout: () => {
        throw new TypeError("boom");
      },
    });
    expect(result).toMatchObject({ code: 1, stderr: expect.stringMatching(/colobus: boom[\s\S]*at /) });
  });
});

describe("requests", () => {
  it("carry the flags", async () => {
    const { control, run } = await serveFakeAgent();
    control.currentStatus = { ...lonelySecondary(), jobs: control.currentStatus.jobs };
    const commands = [
      ["checkpoint", "--prepare", "--timeout", "500ms"],
      ["commit", "43"],
      ["discard"],
      ["discard", "43"],
      ["failover", "--force", "--dry-run", "--discard-active", "--timeout=2m"],
      ["wait", "merged"],
      ["job", "cancel", "full-sync-1"],
      ["job", "set-speed", "full-sync-1", "50MiB"],
      ["job", "set-speed", "full-sync-1", "0"],
    ];
    for (const command of commands) {
      expect(await runInProcess([...command, "--run", run]), command.join(" ")).toMatchObject({ code: 0, stderr: "" });
    }
    expect(control.calls.map(({ request }) => request)).toEqual([
      { prepare: true, timeoutMs: 500 },
      { epoch: 43, timeoutMs: 60_000 },
      { timeoutMs: 60_000 },
      { epoch: 43, timeoutMs: 60_000 },
      { force: true, dryRun: true, discardActive: true, timeoutMs: 120_000 },
      { condition: "merged", timeoutMs: 60_000 },
      { id: "full-sync-1", verb: "cancel" },
      { id: "full-sync-1", bytesPerSecond: 52_428_800 },
      { id: "full-sync-1", bytesPerSecond: 0 },
    ]);
  });

  it.each([
    [["commit", "x"], /EPOCH "x"/],
    [["commit", "0"], /EPOCH "0"/],
    [["commit"], /missing: colobus commit <epoch>/],
    [["discard", "1e3"], /EPOCH "1e3"/],
    [["commit", "1", "2"], /"2" is one argument too many/],
    [["wait", "tea"], /CONDITION "tea" is not one of connected, synced, merged, committed/],
    [["status", "--timeout", "5"], /--timeout "5" is not a duration/],
    [["status", "--timeout", "0s"], /--timeout "0s" is not above 0/],
    [["status", "--timeout", "25h"], /--timeout "25h"/],
    [["status", "--timeout"], /--timeout needs a value/],
    [["status", "--timeout", "5s", "--timeout", "6s"], /--timeout is given more than once/],
    [["status", "--tiemout", "5s"], /--tiemout is not a flag of colobus status[^]*Did you mean --timeout\?/],
    [["status", "--no-json"], /--no-json is not a flag/],
    [["status", "--js"], /--js is not a flag/],
    [["events", "--after", "yesterday"], /--after "yesterday"/],
    [["job", "stop", "a"], /VERB "stop" is not one of pause, resume/],
    [["job", "pause", "a", "5M"], /takes no speed/],
    [["job", "set-speed", "a"], /needs a speed/],
    [["job", "set-speed", "a", "fast"], /SPEED "fast"/],
    [["status", "--control", "ftp://x"], /--control "ftp:\/\/x"/],
    [["status", "--control", "http://x", "--run", "/x"], /--run and --control/],
    [["status", "--run", ""], /--run (is empty|needs a value)/],
    [["--run", "/x"], /./],
    [["statsu"], /"statsu" is not a command of colobus[^]*Did you mean status\?/],
    [["reboot"], /"reboot" is not a command of colobus\.\n  See colobus --help/],
    [[], /No command is given/],
  ])("that are not of the documented form are usage errors: %j", async (argv, message) => {
    const { control } = await serveFakeAgent();
    const result = await runInProcess(argv);
    expect(result).toMatchObject({ code: 2, stdout: "", stderr: expect.stringMatching(message) });
    expect(control.calls).toEqual([]);
    const asJson = await runInProcess([...argv, "--json"]);
    if (argv.at(-1) === "--timeout") return;
    expect(asJson.code).toBe(2);
    expect(JSON.parse(asJson.stdout)).toMatchObject({ error: { code: "usage" } });
  });
});

describe("the agent that is meant", () => {
  it("is found by --run, before COLOBUS_RUN", async () => {
    const { run } = await serveFakeAgent();
    expect((await runInProcess(["status"], { env: { COLOBUS_RUN: run } })).code).toBe(0);
    expect((await runInProcess(["status", "--run", run], { env: { COLOBUS_RUN: "/nonexistent" } })).code).toBe(0);
    expect((await runInProcess(["status", "--run", "/nonexistent"], { env: { COLOBUS_RUN: run } })).code).toBe(3);
  });

  it("is the only one below the run directory", async () => {
    const run = scratchDirectory();
    await serveFakeAgent(join(run, "web"));
    expect((await runInProcess(["status", "--run", run])).code).toBe(0);
  });

  it("must be named when there are several below it", async () => {
    const run = scratchDirectory();
    await serveFakeAgent(join(run, "web"));
    await serveFakeAgent(join(run, "db"));
    expect(await runInProcess(["status", "--run", run])).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/several agents in .*: db, web\.\n.*--run .*\/db/),
    });
  });

  it("is found by --control", async () => {
    const { socketPath } = await serveFakeAgent();
    expect(
      (await runInProcess(["status", "--control", `unix:${socketPath}`], { env: { COLOBUS_RUN: "/nonexistent" } }))
        .code,
    ).toBe(0);
  });
});

describe("--json", () => {
  it.each([
    ["list"],
    ["status"],
    ["jobs"],
    ["job", "pause", "full-sync-1"],
    ["job", "pause", "absent"],
    ["checkpoint"],
    ["checkpoint", "--prepare"],
    ["commit", "43"],
    ["discard"],
    ["failover"],
    ["wait", "connected"],
    ["completion"],
    ["status", "--help"],
    ["--help"],
    ["--version"],
  ])("puts one JSON document on one line of stdout: %s %s %s", async (...words) => {
    const { run } = await serveFakeAgent();
    const result = await runInProcess([...words, "--json"], { env: { COLOBUS_RUN: run } });
    expect(result.stdout.endsWith("\n")).toBe(true);
    expect(result.stdout.indexOf("\n")).toBe(result.stdout.length - 1);
    expect(() => JSON.parse(result.stdout) as unknown).not.toThrow();
  });

  it("gives the agent's documents unchanged", async () => {
    const { control, run } = await serveFakeAgent();
    const json = async (...argv: string[]): Promise<unknown> =>
      JSON.parse((await runInProcess([...argv, "--run", run, "--json"])).stdout);
    expect(await json("status")).toEqual(control.currentStatus);
    expect(await json("jobs")).toEqual(control.currentStatus.jobs);
    expect(await json("checkpoint")).toEqual({ epoch: 43, state: "committed", prepareMs: 0.8, commitMs: 0.5 });
    expect(await json("checkpoint", "--prepare")).toEqual({
      epoch: 43,
      state: "prepared",
      prepareMs: 0.8,
      commitMs: null,
    });
  });

  it("makes events one document a line", async () => {
    const { control, run } = await serveFakeAgent();
    for (let i = 0; i < 3; i++) control.log.emit("merged", { disk: "a\nb" });
    const { stdout } = await runInProcess(["events", "--after", "1", "--run", run, "--json"]);
    expect(
      stdout
        .trimEnd()
        .split("\n")
        .map((line) => JSON.parse(line) as unknown),
    ).toEqual(control.log.since(1));
  });
});

it("the version is the agent's", async () => {
  expect(await runInProcess(["--version"])).toEqual({ code: 0, stdout: `${AGENT_VERSION}\n`, stderr: "" });
});
