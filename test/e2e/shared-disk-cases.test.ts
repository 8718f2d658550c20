/**
 * The thirteen cases of QEMU's own test of block replication, as in `qemu-replication-cases.test.ts`, where both agents
 * use one disk. There is one image then: what the primary writes is in it at once, and the secondary's export shows the
 * last checkpoint all the same.
 */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { AgentPair, freePort, MIB, type PairOptions } from "../support/agent-pair.ts";
import { runColobus, type ErrorDocument } from "../support/cli-runner.ts";
import { HALF, halves, INITIAL, SIZE } from "../support/halved-disk.ts";
import { expectSame, NbdClient, qemuIo, readDisk } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { contentOf, createSharing, failOverFenced, type SharedFormat } from "../support/shared-image.ts";
import { blockDeviceOver, canMakeBlockDevices, scratchDirectory } from "../support/scratch.ts";

const PEERS = ["qemu-io", "nbdcopy", "python3:nbd", "qemu-nbd", "qemu-img"] as const;

describe.runIf(requirePeers(...PEERS)).each<SharedFormat>(["raw", "qcow2"])(
  "QEMU's replication cases on a shared %s image",
  (format) => {
    const create = (): Promise<AgentPair> =>
      createSharing(format, { disks: { vda: INITIAL }, secondaryFlags: ["--secondary-export", "read-write"] });
    const content = (pair: AgentPair): Promise<Buffer> => contentOf(pair, format);

    async function protectedPair(): Promise<AgentPair> {
      const pair = await create();
      await pair.start();
      return pair;
    }

    it("primary/read: a primary that never had a secondary serves the disk", async () => {
      const { primary } = await create();
      await primary.start();
      expectSame(await readDisk(primary.uri()), INITIAL);
    });

    it("primary/write: what is written before there is a secondary is in its first checkpoint", async () => {
      const pair = await create();
      const { primary, secondary } = pair;
      await primary.start();
      await qemuIo(primary.uri(), `write -P 0 0 ${SIZE}`);
      await secondary.start();
      await pair.untilProtected();
      expectSame(await readDisk(secondary.uri()), Buffer.alloc(SIZE));
    });

    it("primary/start: what is written is on the disk, and shown by the secondary from the next checkpoint on", async () => {
      const pair = await protectedPair();
      await qemuIo(pair.primary.uri(), `write -P 0x22 0 ${SIZE}`, "flush");
      expectSame(await content(pair), Buffer.alloc(SIZE, 0x22));
      expectSame(await readDisk(pair.secondary.uri()), INITIAL);
      await pair.checkpoint();
      expectSame(await readDisk(pair.secondary.uri()), Buffer.alloc(SIZE, 0x22));
    });

    it("primary/stop: a primary whose secondary was promoted serves no more", async () => {
      const pair = await protectedPair();
      const { primary, secondary } = pair;
      await qemuIo(primary.uri(), `write -P 0x22 0 ${HALF}`);
      await failOverFenced(pair);
      await secondary.get("wait", "merged");
      await secondary.stop(); // one file, and one lock, on one host: else the former primary could not even start
      await primary.start();
      await secondary.start().catch(() => undefined);
      const { protection } = await primary.status();
      expect(protection.state).toBe("NotProtected");
      expect(["held", "outdated"]).toContain(protection.reason);
      expectSame(await content(pair), INITIAL);
    });

    it("primary/do_checkpoint: a checkpoint without a write between changes nothing", async () => {
      const pair = await protectedPair();
      const first = await pair.checkpoint();
      expect(await pair.checkpoint()).toBe(first + 1);
      expectSame(await readDisk(pair.secondary.uri()), INITIAL);
    });

    it("get_error_all: a running pair reports no error", async () => {
      const { primary, secondary } = await protectedPair();
      for (const { protection, peers, disks } of [await primary.status(), await secondary.status()]) {
        expect(protection).toEqual({ state: "Protected", reason: null, nextAction: "" });
        expect(peers).toMatchObject([{ connection: "Connected", replication: "Established", lastError: null }]);
        expect(disks).toMatchObject([{ state: "UpToDate", dirtyBytes: 0, children: [{ state: "sound" }] }]);
      }
    });

    it("secondary/read and write: before the first checkpoint there is nothing to read, or to write to", async () => {
      const pair = await create();
      await pair.secondary.start();
      const client = await NbdClient.connect(pair.secondary.uri());
      await expect(client.read(0, MIB)).rejects.toThrow("EIO");
      await expect(client.write({ offset: 0, length: MIB }, 0)).rejects.toThrow("EIO");
      await expect(client.zero({ offset: 0, length: MIB })).rejects.toThrow("EIO");
      expectSame(await content(pair), INITIAL);
    });

    /** Cases 9 to 12 begin alike: the PVM has written the second half, and the SVM the first. */
    async function writtenOnBothSides(): Promise<AgentPair> {
      const pair = await protectedPair();
      const { primary, secondary } = pair;
      await qemuIo(primary.uri(), `write -P 0x22 ${HALF} ${HALF}`, "flush");
      expectSame(await readDisk(secondary.uri()), INITIAL);
      await qemuIo(secondary.uri(), `write -P 0x33 0 ${HALF}`);
      expectSame(await readDisk(secondary.uri()), halves(0x33, 0x11));
      return pair;
    }

    it("secondary/start: neither side's writes are seen by the other", async () => {
      const pair = await writtenOnBothSides();
      expectSame(await content(pair), halves(0x11, 0x22));
      expectSame(await readDisk(pair.primary.uri()), halves(0x11, 0x22));
    });

    it("secondary/stop: a failover gives the last checkpoint with the SVM's writes, and merges them into the disk", async () => {
      const pair = await writtenOnBothSides();
      const { secondary } = pair;
      await failOverFenced(pair);
      expectSame(await readDisk(secondary.uri()), halves(0x33, 0x11));
      await secondary.get("wait", "merged");
      expectSame(await readDisk(secondary.uri()), halves(0x33, 0x11));
      expectSame(await content(pair), halves(0x33, 0x11));
    });

    it("secondary/continuous_replication: what is asked of a promoted side again changes nothing", async () => {
      const pair = await writtenOnBothSides();
      const { secondary } = pair;
      await failOverFenced(pair);
      await secondary.get("wait", "merged");
      await secondary.stop();
      await secondary.start();
      expect(await secondary.status()).toMatchObject({ role: "Primary", disks: [{ state: "UpToDate" }] });
      const refused = await secondary.ask<ErrorDocument>("checkpoint");
      expect(refused).toMatchObject({ code: 1, json: { error: { code: "no-peer" } } });
      expect(await secondary.ask("failover")).toMatchObject({ code: 0, json: { already: true } });
      expectSame(await readDisk(secondary.uri()), halves(0x33, 0x11));
    });

    it("secondary/do_checkpoint: a checkpoint shows the PVM's writes and drops the SVM's", async () => {
      const pair = await writtenOnBothSides();
      await pair.checkpoint();
      expectSame(await readDisk(pair.secondary.uri()), halves(0x11, 0x22));
    });
  },
);

