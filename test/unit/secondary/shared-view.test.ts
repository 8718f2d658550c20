import { describe, expect, it } from "vitest";
import type { DiskImage } from "../../../shared/block/disk-image.ts";
import type { Operation } from "../../../proto/replication-messages.ts";
import { CLUSTER_BYTES, seededStorage } from "../../support/overlay-bench.ts";
import { makeSecondary, ReplicaBench } from "../../support/replica-bench.ts";

const SIZE = 4 * CLUSTER_BYTES;
const OLD = Buffer.alloc(SIZE, 1);
const NEW = Buffer.alloc(CLUSTER_BYTES, 2);

/** A disk that another host writes: a read takes what is there when the test says so, and is answered when it says so. */
class ForeignDisk implements DiskImage {
  readonly sizeBytes = SIZE;
  readonly hasLostWrites = false;
  readonly content = Buffer.from(OLD);
  /** Told that what is known of it does not hold any more. */
  invalidated = 0;
  readonly #reads: {
    readonly target: Uint8Array;
    readonly offset: number;
    readonly resolve: () => void;
    readonly reject: (reason: Error) => void;
  }[] = [];

  read(target: Uint8Array, offset: number): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#reads.push({ target, offset, resolve, reject });
    });
  }

  /** The device looks: reads under way get what is there now. */
  take(): void {
    for (const { target, offset } of this.#reads) target.set(this.content.subarray(offset, offset + target.length));
  }

  answer(): void {
    for (const { resolve } of this.#reads.splice(0)) resolve();
  }

  invalidate(): void {
    this.invalidated += 1;
  }

  /** Reads under way fail, as those of a format whose content has moved. */
  fail(): void {
    for (const { reject } of this.#reads.splice(0)) reject(new Error("this is no content"));
  }

  write(): never {
    throw new Error("the secondary writes to the shared disk");
  }

  zero(): never {
    throw new Error("the secondary writes to the shared disk");
  }

  flush(): Promise<void> {
    return Promise.resolve();
  }

  syncOwn(): Promise<void> {
    return Promise.resolve();
  }

  rewritten(): void {
    // It is never written to.
  }

  extents(_offset: number, length: number): { length: number; hole: boolean; zero: boolean }[] {
    return [{ length, hole: false, zero: false }];
  }

  prefetch(): void {
    // There is no cache.
  }

  changeMark(): string {
    return "";
  }

  close(): void {
    // Nothing is open.
  }
}

/** What happens to one cluster, each in its own order: the primary's side, and a reader's. */
const PRIMARY = ["save", "overwrite"] as const;
const READER = ["ask", "take", "answer"] as const;
type Step = (typeof PRIMARY)[number] | (typeof READER)[number];

/** Every way in which the two can come between each other. */
function interleavings(one: readonly Step[], other: readonly Step[]): Step[][] {
  if (one.length === 0) return [[...other]];
  if (other.length === 0) return [[...one]];
  const [first, ...rest] = one;
  const [otherFirst, ...otherRest] = other;
  return [
    ...interleavings(rest, other).map((steps) => [first as Step, ...steps]),
    ...interleavings(one, otherRest).map((steps) => [otherFirst as Step, ...steps]),
  ];
}

const ORIGINAL: Operation = {
  kind: "original",
  disk: 0,
  offset: CLUSTER_BYTES,
  length: CLUSTER_BYTES,
  payload: OLD.subarray(CLUSTER_BYTES, 2 * CLUSTER_BYTES),
};

/** A secondary of a shared disk with its first checkpoint. */
async function committed(): Promise<{ bench: ReplicaBench; foreign: ForeignDisk }> {
  const storage = seededStorage(1);
  await makeSecondary(storage, [{ name: "vda", content: OLD }], "process", { mode: "shared" });
  const bench = ReplicaBench.open(storage);
  const foreign = new ForeignDisk();
  bench.disks[0]?.replaceBase(foreign);
  await bench.begin(1);
  await bench.barrier(1);
  await bench.commit(1);
  return { bench, foreign };
}

describe("a reader of the secondary, while the primary overwrites the shared disk", () => {
  it.each(interleavings(PRIMARY, READER).map((steps) => [steps.join(", "), steps] as const))(
    "sees the checkpoint: %s",
    async (_, steps) => {
      const { bench, foreign } = await committed();
      const target = Buffer.alloc(2 * CLUSTER_BYTES);
      let reading: Promise<void> | undefined;
      for (const step of steps) {
        if (step === "save") {
          bench.push([ORIGINAL]);
          await expect.poll(() => bench.stable).toBe(1);
        } else if (step === "overwrite") NEW.copy(foreign.content, CLUSTER_BYTES);
        else if (step === "ask") reading = bench.disks[0]?.view.read(target, 0);
        else if (step === "take") foreign.take();
        else foreign.answer();
      }
      // What is asked for a second time is answered with what is there by now.
      const done = { yes: false };
      void reading?.then(() => (done.yes = true));
      await expect
        .poll(() => {
          foreign.take();
          foreign.answer();
          return done.yes || reading === undefined;
        })
        .toBe(true);
      expect(target).toEqual(OLD.subarray(0, 2 * CLUSTER_BYTES));
    },
  );

  it("has the original where the disk holds nothing readable any more, and the error where it always did", async () => {
    const { bench, foreign } = await committed();
    const target = Buffer.alloc(CLUSTER_BYTES);
    const reading = bench.disks[0]?.view.read(target, CLUSTER_BYTES);
    bench.push([ORIGINAL]);
    await expect.poll(() => bench.stable).toBe(1);
    foreign.fail();
    await reading;
    expect(target).toEqual(OLD.subarray(0, CLUSTER_BYTES));
    const other = bench.disks[0]?.view.read(target, 0);
    foreign.fail();
    await expect(other).rejects.toThrow("no content");
  });

  it("has what was known of the disk forgotten with each checkpoint, and not before", async () => {
    const { bench, foreign } = await committed();
    expect(foreign.invalidated).toBe(1);
    await bench.barrier(2);
    expect(foreign.invalidated).toBe(1);
    await bench.commit(2);
    expect(foreign.invalidated).toBe(2);
  });
});
