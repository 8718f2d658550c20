import assert from "node:assert/strict";
import * as fc from "fast-check";
import { describe, it } from "vitest";
import type { Durability } from "../../proto/words.ts";
import { MergeWork } from "../../secondary/merge-work.ts";
import { PromotedDisk } from "../../secondary/promoted-disk.ts";
import { recoverPromotion } from "../../secondary/recover-promotion.ts";
import { StateFile } from "../../shared/journal/state-file.ts";
import { SeededRandom } from "../sim/seeded-random.ts";
import { SimRandom } from "../sim/sim-random.ts";
import { FileImages } from "../../shared/block/file-images.ts";
import type { MemoryStorage } from "../support/memory-storage.ts";
import { SilentLog } from "../support/silent-log.ts";
import { CLUSTER_BYTES, pattern, seededStorage } from "../support/overlay-bench.ts";
import { imagePath, lostSyncsOf, makeSecondary, ReplicaBench, STATE_DIRECTORY } from "../support/replica-bench.ts";
import { firstDifference, VolatileModel } from "../support/volatile-model.ts";
import { present } from "../support/present.ts";

const SIZE = 7 * CLUSTER_BYTES + 512;
const NO_FLAGS = { fua: false, mayUnmap: true } as const;

interface Range {
  readonly offset: number;
  readonly length: number;
}

type Step =
  | (Range & { readonly do: "write" | "zero" | "read"; readonly fua: boolean; readonly besideMerge: boolean })
  | { readonly do: "merge" | "flush" | "crash" | "power" };

const range: fc.Arbitrary<Range> = fc
  .record({
    unit: fc.constantFrom(1, 512, CLUSTER_BYTES),
    at: fc.nat({ max: SIZE - 1 }),
    count: fc.integer({ min: 1, max: 10 }),
  })
  .map(({ unit, at, count }) => {
    const offset = Math.floor(at / unit) * unit;
    return { offset, length: Math.min(SIZE - offset, count * unit) };
  });

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc
      .record({
        do: fc.constantFrom("write" as const, "write" as const, "zero" as const, "read" as const),
        range,
        fua: fc.boolean(),
        besideMerge: fc.boolean(),
      })
      .map(({ range: { offset, length }, ...rest }) => ({ ...rest, offset, length })),
  },
  { weight: 3, arbitrary: fc.record({ do: fc.constantFrom("merge" as const, "flush" as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constantFrom("crash" as const, "power" as const) }) },
);

interface Start {
  /** Ranges that the old primary overwrote after its last checkpoint. */
  readonly uncommitted: readonly Range[];
  /** Mode `mc`: ranges that were committed last, and are not in the base yet; undefined: mode `colo`. */
  readonly buffered: readonly Range[] | undefined;
  /** Ranges that the secondary VM wrote above the checkpoint. */
  readonly own: readonly Range[];
}

const ranges = fc.array(range, { maxLength: 4 });
const starts: Readonly<Record<"colo" | "mc", fc.Arbitrary<Start>>> = {
  colo: fc.record({ uncommitted: ranges, own: ranges, buffered: fc.constant(undefined) }),
  mc: fc.record({ uncommitted: ranges, own: ranges, buffered: ranges }),
};

/** A promoted disk, as its agent keeps it through crashes. */
class Life {
  readonly #storage: MemoryStorage;
  readonly #seed: number;
  readonly #model: VolatileModel;
  #state: StateFile;
  #disk: PromotedDisk;
  #boots = 1;
  #steps = 0;

  private constructor(storage: MemoryStorage, seed: number, state: StateFile, disk: PromotedDisk, view: Buffer) {
    this.#storage = storage;
    this.#seed = seed;
    this.#state = state;
    this.#disk = disk;
    this.#model = new VolatileModel(view);
  }

  static async promote(seed: number, durability: Durability, { uncommitted, own, buffered }: Start): Promise<Life> {
    const storage = seededStorage(seed, 0.2);
    await makeSecondary(storage, [{ name: "vda", content: Buffer.alloc(SIZE) }], durability, {
      mode: buffered === undefined ? "colo" : "mc",
    });
    const bench = ReplicaBench.open(storage);
    await bench.begin(1);
    const view = pattern(SIZE, seed);
    view.fill(0, CLUSTER_BYTES, 2 * CLUSTER_BYTES);
    bench.push([{ kind: "write", disk: 0, offset: 0, length: SIZE, payload: Buffer.from(view) }]);
    await bench.barrier(1);
    await bench.commit(1);
    const { epochs } = present(bench.disks[0]);
    await epochs.end();
    for (const { offset, length } of buffered ?? []) {
      const payload = pattern(length, seed + 3);
      payload.copy(view, offset);
      bench.push([{ kind: "write", disk: 0, offset, length, payload }]);
    }
    await bench.barrier(2);
    await bench.commit(2);
    for (const { offset, length } of uncommitted) {
      bench.push([{ kind: "write", disk: 0, offset, length, payload: pattern(length, seed + 1) }]);
    }
    await bench.drained();
    const [disk] = bench.disks;
    if (disk === undefined) throw new Error("there is a disk");
    for (const { offset, length } of own) {
      const bytes = pattern(length, seed + 2);
      bytes.copy(view, offset);
      await disk.view.write(bytes, offset, NO_FLAGS);
    }
    await disk.view.flush();
    await bench.writer.stop();
    await bench.state.update((record) => ({
      ...record,
      role: "Primary",
      prepared: [],
      merge: { epoch: 2, activeEpoch: 2 },
    }));
    epochs.dropUncommitted(false);
    await bench.checkpoints.settled();
    const promoted = new PromotedDisk(disk.context, disk.stack, bench.gate, 2);
    // Under `process` nothing of the secondary's is sure to survive a loss of power before its guest has flushed.
    if (durability === "process") await promoted.flush();
    return new Life(storage, seed, bench.state, promoted, view);
  }