describe.runIf(requirePeers("qemu-io", "nbdcopy"))("a pair that shares its disk", () => {
  const options: PairOptions = { disks: { vda: INITIAL }, shared: {} };

  it("takes a former primary back, while the other side has the disk open, and locked", async () => {
    const port = await freePort();
    const pair = await AgentPair.protected({ ...options, primaryFlags: ["--listen", `127.0.0.1:${port}`] });
    const { primary, secondary } = pair;
    await qemuIo(primary.uri(), `write -P 0x22 0 ${MIB}`);
    await pair.checkpoint();
    await primary.crash();
    await secondary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
    await secondary.get("failover", "--fenced");
    await secondary.get("wait", "merged");
    await primary.start();
    await primary.until("outdated", ({ protection }) => protection.reason === "outdated");
    await primary.get("rejoin", "--peer", `ws://127.0.0.1:${pair.port}`);
    await primary.until("protected", ({ protection }) => protection.state === "Protected");
    const shown = await readDisk(secondary.uri());
    await qemuIo(secondary.uri(), `write -P 0x33 0 ${2 * MIB}`);
    expectSame(await readDisk(primary.uri()), shown);
    // And back again.
    await secondary.crash();
    await primary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
    await primary.get("failover", "--fenced");
    expectSame(await readDisk(primary.uri()), shown);
  });

  it("keeps the checkpoint when the secondary is killed, and guests wait until it is back", async () => {
    const pair = await AgentPair.protected(options);
    const { primary, secondary } = pair;
    await qemuIo(primary.uri(), `write -P 0x22 0 ${MIB}`);
    await secondary.crash();
    await primary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
    const writing = qemuIo(primary.uri(), `write -P 0x44 ${MIB} ${MIB}`);
    await primary.until("frozen", ({ protection }) => protection.state === "NotProtected");
    expectSame(pair.image("a").subarray(MIB), INITIAL.subarray(MIB));
    await secondary.start();
    await writing;
    await pair.untilProtected();
    expectSame(await readDisk(secondary.uri()), INITIAL);
    expectSame(pair.image("a").subarray(0, 2 * MIB), Buffer.alloc(2 * MIB, 0x22).fill(0x44, MIB));
  });

  it("keeps the checkpoint when the primary is killed, and goes on when it is back", async () => {
    const pair = await AgentPair.protected(options);
    const { primary, secondary } = pair;
    await qemuIo(primary.uri(), `write -P 0x22 0 ${MIB}`);
    await primary.crash();
    expectSame(await readDisk(secondary.uri()), INITIAL);
    await primary.start();
    await pair.untilProtected();
    await qemuIo(primary.uri(), `write -P 0x44 0 ${2 * MIB}`);
    expectSame(await readDisk(secondary.uri()), INITIAL);
  });

  it("shows its checkpoint to whoever reads it while the guest overwrites everything, round after round", async () => {
    const pair = await AgentPair.protected({ ...options, flags: ["--durability", "process"] });
    const { primary, secondary } = pair;
    let shown = INITIAL;
    for (const byte of [0x21, 0x22, 0x23, 0x24]) {
      let isWritten = false;
      const writing = qemuIo(primary.uri(), `write -P ${byte} 0 ${SIZE}`).then(() => (isWritten = true));
      do expectSame(await readDisk(secondary.uri()), shown);
      while (!isWritten);
      await writing;
      expectSame(await readDisk(secondary.uri()), shown);
      await pair.checkpoint();
      shown = Buffer.alloc(SIZE, byte);
      expectSame(await readDisk(secondary.uri()), shown);
    }
  });

  it("swaps the roles and loses nothing, and swaps them back", async () => {
    const pair = await AgentPair.protected(options);
    const { primary, secondary } = pair;
    await qemuIo(primary.uri(), `write -P 0x22 0 ${MIB}`);
    await primary.get("switchover");
    await secondary.get("wait", "merged");
    await pair.untilProtected();
    await qemuIo(secondary.uri(), `read -P 0x22 0 ${MIB}`, `write -P 0x33 ${MIB} ${MIB}`);
    const before = Buffer.from(INITIAL).fill(0x22, 0, MIB);
    expectSame(await readDisk(primary.uri()), before);
    await secondary.get("switchover");
    await primary.get("wait", "merged");
    await pair.untilProtected();
    expectSame(await readDisk(primary.uri()), before.fill(0x33, MIB, 2 * MIB));
    expectSame(await readDisk(secondary.uri()), before);
  });

  it("refuses a failover before the primary is fenced, and to go on alone without a mark", async () => {
    const { primary, secondary } = await AgentPair.protected(options);
    expect(await secondary.ask<ErrorDocument>("failover", "--force")).toMatchObject({
      code: 1,
      json: { error: { code: "fence-failed" } },
    });
    expect(await primary.ask<ErrorDocument>("start-alone")).toMatchObject({
      code: 1,
      json: { error: { code: "not-supported" } },
    });
  });
});

