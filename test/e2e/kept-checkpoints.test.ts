/** Checkpoints that the secondary keeps, rolls back to and gives up, and the limit of its overlays: with real clients. */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { ConnectAnswer, ResyncAnswer, RollbackAnswer } from "../../proto/control-api.ts";
import type { AgentEvent } from "../../proto/status.ts";
import { AgentPair, MIB, type AgentUnderTest } from "../support/agent-pair.ts";
import type { ErrorDocument } from "../support/cli-runner.ts";
import { expectSame, NbdClient, NbdFault, qemuIo, readDisk } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { canMount, scratchFileSystem } from "../support/scratch.ts";

const SIZE = 4 * MIB;
const INITIAL = Buffer.alloc(SIZE, 0x11);

/** Overwrites the first MiB and the one of the number, and commits that. */
async function checkpointOf(pair: AgentPair, number: number): Promise<number> {
  await qemuIo(pair.primary.uri(), `write -P ${number} 0 1M`, `write -P ${number} ${1 + (number % 3)}M 1M`, "flush");
  return pair.checkpoint();
}

/** A pair whose secondary was rolled back while the primary was stopped, and has told it so. `content`: what it is back at. */
async function rolledBack(): Promise<{ pair: AgentPair; content: Buffer }> {
  const pair = await AgentPair.protected({ disks: { vda: INITIAL }, secondaryFlags: ["--retain", "1"] });
  const { primary, secondary } = pair;
  const target = await checkpointOf(pair, 2);
  const content = pair.image("a");
  await checkpointOf(pair, 3);
  await primary.stop();
  await secondary.until("alone", ({ peers }) => peers[0]?.connection === "Connecting");
  const { lineage } = await secondary.status();
  await secondary.get("rollback", String(target));
  expect((await secondary.status()).lineage).not.toBe(lineage);
  await primary.start();
  for (const agent of [primary, secondary])
    await agent.until("refused", ({ peers }) => peers[0]?.lastError?.code === "rolled-back");
  return { pair, content };
}

async function eventsOf(agent: AgentUnderTest, type: AgentEvent["type"]): Promise<AgentEvent[]> {
  return (await agent.control.events(0)).filter((event) => event.type === type);
}