  async run(action: Step): Promise<void> {
    this.#steps += 1;
    switch (action.do) {
      case "write":
      case "zero":
      case "read":
        await this.#request(action);
        break;
      case "merge":
        await this.#disk.mergeNext();
        break;
      case "flush":
        await this.#disk.flush();
        this.#model.flushed();
        break;
      case "crash":
        await this.#restart("process");
        break;
      case "power":
        await this.#restart("power");
        break;
    }
    await this.check();
  }

  async check(): Promise<void> {
    const found = Buffer.alloc(SIZE);
    await this.#disk.read(found, 0);
    assert.equal(firstDifference(found, this.#model.content), undefined);
  }

  /** Merges what is left: the raw image is then the disk, and the overlays are gone. */
  async end(): Promise<void> {
    const work = new MergeWork({
      disks: [this.#disk],
      state: this.#state,
      log: new SilentLog(),
      speed: 0,
      merged: () => undefined,
    });
    while ((await work.step()) !== undefined) await this.check();
    await this.check();
    assert.equal(this.#state.record.merge, null);
    assert.deepEqual(this.#storage.list(`${STATE_DIRECTORY}/disks/vda`), []);
    const bytes = pattern(100, 5);
    await this.#disk.write(bytes, 50, NO_FLAGS);
    this.#model.change(bytes, 50);
    this.#disk.close();
    assert.equal(firstDifference(this.#storage.disk.readFile(imagePath("vda")), this.#model.content), undefined);
  }

  async #request({ do: what, offset, length, fua, besideMerge }: Extract<Step, Range>): Promise<void> {
    const merging = besideMerge ? this.#disk.mergeNext() : undefined;
    if (what === "read") {
      const found = Buffer.alloc(length);
      await this.#disk.read(found, offset);
      assert.equal(firstDifference(found, this.#model.content.subarray(offset, offset + length)), undefined);
    } else {
      const bytes = what === "write" ? pattern(length, this.#seed + 10 * this.#steps) : Buffer.alloc(length);
      this.#model.change(bytes, offset);
      await (what === "write"
        ? this.#disk.write(bytes, offset, { fua })
        : this.#disk.zero(offset, length, { fua, mayUnmap: true }));
      // What force-unit-access flushes beyond its own range the model need not know: it only allows more.
      if (fua) this.#model.flushed();
    }
    await merging;
  }

  async #restart(kind: "process" | "power"): Promise<void> {
    this.#storage.crash(kind);
    if (kind === "power") this.#boots += 1;
    const state = present(StateFile.open(this.#storage, STATE_DIRECTORY));
    const bootId = `boot-${this.#boots}`;
    const random = new SimRandom(new SeededRandom(this.#seed + this.#steps));
    const { disks } = recoverPromotion({
      storage: this.#storage,
      images: new FileImages(this.#storage),
      random,
      stateDirectory: STATE_DIRECTORY,
      record: state.record,
      bootId,
      lostSyncs: lostSyncsOf(state),
    });
    await state.update((record) => ({ ...record, bootId }));
    this.#state = state;
    this.#disk = present(disks[0]?.disk);
    const found = Buffer.alloc(SIZE);
    await this.#disk.read(found, 0);
    if (kind === "power") this.#model.lostPower(found);
  }
}

const cases = (["colo", "mc"] as const).flatMap((mode) =>
  (["process", "power"] as const satisfies readonly Durability[]).map((durability) => ({ mode, durability })),
);

describe.each(cases)("a promoted disk in mode $mode, with durability $durability", ({ mode, durability }) => {
  it("is what its guest wrote, through the merge and crashes", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.nat({ max: 1 << 30 }),
        starts[mode],
        fc.array(step, { maxLength: 40, size: "max" }),
        async (seed, from, steps) => {
          const life = await Life.promote(seed, durability, from);
          await life.check();
          for (const action of steps) await life.run(action);
          await life.end();
        },
      ),
      { numRuns: 150 },
    );
  });
});