describe.runIf(requirePeers("qemu-io", "nbdcopy"))("a pair with a mark beside its shared disk", () => {
  async function marked(): Promise<{ pair: AgentPair; mark: string }> {
    const mark = join(scratchDirectory(), "mark");
    const pair = await AgentPair.protected({
      disks: { vda: INITIAL },
      shared: {},
      flags: ["--shared-mark", mark],
      primaryFlags: ["--on-peer-loss", "continue"],
    });
    return { pair, mark };
  }

  const inspected = async (mark: string): Promise<string> => (await runColobus("inspect", mark)).stdout;

  it("goes on without the secondary, whose checkpoint is void until the two have met again", async () => {
    const { pair, mark } = await marked();
    const { primary, secondary } = pair;
    expect(await inspected(mark)).toContain(": protected, by agent");
    await secondary.crash();
    await primary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
    await qemuIo(primary.uri(), `write -P 0x22 0 ${MIB}`);
    expect(await inspected(mark)).toContain(": unprotected, by agent");
    await primary.crash();
    await secondary.start();
    await expect(readDisk(secondary.uri())).rejects.toThrow("Input/output error");
    const refused = await secondary.ask<ErrorDocument>("failover", "--fenced");
    expect(refused).toMatchObject({ code: 1, json: { error: { code: "unprotected" } } });
    await primary.start();
    await pair.untilProtected();
    const now = Buffer.from(INITIAL).fill(0x22, 0, MIB);
    expectSame(await readDisk(secondary.uri()), now);
    await qemuIo(primary.uri(), `write -P 0x33 0 ${SIZE}`);
    expectSame(await readDisk(secondary.uri()), now);
  });

  it("takes an unprotected disk as it is where the operator forces that", async () => {
    const { pair, mark } = await marked();
    const { primary, secondary } = pair;
    await secondary.crash();
    await primary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
    await qemuIo(primary.uri(), `write -P 0x22 0 ${MIB}`);
    await primary.crash();
    await secondary.start();
    await secondary.get("failover", "--fenced", "--force");
    await secondary.get("wait", "merged");
    expectSame(await readDisk(secondary.uri()), Buffer.from(INITIAL).fill(0x22, 0, MIB));
    expect(await inspected(mark)).toMatch(/: (merging|unprotected), by agent/);
  });
});