describe.runIf(requirePeers("qemu-io", "nbdcopy", "python3:nbd"))("a secondary that retains checkpoints", () => {
  it("exports each of them as it was, whatever is written since, and after a crash", async () => {
    const pair = await AgentPair.protected({ disks: { vda: INITIAL }, secondaryFlags: ["--retain", "2"] });
    const contents = new Map<number, Buffer>();
    for (const number of [2, 3, 4, 5]) contents.set(await checkpointOf(pair, number), pair.image("a"));
    await qemuIo(pair.primary.uri(), "write -P 0x77 0 4M", "flush");
    await pair.primary.untilDrained();
    const [, ...kept] = contents.keys();
    for (const crashed of [false, true]) {
      if (crashed) {
        await pair.secondary.crash();
        await pair.secondary.start();
      }
      const { epoch, exports } = await pair.secondary.status();
      expect([...epoch.retained, epoch.committed]).toEqual(kept);
      expect(exports.map(({ name }) => name)).toEqual([
        "vda",
        "vda@committed",
        ...kept.slice(0, 2).map((at) => `vda@${at}`),
      ]);
      for (const [at, content] of [...contents].slice(1))
        expectSame(await readDisk(pair.secondary.uri(`vda@${at}`)), content);
    }
    const [gone] = contents.keys();
    await expect(readDisk(pair.secondary.uri(`vda@${gone}`))).rejects.toThrow(/export/);
    await expect(qemuIo(pair.secondary.uri("vda@committed"), "write 0 4k")).rejects.toThrow(/ermission|read-only/);
  });

  it("keeps vda@committed as a client has found it, over commits, until the client leaves", async () => {
    const pair = await AgentPair.protected({ disks: { vda: INITIAL } });
    await checkpointOf(pair, 2);
    const before = pair.image("a");
    const client = await NbdClient.connect(pair.secondary.uri("vda@committed"));
    expect(client.readOnly).toBe(true);
    await checkpointOf(pair, 3);
    await checkpointOf(pair, 4);
    expectSame(await client.read(0, SIZE), before);
    expectSame(await readDisk(pair.secondary.uri("vda@committed")), pair.image("a"));
    const { exports } = await pair.secondary.status();
    expect(exports.find(({ name }) => name === "vda@committed")?.clients).toBe(1);
    await client.close();
    await pair.secondary.until("free of what it pinned", ({ disks }) => disks[0]?.hiddenBytes === 0);
  });

  it("drops them at a failover, and the clients that read them get errors, not something else", async () => {
    const pair = await AgentPair.protected({ disks: { vda: INITIAL }, secondaryFlags: ["--retain", "1"] });
    await checkpointOf(pair, 2);
    const committed = pair.image("a");
    const client = await NbdClient.connect(pair.secondary.uri("vda@committed"));
    await pair.primary.crash();
    await pair.secondary.get("failover");
    await expect(client.read(0, 4096)).rejects.toThrow(NbdFault);
    await pair.secondary.get("wait", "merged");
    expectSame(pair.image("b"), committed);
    expect(await eventsOf(pair.secondary, "retained-dropped")).toMatchObject([{ data: { reason: "failover" } }]);
  });

  it("rolls back to one of them, and fails over to it", async () => {
    const pair = await AgentPair.protected({ disks: { vda: INITIAL }, secondaryFlags: ["--retain", "3"] });
    const target = await checkpointOf(pair, 2);
    const content = pair.image("a");
    const from = await checkpointOf(pair, 3);
    const refused = await pair.secondary.ask<ErrorDocument>("rollback", String(target));
    expect(refused).toMatchObject({ code: 1, json: { error: { code: "peer-connected" } } });
    const onPrimary = await pair.primary.ask<ErrorDocument>("rollback", String(target));
    expect(onPrimary).toMatchObject({ code: 1, json: { error: { code: "not-secondary" } } });
    await pair.primary.crash();
    await pair.secondary.until("alone", ({ peers }) => peers[0]?.connection === "Connecting");
    const unknown = await pair.secondary.ask<ErrorDocument>("rollback", String(from + 1));
    expect(unknown).toMatchObject({ code: 1, json: { error: { code: "epoch-unknown" } } });
    const answer = await pair.secondary.get<RollbackAnswer>("rollback", String(target));
    expect(answer).toEqual({ epoch: target, fromEpoch: from });
    expectSame(await readDisk(pair.secondary.uri()), content);
    await pair.secondary.crash();
    await pair.secondary.start();
    expect((await pair.secondary.status()).epoch.committed).toBe(target);
    await pair.secondary.get("failover");
    await pair.secondary.get("wait", "merged");
    expectSame(pair.image("b"), content);
  });

  it("holds a rollback against the primary that comes back, until an operator gives it up for what differs", async () => {
    const { pair, content } = await rolledBack();
    const { primary, secondary } = pair;
    const { verdict } = await secondary.get<ConnectAnswer>("connect", "--dry-run");
    expect(verdict).toMatchObject({ kind: "refused", rule: "rolled-back", source: null });
    const { role, protection } = await primary.status();
    expect({ role, reason: protection.reason }).toEqual({ role: "Primary", reason: "held" });
    expectSame(await readDisk(secondary.uri()), content);
    await secondary.get("connect", "--discard-my-data");
    await pair.untilProtected();
    const [sync] = await eventsOf(primary, "sync-started");
    expect(sync?.data.bytes).toBeLessThan(SIZE);
    expectSame(await readDisk(secondary.uri()), pair.image("a"));
    expect((await secondary.status()).lineage).toBe((await primary.status()).lineage);
  });

  it("goes on from a rollback by a failover, and the old primary rejoins with what differs", async () => {
    const { pair, content } = await rolledBack();
    const { primary, secondary, port } = pair;
    await secondary.get("failover");
    await secondary.get("wait", "merged");
    expectSame(pair.image("b"), content);
    await primary.until("outdated", ({ protection }) => protection.reason === "outdated");
    await primary.get("rejoin", "--peer", `ws://127.0.0.1:${port}`);
    await primary.get("wait", "synced");
    const sync = (await eventsOf(secondary, "sync-started")).at(-1);
    expect(sync?.data.bytes).toBeLessThan(SIZE);
    await secondary.get("checkpoint");
    expectSame(pair.image("a"), content);
  });
});

