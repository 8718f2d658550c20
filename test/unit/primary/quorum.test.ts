import { describe, expect, it } from "vitest";
import { combineExtents } from "../../../primary/combine-extents.ts";
import type { DiskCopy } from "../../../primary/disk-copy.ts";
import { electContent } from "../../../primary/elect-content.ts";
import { Quorum, type QuorumPolicy } from "../../../primary/quorum.ts";
import { ColobusError } from "../../../proto/errors.ts";
import { planSparseRead } from "../../../shared/nbd/read-reply.ts";
import { COPY_CLUSTER_BYTES as CLUSTER, COPY_TIMEOUT_MS, CopyBench } from "../../support/copy-bench.ts";
import { MemoryDevice, type OperationGate } from "../../support/memory-device.ts";
import { turn } from "../../support/memory-storage.ts";

const NO_FUA = { fua: false } as const;
const FIFO = { voteThreshold: 1, readPattern: "fifo", rewriteCorrupted: false, blkverify: false } as const;
const failing: OperationGate = () => {
  throw new ColobusError("io-error", "the device is broken");
};

/** A quorum of copies in memory, all sound, and what it has told. */
class QuorumBench {
  readonly bench = new CopyBench(16);
  readonly media: MemoryDevice[];
  readonly copies: DiskCopy[];
  readonly quorum: Quorum;
  readonly told: string[] = [];

  constructor(count: number, policy: Partial<QuorumPolicy> = {}) {
    const sizeBytes = this.bench.geometry.sizeBytes;
    this.quorum = new Quorum({
      disk: "vda",
      geometry: this.bench.geometry,
      policy: () => ({ ...FIFO, ...policy }),
      recorded: () => undefined,
      outvoted: (copy, offset, length) => this.told.push(`outvoted ${copy.name} ${offset}+${length}`),
      failed: (during, offset, length, reason) =>
        this.told.push(`failure ${during} ${offset}+${length} ${reason.code}`),
      freeze: ({ message }) => this.told.push(`frozen, since ${message}`),
    });
    this.media = Array.from({ length: count }, () => new MemoryDevice(sizeBytes));
    this.copies = this.media.map((medium, index) => {
      const copy: DiskCopy = this.bench.copy(medium, {
        name: `c${index}`,
        state: "sound",
        mayBreak: () => this.quorum.mayBreak(copy),
        refused: (during, offset, length) => this.told.push(`bad c${index} ${during} ${offset}+${length}`),
      });
      return copy;
    });
    this.quorum.setCopies(this.copies);
  }

  medium(index: number): MemoryDevice {
    const medium = this.media[index];
    if (medium === undefined) throw new RangeError("there is no such copy");
    return medium;
  }

  get states(): string[] {
    return this.copies.map(({ state }) => state);
  }

  async read(offset: number, length: number): Promise<string> {
    const target = Buffer.alloc(length);
    await this.quorum.read(target, offset);
    return target.toString("latin1");
  }

  async write(text: string, offset: number): Promise<void> {
    await this.quorum.write(Buffer.from(text), offset, NO_FUA);
  }
}