describe.runIf(requirePeers("qemu-io", "nbdcopy") && canMakeBlockDevices())(
  "a pair with a device each for one disk",
  () => {
    it("shows each checkpoint, whatever the secondary has read before, and merges into the disk", async () => {
      const pair = await AgentPair.protected({
        disks: { vda: INITIAL },
        // As two hosts have one LUN: a device each, with a page cache of its own.
        shared: { pathOf: (_, image) => blockDeviceOver(image) },
      });
      const { primary, secondary } = pair;
      let shown = INITIAL;
      for (const byte of [0x21, 0x22]) {
        expectSame(await readDisk(secondary.uri()), shown);
        await qemuIo(primary.uri(), `write -P ${byte} 0 ${SIZE}`);
        expectSame(await readDisk(secondary.uri()), shown);
        await pair.checkpoint();
        shown = Buffer.alloc(SIZE, byte);
        expectSame(await readDisk(secondary.uri()), shown);
      }
      await qemuIo(primary.uri(), `write -P 0x33 0 ${MIB}`, "flush");
      await primary.crash();
      await secondary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
      await secondary.get("failover", "--fenced");
      await secondary.get("wait", "merged");
      expectSame(await readDisk(secondary.uri()), shown);
      await secondary.stop();
      expectSame(pair.image("a"), shown);
    });
  },
);
