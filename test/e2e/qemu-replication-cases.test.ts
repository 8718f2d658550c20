/**
 * The thirteen cases of QEMU's own test of block replication (tests/unit/test-replication.c), against a pair of agents.
 * QEMU's test takes any byte that is smaller than the expected one for right; here every comparison is exact, and the
 * two values that are wrong there (the second half after a failover) are the true ones.
 *
 * Its PVM is a client of the primary's export here, its SVM a client of the secondary's, and its "local" disk the raw
 * image of the secondary.
 */
import { describe, expect, it } from "vitest";
import { AgentPair, MIB, type PairOptions } from "../support/agent-pair.ts";
import type { ErrorDocument } from "../support/cli-runner.ts";
import { HALF, halves, INITIAL, SIZE } from "../support/halved-disk.ts";
import { expectSame, NbdClient, qemuIo, readDisk } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";

/** What is committed is in the secondary's image: in mode `mc` that takes a moment. */
async function untilApplied({ secondary }: AgentPair): Promise<void> {
  await secondary.until("applied", ({ disks }) => disks[0]?.bufferBytes === 0);
}

describe.runIf(requirePeers("qemu-io", "nbdcopy", "python3:nbd"))("QEMU's replication cases", () => {
  describe.each([
    { mode: "colo", durability: "process" },
    { mode: "colo", durability: "power" },
    { mode: "mc", durability: "power" },
  ])("in mode $mode, with durability $durability", ({ mode, durability }) => {
    const options: PairOptions = {
      disks: { vda: INITIAL },
      flags: ["--mode", mode, "--durability", durability],
      primaryFlags: ["--assume-in-sync"],
      secondaryFlags: ["--secondary-export", "read-write"],
    };

    it("primary/read: a primary without a secondary serves its own image", async () => {
      const { primary } = await AgentPair.create(options);
      await primary.start();
      expectSame(await readDisk(primary.uri()), INITIAL);
    });

    it("primary/write: what is written before the secondary is there is dirty, and gets there", async () => {
      const pair = await AgentPair.create({ ...options, primaryFlags: [] });
      const { primary, secondary } = pair;
      await primary.start();
      await qemuIo(primary.uri(), `write -P 0 0 ${SIZE}`);
      const { disks, protection } = await primary.status();
      expect(disks[0]?.dirtyBytes).toBe(SIZE);
      expect(protection).toMatchObject({ state: "NotProtected", reason: "connecting" });
      await secondary.start();
      await pair.untilProtected();
      expectSame(await readDisk(secondary.uri()), Buffer.alloc(SIZE));
      expectSame(pair.image("b"), Buffer.alloc(SIZE));
    });

    it("primary/start: every write of the primary reaches the replica", async () => {
      const pair = await AgentPair.protected(options);
      await qemuIo(pair.primary.uri(), `write -P 0x22 0 ${SIZE}`);
      expectSame(await readDisk(pair.primary.uri()), Buffer.alloc(SIZE, 0x22));
      await pair.checkpoint();
      expectSame(await readDisk(pair.secondary.uri()), Buffer.alloc(SIZE, 0x22));
      await untilApplied(pair);
      expectSame(pair.image("b"), Buffer.alloc(SIZE, 0x22));
    });

    // QEMU's primary goes on, and the two part unnoticed.
    it("primary/stop: a primary whose secondary was promoted hears of it, and serves no more", async () => {
      const { primary, secondary } = await AgentPair.protected(options);
      await secondary.get("failover", "--force");
      await primary.until("outdated", ({ protection }) => protection.reason === "outdated");
      await expect(qemuIo(primary.uri(), `write -P 0x22 0 ${HALF}`)).rejects.toThrow("Input/output error");
      expect((await primary.status()).disks[0]?.state).toBe("Outdated");
      expectSame(await readDisk(secondary.uri()), INITIAL);
    });

    it("primary/do_checkpoint: a checkpoint without a write between changes nothing", async () => {
      const pair = await AgentPair.protected(options);
      const first = await pair.checkpoint();
      expect(await pair.checkpoint()).toBe(first + 1);
      expectSame(await readDisk(pair.secondary.uri()), INITIAL);
    });

    it("primary/get_error_all: a running pair reports no error", async () => {
      const { primary } = await AgentPair.protected(options);
      const { protection, peers, disks } = await primary.status();
      expect(protection).toEqual({ state: "Protected", reason: null, nextAction: "" });
      expect(peers).toMatchObject([{ connection: "Connected", replication: "Established", lastError: null }]);
      expect(disks).toMatchObject([{ state: "UpToDate", dirtyBytes: 0, children: [{ state: "sound" }] }]);
    });

    it("secondary/read: before the first checkpoint there is nothing to read", async () => {
      const { secondary } = await AgentPair.create(options);
      await secondary.start();
      const client = await NbdClient.connect(secondary.uri());
      await expect(client.read(0, MIB)).rejects.toThrow("EIO");
      await expect(client.read(SIZE - 512, 512)).rejects.toThrow("EIO");
    });

    it("secondary/write: before the first checkpoint nothing can be written", async () => {
      const pair = await AgentPair.create(options);
      await pair.secondary.start();
      const client = await NbdClient.connect(pair.secondary.uri());
      await expect(client.write({ offset: 0, length: MIB }, 0)).rejects.toThrow("EIO");
      await expect(client.zero({ offset: 0, length: MIB })).rejects.toThrow("EIO");
      expectSame(pair.image("b"), INITIAL);
    });

    /** Cases 9 to 11 begin alike: the PVM has written the second half, and the SVM the first. */
    async function writtenOnBothSides(): Promise<AgentPair> {
      const pair = await AgentPair.protected(options);
      const { primary, secondary } = pair;
      expectSame(await readDisk(secondary.uri()), INITIAL);
      await qemuIo(primary.uri(), `write -P 0x22 ${HALF} ${HALF}`);
      await primary.untilDrained();
      expectSame(await readDisk(secondary.uri()), INITIAL);
      await qemuIo(secondary.uri(), `write -P 0x33 0 ${HALF}`);
      expectSame(await readDisk(secondary.uri()), halves(0x33, 0x11));
      return pair;
    }

    it("secondary/start: neither side's writes are seen by the other", async () => {
      const pair = await writtenOnBothSides();
      // In mode `mc` the image has nothing that is not committed.
      expectSame(pair.image("b"), mode === "mc" ? INITIAL : halves(0x11, 0x22));
      expectSame(await readDisk(pair.primary.uri()), halves(0x11, 0x22));
    });

    it("secondary/stop: a failover gives the last checkpoint with the SVM's writes, in the raw image too", async () => {
      const pair = await writtenOnBothSides();
      const { secondary } = pair;
      await secondary.get("failover", "--force");
      expectSame(await readDisk(secondary.uri()), halves(0x33, 0x11));
      await secondary.get("wait", "merged");
      expectSame(await readDisk(secondary.uri()), halves(0x33, 0x11));
      expectSame(pair.image("b"), halves(0x33, 0x11));
    });

    it("secondary/continuous_replication: what is asked of a promoted side again changes nothing", async () => {
      const pair = await writtenOnBothSides();
      const { primary, secondary } = pair;
      await secondary.get("failover", "--force");
      await secondary.get("wait", "merged");
      await primary.stop();
      // Start: the same command line again, whose role word is the old one.
      await secondary.stop();
      await secondary.start();
      expect(await secondary.status()).toMatchObject({ role: "Primary", disks: [{ state: "UpToDate" }] });
      // Checkpoint: there is nobody who could take one.
      const refused = await secondary.ask<ErrorDocument>("checkpoint");
      expect(refused).toMatchObject({ code: 1, json: { error: { code: "no-peer" } } });
      // Stop, with failover.
      expect(await secondary.ask("failover")).toMatchObject({ code: 0, json: { already: true } });
      expectSame(await readDisk(secondary.uri()), halves(0x33, 0x11));
      expectSame(pair.image("b"), halves(0x33, 0x11));
    });

    it("secondary/do_checkpoint: a checkpoint shows the PVM's writes and drops the SVM's", async () => {
      const pair = await writtenOnBothSides();
      await pair.checkpoint();
      expectSame(await readDisk(pair.secondary.uri()), halves(0x11, 0x22));
      await untilApplied(pair);
      expectSame(pair.image("b"), halves(0x11, 0x22));
    });

    it("secondary/get_error_all: a running secondary reports no error", async () => {
      const { secondary } = await AgentPair.protected(options);
      const { protection, peers, disks } = await secondary.status();
      expect(protection).toEqual({ state: "Protected", reason: null, nextAction: "" });
      expect(peers).toMatchObject([{ connection: "Connected", replication: "Established", lastError: null }]);
      expect(disks).toMatchObject([{ state: "UpToDate", children: [{ state: "sound" }] }]);
    });
  });
});