describe("a quorum", () => {
  it("writes all copies, and lets one that fails break, with what it misses", async () => {
    const bench = new QuorumBench(3);
    bench.medium(1).gate = failing;
    await bench.write("abc", CLUSTER);
    await bench.write("def", 3 * CLUSTER);
    expect(bench.states).toEqual(["sound", "broken", "sound"]);
    expect(bench.copies[1]?.dirtyBytes).toBe(2 * CLUSTER);
    expect(bench.told).toEqual([`bad c1 write ${CLUSTER}+3`]);
    expect(bench.medium(2).bytes.toString("latin1", CLUSTER, CLUSTER + 3)).toBe("abc");
  });

  it("tells all copies that what they are given is lent", async () => {
    const bench = new QuorumBench(2);
    const lent: unknown[] = [];
    for (const medium of bench.media) medium.write = (_, __, { isLent }) => void lent.push(isLent);
    await bench.quorum.write(Buffer.from("abc"), 0, { fua: false, isLent: true });
    expect(lent).toEqual([true, true]);
  });

  it("refuses a write that fewer sound copies than the threshold have, and says so", async () => {
    const bench = new QuorumBench(3, { voteThreshold: 2 });
    bench.medium(1).gate = failing;
    await bench.write("abc", 0);
    bench.medium(2).gate = failing;
    await expect(bench.write("def", 0)).rejects.toMatchObject({ code: "io-error" });
    expect(bench.told.at(-1)).toBe("failure write 0+3 io-error");
    expect(bench.states).toEqual(["sound", "broken", "broken"]);
  });

  it("never succeeds silently on a local image that fails: status says so, and the last copy does not break", async () => {
    const bench = new QuorumBench(2);
    bench.medium(0).gate = failing;
    await bench.write("abc", 0);
    expect(bench.states).toEqual(["broken", "sound"]);
    bench.medium(1).gate = failing;
    await expect(bench.write("def", CLUSTER)).rejects.toMatchObject({ code: "io-error" });
    expect(bench.states).toEqual(["broken", "sound"]);
    expect(bench.copies[0]?.dirtyBytes).toBe(2 * CLUSTER);
  });

  it("lacks on the others what the last sound copy has refused", async () => {
    const bench = new QuorumBench(2);
    bench.medium(1).gate = failing;
    await bench.write("abc", 0);
    bench.medium(1).gate = undefined;
    bench.copies[1]?.beginSync();
    bench.medium(0).gate = failing;
    await expect(bench.write("def", 5 * CLUSTER)).rejects.toMatchObject({ code: "io-error" });
    expect(bench.medium(1).bytes.toString("latin1", 5 * CLUSTER, 5 * CLUSTER + 3)).toBe("def");
    expect(bench.copies[1]?.dirtyBytes).toBe(2 * CLUSTER);
  });

  it("lacks, on a copy that was the last sound one, all that it has refused and another one has taken", async () => {
    const bench = new QuorumBench(3);
    for (const index of [1, 2]) bench.medium(index).gate = failing;
    await bench.write("abc", 0);
    bench.medium(1).gate = undefined;
    bench.copies[1]?.beginSync();
    await bench.copies[1]?.place(0, Buffer.alloc(CLUSTER, "abc"));
    // Copy 2 hangs, so that the changes are decided when copy 1 is sound.
    const hanging: (() => void)[] = [];
    bench.medium(2).gate = () =>
      new Promise<void>((resolve) => {
        hanging.push(resolve);
      });
    bench.copies[2]?.beginSync();
    bench.medium(0).gate = failing;
    const writing = [bench.write("def", 5 * CLUSTER), bench.write("ghi", 7 * CLUSTER)];
    expect(await bench.copies[1]?.finishSync()).toBe(true);
    bench.copies[1]?.becomeSound();
    for (const resume of hanging) resume();
    await Promise.all(writing);
    expect(bench.states).toEqual(["syncing", "sound", "syncing"]);
    expect([5, 6, 7].map((cluster) => bench.copies[0]?.has(cluster * CLUSTER, 1))).toEqual([false, true, false]);
  });

  it("falls through to the next copy at a read, in order, and never to one that lacks the range", async () => {
    const bench = new QuorumBench(3);
    await bench.write("abc", 0);
    bench.medium(2).gate = failing;
    await bench.write("new", 0);
    bench.medium(2).gate = undefined;
    bench.copies[2]?.beginSync();
    bench.medium(0).gate = failing;
    expect(await bench.read(0, 3)).toBe("new");
    expect(bench.states).toEqual(["broken", "sound", "syncing"]);
    bench.medium(1).gate = failing;
    await expect(bench.read(0, 3)).rejects.toMatchObject({ code: "io-error" });
    expect(await bench.read(2 * CLUSTER, 3)).toBe("\0\0\0");
  });

  it("delays nothing beyond the time limit of a copy that hangs", async () => {
    const bench = new QuorumBench(2);
    bench.medium(0).gate = () =>
      new Promise<void>(() => {
        // It never answers.
      });
    const target = Buffer.alloc(3);
    const reading = bench.quorum.read(target, 0);
    const writing = bench.quorum.write(Buffer.from("abc"), CLUSTER, NO_FUA);
    bench.bench.clock.advance(COPY_TIMEOUT_MS);
    await Promise.all([reading, writing]);
    expect(bench.states).toEqual(["broken", "sound"]);
    expect(bench.copies[0]?.isUnsettled).toBe(true);
  });

  it("waits for a copy that hangs no longer than until that is taken out", async () => {
    const bench = new QuorumBench(2);
    const never = new Promise<void>(() => {
      // It hangs.
    });
    bench.medium(1).gate = ({ kind }) => (kind === "flush" ? never : undefined);
    const flushing = Promise.resolve(bench.quorum.flush());
    const [first, hanging] = bench.copies;
    bench.quorum.setCopies(first === undefined ? [] : [first]);
    hanging?.close();
    await flushing;
  });

  it("flushes all copies at the same time", async () => {
    const bench = new QuorumBench(3, { voteThreshold: 2 });
    const resume: (() => void)[] = [];
    for (const medium of bench.media) {
      medium.gate = ({ kind }) =>
        kind === "flush"
          ? new Promise<void>((resolve) => {
              resume.push(resolve);
            })
          : undefined;
    }
    const flushing = bench.quorum.flush();
    await turn();
    expect(resume.length).toBe(3);
    for (const go of resume) go();
    await flushing;
    bench.medium(0).gate = failing;
    for (const medium of bench.media.slice(1)) medium.gate = undefined;
    await bench.quorum.flush();
    expect(bench.states).toEqual(["broken", "sound", "sound"]);
    expect(bench.copies[0]?.dirtyBytes).toBe(16 * CLUSTER);
  });

  it("flushes a copy that lacks nothing as well: it may be sound before the next flush", async () => {
    const bench = new QuorumBench(3);
    for (const index of [1, 2]) bench.medium(index).gate = failing;
    await bench.write("abc", 0);
    for (const index of [1, 2]) {
      bench.medium(index).gate = undefined;
      bench.copies[index]?.beginSync();
    }
    await bench.copies[1]?.place(0, Buffer.alloc(CLUSTER));
    expect(await bench.copies[1]?.finishSync()).toBe(true);
    await bench.write("def", CLUSTER);
    for (const medium of bench.media) medium.operations = [];
    await bench.quorum.flush();
    expect(bench.media.map(({ operations }) => operations?.length)).toEqual([1, 1, 0]);
  });

  it("lacks, on a copy that was the last sound one, what a flush of it has lost, however it breaks later", async () => {
    const bench = new QuorumBench(2);
    bench.medium(1).gate = failing;
    await bench.write("abc", 0);
    bench.medium(1).gate = undefined;
    bench.copies[1]?.beginSync();
    bench.medium(0).gate = failing;
    expect(() => bench.quorum.flush()).toThrow("the device is broken");
    await bench.copies[1]?.place(0, Buffer.alloc(CLUSTER));
    bench.copies[1]?.becomeSound();
    expect(bench.copies[0]?.dirtyBytes).toBe(0);
    await bench.write("def", CLUSTER);
    expect(bench.states).toEqual(["broken", "sound"]);
    expect(bench.copies[0]?.dirtyBytes).toBe(bench.quorum.sizeBytes);
  });

  it("trims and zeroes every copy", async () => {
    const bench = new QuorumBench(2);
    await bench.write("abc", 0);
    await bench.quorum.zero(0, CLUSTER, { fua: false, mayUnmap: true });
    for (const medium of bench.media) {
      expect(medium.extents(0, CLUSTER, 1)).toEqual([{ length: CLUSTER, hole: true, zero: true }]);
    }
  });

  it("says zero only where all copies do, and at once where they know", () => {
    const bench = new QuorumBench(2);
    void bench.medium(1).write(Buffer.from("x"), 4 * CLUSTER, NO_FUA);
    expect(planSparseRead(bench.quorum, 4 * CLUSTER, 12 * CLUSTER)).toEqual([
      { offset: 4 * CLUSTER, length: CLUSTER, zero: false },
      { offset: 5 * CLUSTER, length: 11 * CLUSTER, zero: true },
    ]);
    expect(bench.quorum.extents(0, 16 * CLUSTER, 8)).toEqual([
      { length: 4 * CLUSTER, hole: true, zero: true },
      { length: CLUSTER, hole: false, zero: false },
      { length: 11 * CLUSTER, hole: true, zero: true },
    ]);
    expect(combineExtents([[{ length: 5, hole: true, zero: true }], []], 10, 4)).toEqual([
      { length: 10, hole: false, zero: false },
    ]);
  });
});

