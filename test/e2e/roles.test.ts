/** Roles that change, with real processes: the old primary comes back, rejoins, and takes over again; split brain. */
import { describe, expect, it } from "vitest";
import type { ConnectAnswer, RejoinAnswer, SwitchoverAnswer } from "../../proto/control-api.ts";
import type { JobStatus } from "../../proto/status.ts";
import { AgentPair, freePort, MIB, type AgentUnderTest } from "../support/agent-pair.ts";
import type { ErrorDocument } from "../support/cli-runner.ts";
import { expectSame, NbdClient, NbdFault, qemuIo, readDisk, tool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";

const ROUNDS = 10;
const SIZE = 64 * MIB;

/** A pair of which either side can be dialled. */
async function pairOfEquals(): Promise<{ pair: AgentPair; urls: ReadonlyMap<AgentUnderTest, string> }> {
  const port = await freePort();
  const pair = await AgentPair.create({
    disks: { vda: SIZE },
    flags: ["--peer-timeout", "2s"],
    primaryFlags: ["--listen", `127.0.0.1:${port}`],
  });
  const urls = new Map([
    [pair.primary, `ws://127.0.0.1:${port}`],
    [pair.secondary, `ws://127.0.0.1:${pair.port}`],
  ]);
  return { pair, urls };
}

async function untilProtected(agents: readonly AgentUnderTest[]): Promise<void> {
  for (const agent of agents) await agent.until("protected", ({ protection }) => protection.state === "Protected");
}

describe.runIf(requirePeers("qemu-io", "qemu-img", "fio", "python3:nbd"))("roles", () => {
  it(`are swapped by failover, rejoin and switchover ${ROUNDS} times under load, and lose nothing`, async () => {
    const { pair, urls } = await pairOfEquals();
    const both = [pair.primary, pair.secondary];
    await pair.start();
    let [serving, other] = [pair.primary, pair.secondary];
    for (let round = 0; round < ROUNDS; round += 1) {
      await load(serving, round);
      await serving.get("checkpoint");
      // What is written beyond the checkpoint goes with the host.
      await qemuIo(serving.uri(), `write -P ${round + 1} ${round * MIB} 1M`);
      const before = await readDisk(other.uri());
      await serving.crash();
      await other.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
      await other.get("failover");
      expectSame(await readDisk(other.uri()), before);
      const lost = serving;
      serving = other;
      other = lost;
      await load(serving, 100 + round);
      await other.start();
      await other.until("outdated", ({ protection }) => protection.reason === "outdated");
      expect((await other.status()).peers[0]?.connection).toBe("StandAlone");
      await expect(readDisk(other.uri())).rejects.toThrow("nbdcopy");
      const rejoined = await other.get<RejoinAnswer>("rejoin", "--peer", urls.get(serving) ?? "");
      expect(rejoined.already).toBe(false);
      await untilProtected(both);
      const [resync] = (await serving.get<JobStatus[]>("jobs")).filter(({ type }) => type === "resync");
      expect(resync?.progress.totalBytes).toBeLessThan(SIZE);
      await load(serving, 200 + round);
      const swapped = await serving.get<SwitchoverAnswer>("switchover");
      expect(swapped.role).toBe("Secondary");
      [serving, other] = [other, serving];
      await untilProtected(both);
    }
    await load(serving, 300);
    await serving.get("checkpoint");
    for (const agent of both) await agent.stop();
    await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", pair.imagePath("a"), pair.imagePath("b"));
  }, 300_000);

  it("are not decided by chance after both sides were written to: an operator chooses", async () => {
    const { pair, urls } = await pairOfEquals();
    const { primary, secondary } = pair;
    await pair.start();
    await qemuIo(primary.uri(), "write -P 1 0 1M");
    await primary.get("checkpoint");
    // The primary goes on alone, and then the secondary is promoted while the two cannot speak.
    await secondary.crash();
    await primary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
    await qemuIo(primary.uri(), "write -P 2 0 2M");
    await primary.stop();
    await secondary.start();
    await secondary.get("failover");
    await qemuIo(secondary.uri(), "write -P 3 4M 1M");
    await primary.start();
    for (const agent of [primary, secondary]) {
      const status = await agent.until("split", ({ protection }) => protection.reason === "split-brain");
      expect(status.peers[0]).toMatchObject({ connection: "StandAlone", lastError: { code: "split-brain" } });
      // The one that has just started holds its guests, the other one serves.
      expect(status.protection.nextAction.includes("Guests' requests wait here")).toBe(agent === primary);
    }
    const refused = await primary.ask<ErrorDocument>("rejoin", "--peer", urls.get(secondary) ?? "");
    expect(refused).toMatchObject({ code: 1, json: { error: { code: "split-brain" } } });
    expect(refused.json.error.action).toContain("--discard-my-data");
    const alone = await primary.ask<ErrorDocument>("start-alone");
    expect(alone).toMatchObject({ code: 1, json: { error: { code: "split-brain" } } });
    expect(alone.json.error.action).toContain("`colobus start-alone --force`");
    expect((await primary.status()).protection.nextAction).toContain("Guests' requests wait here");
    // The one that serves holds nobody.
    expect(await secondary.get("start-alone")).toEqual({ released: false });
    expect(await primary.get("start-alone", "--force")).toEqual({ released: true });
    expect((await primary.status()).protection).toMatchObject({ reason: "split-brain" });
    const explained = await primary.get<ConnectAnswer>("connect", "--dry-run");
    expect(explained.verdict).toMatchObject({ kind: "split-brain", rule: "diverged" });
    expect(explained.verdict.changedBytes.here).toBeGreaterThanOrEqual(2 * MIB);
    expect(explained.verdict.changedBytes.there).toBeGreaterThanOrEqual(MIB);
    // The peer is asked each time: what it has written since is in the next answer, and in its own.
    await qemuIo(secondary.uri(), "write -P 4 8M 2M");
    for (const [agent, there] of [
      [primary, 3 * MIB],
      [secondary, 2 * MIB],
    ] as const) {
      const { connected, verdict } = await agent.get<ConnectAnswer>("connect", "--dry-run");
      expect(connected).toBe(false);
      expect(verdict.changedBytes.there).toBeGreaterThanOrEqual(there);
    }
    secondary.freeze();
    const silent = await primary.ask<ErrorDocument>("connect", "--dry-run", "--timeout", "500ms");
    expect(silent).toMatchObject({ code: 4, json: { error: { code: "timed-out" } } });
    expect(silent.json.error.message).toContain('came to "split-brain" (diverged)');
    secondary.thaw();
    const view = await readDisk(secondary.uri());
    await primary.get("connect", "--discard-my-data");
    await untilProtected([primary, secondary]);
    expect((await primary.status()).role).toBe("Secondary");
    expectSame(await readDisk(primary.uri()), view);
    const [resync] = (await secondary.get<JobStatus[]>("jobs")).filter(({ type }) => type === "resync");
    expect(resync?.progress.totalBytes).toBeLessThan(SIZE / 2);
  });

  it("of a primary that comes back are settled before its guests go on, unless an operator says so", async () => {
    const { pair } = await pairOfEquals();
    const { primary, secondary } = pair;
    await pair.start();
    await qemuIo(primary.uri(), "write -P 1 0 1M");
    await primary.get("checkpoint");
    await Promise.all([primary.crash(), secondary.crash()]);
    await primary.start();
    expect((await primary.status()).protection.reason).toBe("held");
    const guest = await NbdClient.connect(primary.uri());
    let isAnswered = false;
    const read = guest.read(0, 4096).then((content) => {
      isAnswered = true;
      return content;
    });
    const released = primary.until("released", ({ protection }) => protection.reason !== "held");
    await primary.until("waiting", ({ exports }) => exports[0]?.clients === 1);
    expect(isAnswered).toBe(false);
    expect(await primary.get("start-alone")).toEqual({ released: true });
    await released;
    expectSame(await read, Buffer.alloc(4096, 1));
    await guest.close();
    expect(await primary.get("start-alone")).toEqual({ released: false });
    await secondary.start();
    await pair.untilProtected();
  });

  it("leave writes frozen without the secondary where the policy says so, until it is back or an operator decides", async () => {
    const pair = await AgentPair.create({
      primaryFlags: ["--on-peer-loss", "freeze"],
      flags: ["--peer-timeout", "1s"],
    });
    const { primary, secondary } = pair;
    await pair.start();
    const guest = await NbdClient.connect(primary.uri());
    await secondary.crash();
    await primary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
    let answered = 0;
    const write = async (offset: number): Promise<void> => {
      await guest.write({ offset, length: 4096 }, 0x11);
      answered += 1;
    };
    const { protection } = await primary.status();
    expect(protection).toMatchObject({ state: "NotProtected", reason: "held" });
    expect(protection.nextAction).toContain("`colobus start-alone`");
    const first = write(0);
    // Reads go on, and so this one tells that the write before it was taken, and waits.
    const reader = await NbdClient.connect(primary.uri());
    expectSame(await reader.read(0, 4096), Buffer.alloc(4096));
    expect(answered).toBe(0);
    await secondary.start();
    await first;
    await pair.untilProtected();
    await secondary.crash();
    await primary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
    const second = write(4096);
    expectSame(await reader.read(4096, 4096), Buffer.alloc(4096));
    expect(answered).toBe(1);
    expect(await primary.get("start-alone")).toEqual({ released: true });
    await second;
    expectSame(await reader.read(4096, 4096), Buffer.alloc(4096, 0x11));
  });

  it("are not swapped under a writing client, unless it is to be sent away", async () => {
    const { pair } = await pairOfEquals();
    const { primary, secondary } = pair;
    await pair.start();
    const guest = await NbdClient.connect(primary.uri());
    await guest.write({ offset: 0, length: 4096 }, 0x55);
    const refused = await primary.ask<ErrorDocument>("switchover");
    expect(refused).toMatchObject({ code: 1, json: { error: { code: "clients-connected" } } });
    await guest.write({ offset: 4096, length: 4096 }, 0x66);
    await primary.get("switchover", "--close-clients");
    await expect(guest.write({ offset: 0, length: 4096 }, 0x77)).rejects.toThrow(NbdFault);
    await untilProtected([primary, secondary]);
    expect((await secondary.status()).role).toBe("Primary");
    const content = await readDisk(secondary.uri());
    expectSame(content.subarray(0, 8192), Buffer.concat([Buffer.alloc(4096, 0x55), Buffer.alloc(4096, 0x66)]));
  });
});

/** Random writes, verified as they are read back. */
async function load(agent: AgentUnderTest, seed: number): Promise<void> {
  await tool(
    "fio",
    "--name=load",
    "--ioengine=nbd",
    `--uri=${agent.uri()}`,
    "--rw=randwrite",
    "--bsrange=4k-64k",
    "--iodepth=8",
    `--randseed=${seed}`,
    "--size=32m",
    "--io_size=8m",
    "--verify=crc32c",
    "--verify_state_save=0",
    "--verify_fatal=1",
  );
}
