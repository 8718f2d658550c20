import { chmodSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { checkDirectory } from "../../../cli/check-directory.ts";
import { checkLink, checkSockets, checkStatus } from "../../../cli/check-agent.ts";
import { checkPeer } from "../../../cli/check-peer.ts";
import { checkNode, checkOpenFiles, checkProgram, watchClock } from "../../../cli/check-machine.ts";
import type { Finding } from "../../../cli/finding.ts";
import { ControlClient } from "../../../shared/control/api-client.ts";
import { NodeClock } from "../../../shared/host/node-clock.ts";
import { runInProcess, serveFakeAgent } from "../../support/control-harness.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { present } from "../../support/present.ts";
import { scratchDirectory } from "../../support/scratch.ts";
import { protectedPrimary } from "../../support/status-examples.ts";

const clock = new NodeClock();

function states(findings: readonly Finding[]): Record<string, string> {
  return Object.fromEntries(findings.map(({ check, state }) => [check, state]));
}

async function listen(): Promise<number> {
  const server = createServer((socket) => socket.on("error", () => undefined));
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  onTestFinished(() => void server.close());
  return (server.address() as AddressInfo).port;
}

describe("what a doctor finds of a machine", () => {
  it.each([
    ["20.19.0", "ok"],
    ["24.1.0", "ok"],
    ["20.18.9", "failed"],
    ["18.20.0", "failed"],
  ])("Node %s: %s", (version, state) => {
    expect(checkNode(version).state).toBe(state);
  });

  it.each([
    ["Max open files            1024                 524288               files", "ok"],
    ["Max open files            unlimited            unlimited            files", "ok"],
    ["Max open files            256                  4096                 files", "warning"],
    ["nothing of it", "warning"],
    [undefined, "warning"],
  ])("limits %j: %s", (limits, state) => {
    expect(checkOpenFiles("the agent", limits).state).toBe(state);
  });

  it("sees a wall clock that is set meanwhile", () => {
    let jumpMs = 0;
    const manual = new ManualClock();
    const jumping = {
      nowMs: () => manual.nowMs(),
      wallMs: () => manual.wallMs() + jumpMs,
      after: manual.after.bind(manual),
      defer: manual.defer.bind(manual),
    };
    const finish = watchClock(jumping);
    manual.advance(1000);
    expect(finish().state).toBe("ok");
    jumpMs = -300;
    expect(finish()).toMatchObject({ state: "warning", message: expect.stringContaining("300 ms") });
  });

  it("tells whether a program can be run", async () => {
    expect((await checkProgram("node")).state).toBe("ok");
    expect(await checkProgram("no-such-program")).toMatchObject({ state: "failed" });
  });
});

describe("what a doctor finds of a directory", () => {
  const check = (path: string, neededBytes = 0): Finding[] =>
    checkDirectory({ name: "state", path, clock, neededBytes, needsDirect: false });

  it("leaves nothing behind, and says how fast it is and what it can do", () => {
    const path = scratchDirectory();
    const findings = check(path);
    expect(findings.map(({ check: what }) => what)).toEqual(["state speed", "state holes", "state space"]);
    expect(findings.every(({ state }) => state !== "failed")).toBe(true);
    expect(readdirSync(path)).toEqual([]);
  });

  it("warns of room that may not do, and fails for what is no directory", () => {
    const path = scratchDirectory();
    expect(states(check(path, Number.MAX_SAFE_INTEGER))["state space"]).toBe("warning");
    expect(check(join(path, "none"))).toMatchObject([{ state: "failed" }]);
    writeFileSync(join(path, "file"), "");
    expect(check(join(path, "file"))).toMatchObject([{ state: "failed" }]);
  });
});

describe("what a doctor finds of an agent", () => {
  it("takes a socket that others can use for a fault", () => {
    const directory = scratchDirectory();
    mkdirSync(join(directory, "run"));
    writeFileSync(join(directory, "run", "nbd.sock"), "", { mode: 0o600 });
    expect(checkSockets(join(directory, "run"))).toMatchObject([{ state: "ok" }]);
    chmodSync(join(directory, "run", "nbd.sock"), 0o666);
    expect(checkSockets(join(directory, "run"))).toMatchObject([{ state: "failed" }]);
  });

  it("says of a status what the agent says of it", () => {
    const well = protectedPrimary();
    expect(checkStatus(well).filter(({ state }) => state === "failed")).toEqual([]);
    const disk = present(well.disks[0]);
    const ill = checkStatus({
      ...well,
      protection: { state: "NotProtected", reason: "resync", nextAction: "Wait." },
      disks: [{ ...disk, state: "Failed" }],
      peers: well.peers.map((peer) => ({ ...peer, connection: "Connecting", agentVersion: "9.9.9" })),
    });
    expect(states(ill)).toMatchObject({
      "protection": "failed",
      "disks": "failed",
      "peer": "failed",
      "peer version": "warning",
    });
  });

  it.each([
    ["0.0.9", "Restart the agent."],
    ["0.1.10", "Use the agent's release"],
    ["10.0.0", "Use the agent's release"],
  ])("says what to do about an agent of release %s", (agentVersion, action) => {
    const findings = checkStatus({ ...protectedPrimary(), agentVersion });
    expect(findings).toContainEqual(
      expect.objectContaining({ check: "version", state: "warning", action: expect.stringContaining(action) }),
    );
  });

  it("measures the way to the peer, and fails where nobody answers", async () => {
    const port = await listen();
    expect((await checkLink(`ws://127.0.0.1:${port}`, clock)).state).not.toBe("failed");
    expect(await checkLink("ws://127.0.0.1:1", clock)).toMatchObject({ state: "failed" });
  });
});

describe("what a doctor has the agent measure", () => {
  const options = { timeoutMs: 5_000, signal: new AbortController().signal };

  it.each([
    [{}, "ok", "ok"],
    [{ roundTripMs: 45 }, "warning", "ok"],
    [{ bytesPerSecond: 1_000_000 }, "warning", "ok"],
    [{ clockAheadMs: -3_000 }, "ok", "warning"],
    [{ clockAheadMs: 520, roundTripMs: 44 }, "warning", "ok"],
  ])("%j: link %s, clock %s", async (figures, link, clocks) => {
    const { socketPath, control } = await serveFakeAgent();
    control.linkFigures = { ...control.linkFigures, ...figures };
    const client = new ControlClient({ kind: "socket", path: socketPath });
    const findings = await checkPeer(client, protectedPrimary(), options);
    expect(states(findings)).toEqual({ "link speed": link, "peer's clock": clocks });
    for (const { state, action } of findings) expect(action !== "").toBe(state === "warning");
  });

  it("is nothing on the side that is dialled, or without a session", async () => {
    const { socketPath, control } = await serveFakeAgent();
    const client = new ControlClient({ kind: "socket", path: socketPath });
    const status = protectedPrimary();
    for (const changes of [{ url: null }, { connection: "Connecting" as const }]) {
      const peers = status.peers.map((peer) => ({ ...peer, ...changes }));
      expect(await checkPeer(client, { ...status, peers }, options)).toEqual([]);
    }
    expect(control.calls).toEqual([]);
  });
});

describe("colobus doctor", () => {
  interface Answer {
    readonly ok: boolean;
    readonly findings: Finding[];
  }

  it("looks at an agent that runs, and its exit code says whether something is wrong", async () => {
    const { run, control } = await serveFakeAgent();
    const port = await listen();
    const status = protectedPrimary();
    const image = join(scratchDirectory(), "vda.img");
    control.currentStatus = {
      ...status,
      pid: process.pid,
      peers: status.peers.map((peer) => ({ ...peer, url: `ws://127.0.0.1:${port}` })),
      disks: status.disks.map((disk) => ({ ...disk, image })),
    };
    const well = await runInProcess(["doctor", "--run", run, "--json"], {});
    const { ok, findings } = JSON.parse(well.stdout) as Answer;
    expect({ code: well.code, ok, failed: findings.filter(({ state }) => state === "failed") }).toEqual({
      code: 0,
      ok: true,
      failed: [],
    });
    expect(states(findings)).toMatchObject({ agent: "ok", protection: "ok", link: "ok" });
    control.currentStatus = {
      ...control.currentStatus,
      protection: { state: "NotProtected", reason: "no-peer", nextAction: "Start the secondary." },
    };
    const ill = await runInProcess(["doctor", "--run", run]);
    expect(ill.code).toBe(1);
    expect(ill.stdout).toMatch(/^FAILED {3}protection: VM web is not protected: no-peer\n +Start the secondary\.$/m);
  });

  it("looks at a configuration without an agent", async () => {
    const directory = scratchDirectory();
    const file = join(directory, "web.yaml");
    const port = await listen();
    mkdirSync(join(directory, "state"));
    const lines = [
      `run: ${join(directory, "run")}`,
      `state: ${join(directory, "state")}`,
      `disk: vda=${join(directory, "vda.img")}`,
      `peer: ws://127.0.0.1:${port}`,
      `token-file: ${join(directory, "token")}`,
    ];
    writeFileSync(file, lines.join("\n"));
    const { code, stdout } = await runInProcess(["doctor", "--config", file, "--json"]);
    const { findings } = JSON.parse(stdout) as Answer;
    expect(code).toBe(1);
    expect(states(findings)).toMatchObject({
      "agent": "warning",
      "token": "failed",
      "state space": "ok",
      "link": "ok",
    });
    expect(findings.filter(({ state }) => state === "failed").map(({ check }) => check)).toEqual(["token"]);
    expect((await runInProcess(["doctor", "--config", "/none.yaml"])).code).toBe(2);
  });
});