describe("a quorum that votes (QEMU's iotests 081 and 148)", () => {
  it("reads past one corrupt copy of three, reports it, and heals it where that is asked for", async () => {
    for (const rewriteCorrupted of [false, true]) {
      const bench = new QuorumBench(3, { voteThreshold: 2, readPattern: "quorum", rewriteCorrupted });
      await bench.write("2222", 0);
      void bench.medium(1).write(Buffer.from("BBBB"), 0, NO_FUA);
      expect(await bench.read(0, 4)).toBe("2222");
      expect(bench.told).toEqual(["outvoted c1 0+4"]);
      expect(bench.medium(1).bytes.toString("latin1", 0, 4)).toBe(rewriteCorrupted ? "2222" : "BBBB");
    }
  });

  it("fails a read where two copies of three are corrupt, each in its way, or in none agree", async () => {
    const bench = new QuorumBench(3, { voteThreshold: 2, readPattern: "quorum" });
    await bench.write("2222", 0);
    void bench.medium(1).write(Buffer.from("BBBB"), 0, NO_FUA);
    void bench.medium(2).write(Buffer.from("CCCC"), 0, NO_FUA);
    await expect(bench.read(0, 4)).rejects.toMatchObject({ code: "quorum-failure" });
    expect(bench.told).toEqual(["failure read 0+4 quorum-failure"]);
  });

  it("fails a read where fewer copies than the threshold can be read, also when those agree", async () => {
    const bench = new QuorumBench(3, { voteThreshold: 2, readPattern: "quorum" });
    bench.medium(1).gate = failing;
    bench.medium(2).gate = failing;
    await expect(bench.read(0, 4)).rejects.toMatchObject({ code: "io-error" });
    expect(bench.told.at(-1)).toBe("failure read 0+4 io-error");
    const target = Buffer.alloc(4);
    await bench.quorum.readForCopies(target, 0);
  });

  it("decides no tie, whatever the threshold", () => {
    const [a, b] = [Buffer.from("a"), Buffer.from("b")];
    expect(electContent([a, b], 1)).toEqual({ kind: "failed", versions: 2 });
    expect(electContent([a, a, b, b], 2)).toEqual({ kind: "failed", versions: 2 });
    expect(electContent([a, b, a, undefined], 2)).toEqual({ kind: "elected", content: a, losers: [1] });
    expect(electContent([a, undefined], 2)).toEqual({ kind: "failed", versions: 1 });
  });

  it("does not take a write that runs beside a read for a difference", async () => {
    const bench = new QuorumBench(3, { voteThreshold: 3, readPattern: "quorum" });
    let land = (): void => undefined;
    bench.medium(2).gate = ({ kind }) =>
      kind === "write"
        ? new Promise<void>((resolve) => {
            land = resolve;
          })
        : undefined;
    const writing = bench.write("abcd", 0);
    const reading = bench.read(0, 4);
    await turn();
    land();
    await writing;
    expect(await reading).toBe("abcd");
    expect(bench.told).toEqual([]);
  });

  it("freezes guests, once for each cluster, when two copies that are compared differ, and says where", async () => {
    const bench = new QuorumBench(2, { voteThreshold: 2, blkverify: true });
    const { clusterBytes } = bench.bench.geometry;
    await bench.write("abcd", 8);
    expect(await bench.read(8, 4)).toBe("abcd");
    void bench.medium(1).write(Buffer.from("X"), 10, NO_FUA);
    const where = "copies c0 and c1 of disk vda differ at offset 10, in a read of 4 bytes at 8";
    const told = ["outvoted c1 10+2", `frozen, since ${where}`, "failure read 8+4 quorum-failure"];
    await expect(bench.read(8, 4)).rejects.toMatchObject({ code: "quorum-failure", message: where });
    expect(bench.told).toEqual(told);
    await expect(bench.read(8, 4)).rejects.toMatchObject({ message: where });
    expect(bench.told.splice(0)).toEqual([...told, told[0], told[2]]);
    void bench.medium(1).write(Buffer.from("X"), clusterBytes, NO_FUA);
    await expect(bench.read(clusterBytes, 4)).rejects.toMatchObject({ code: "quorum-failure" });
    expect(bench.told.filter((line) => line.startsWith("frozen"))).toHaveLength(1);
  });

  it("freezes guests anew at a cluster that was written as a whole, and differs again", async () => {
    const bench = new QuorumBench(2, { voteThreshold: 2, blkverify: true });
    const { clusterBytes } = bench.bench.geometry;
    for (const freezes of [1, 2]) {
      await bench.write("a".repeat(clusterBytes), 0);
      expect(await bench.read(0, 4)).toBe("aaaa");
      void bench.medium(1).write(Buffer.from("X"), 2, NO_FUA);
      await expect(bench.read(0, 4)).rejects.toMatchObject({ code: "quorum-failure" });
      expect(bench.told.filter((line) => line.startsWith("frozen"))).toHaveLength(freezes);
    }
  });
});