describe.runIf(requirePeers("qemu-io", "nbdcopy"))("an overlay limit", () => {
  it("has the primary take a checkpoint in time", async () => {
    const pair = await AgentPair.protected({
      disks: { vda: Buffer.alloc(32 * MIB, 0x11) },
      primaryFlags: ["--assume-in-sync", "--checkpoint-every", "1h"],
      secondaryFlags: ["--overlay-limit", "16MiB"],
    });
    const { committed } = (await pair.secondary.status()).epoch;
    await qemuIo(pair.primary.uri(), "write -P 0x22 0 13M", "flush");
    await pair.secondary.until("committed again", ({ epoch }) => epoch.committed > committed);
    await qemuIo(pair.primary.uri(), "write -P 0x33 0 5M", "flush");
    await pair.untilProtected();
    await pair.primary.untilDrained();
    for (const agent of [pair.primary, pair.secondary]) {
      expect(await eventsOf(agent, "checkpoint-wanted")).toMatchObject([{ data: { limitBytes: 16 * MIB } }]);
      expect(await eventsOf(agent, "overlay-full")).toEqual([]);
    }
  });

  it("has retained checkpoints dropped before writes are refused", async () => {
    const pair = await AgentPair.protected({
      disks: { vda: Buffer.alloc(32 * MIB, 0x11) },
      primaryFlags: ["--assume-in-sync"],
      secondaryFlags: ["--overlay-limit", "16MiB", "--retain", "4"],
    });
    const epochs: number[] = [(await pair.secondary.status()).epoch.committed];
    for (const number of [2, 3, 4]) {
      await qemuIo(pair.primary.uri(), `write -P ${number} 0 7M`, "flush");
      epochs.push(await pair.checkpoint());
    }
    const { epoch, disks } = await pair.secondary.status();
    expect([...epoch.retained, epoch.committed]).toEqual(epochs.slice(1));
    expect(disks[0]?.hiddenBytes).toBeLessThan(16 * MIB);
    expect(await eventsOf(pair.secondary, "retained-dropped")).toMatchObject([
      { data: { epochs: [epochs[0]], reason: "overlay-full" } },
    ]);
    expect(await eventsOf(pair.secondary, "overlay-full")).toEqual([]);
  });
});

describe.runIf(requirePeers("qemu-io", "nbdcopy") && canMount())("a resync that does not fit", () => {
  it("says what is missing, and goes on when the checkpoint is given up", async () => {
    const size = 52 * MIB;
    const space = scratchFileSystem(36 * MIB);
    const pair = await AgentPair.protected({
      disks: { vda: Buffer.alloc(size, 0x11) },
      flags: ["--durability", "process"],
      primaryFlags: ["--assume-in-sync"],
      secondaryState: join(space, "state"),
    });
    const { committed } = (await pair.secondary.status()).epoch;
    await qemuIo(pair.primary.uri(), "write -P 0x33 0 48M", "flush");
    await pair.primary.until("aware of it", ({ protection }) => protection.reason === "overlay-full");

    const waiting = await pair.primary.ask<ErrorDocument>("checkpoint", "--timeout", "50ms");
    expect(waiting).toMatchObject({ code: 4, json: { error: { code: "timed-out" } } });
    expect(waiting.json.error.message).toMatch(/the secondary waits: .*must be free to go on/);
    const paused = await pair.primary.ask<ErrorDocument>("resync");
    expect(paused).toMatchObject({ code: 1, json: { error: { code: "overlay-full" } } });
    expect(paused.json.error.message).toMatch(/at least \d+ bytes must be free to go on, and \d+ are; \d+ bytes wait/);
    expect(paused.json.error.action).toContain("resync --give-up-checkpoint");
    const onPrimary = await pair.primary.ask<ErrorDocument>("resync", "--give-up-checkpoint");
    expect(onPrimary).toMatchObject({ code: 1, json: { error: { code: "not-secondary" } } });
    const onSecondary = await pair.secondary.ask<ErrorDocument>("resync");
    expect(onSecondary).toMatchObject({ code: 1, json: { error: { code: "not-primary" } } });

    const answer = await pair.secondary.get<ResyncAnswer>("resync", "--give-up-checkpoint");
    expect(answer).toEqual({ outcome: "given-up", job: null, givenUpEpoch: committed });
    await pair.untilProtected();
    await pair.primary.untilDrained();
    expectSame(pair.image("b"), pair.image("a"));
    expectSame(await readDisk(pair.secondary.uri()), pair.image("a"));
    for (const agent of [pair.primary, pair.secondary]) {
      expect(await eventsOf(agent, "checkpoint-given-up")).toMatchObject([{ data: { epoch: committed } }]);
      expect((await agent.status()).epoch.committed).toBeGreaterThan(committed);
    }
    expect(await pair.primary.get<ResyncAnswer>("resync")).toMatchObject({ outcome: "nothing-to-do" });
  });
});
