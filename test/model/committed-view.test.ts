import assert from "node:assert/strict";
import * as fc from "fast-check";
import { describe, it } from "vitest";
import { PREPARED_EPOCHS_MAX } from "../../proto/limits.ts";
import type { Operation } from "../../proto/replication-messages.ts";
import type { Durability } from "../../proto/words.ts";
import { CLUSTER_BYTES, pattern, seededStorage } from "../support/overlay-bench.ts";
import { makeSecondary, ReplicaBench } from "../support/replica-bench.ts";
import { firstDifference } from "../support/volatile-model.ts";
import { present } from "../support/present.ts";

const SIZES = [6 * CLUSTER_BYTES + 512, 3 * CLUSTER_BYTES] as const;
const NO_FLAGS = { fua: false, mayUnmap: true } as const;

interface Change {
  readonly kind: Operation["kind"];
  readonly disk: number;
  readonly offset: number;
  readonly length: number;
}

type Step =
  | { readonly do: "send"; readonly changes: readonly Change[] }
  | { readonly do: "barrier" | "reconnect" }
  | { readonly do: "commit"; readonly pick: number }
  | { readonly do: "discard"; readonly picks: readonly number[] }
  | { readonly do: "read"; readonly disk: number; readonly offset: number; readonly length: number }
  | { readonly do: "write-view"; readonly change: Change }
  | { readonly do: "restart"; readonly kind: "process" | "power" };

const change: fc.Arbitrary<Change> = fc
  .record({
    kind: fc.constantFrom("write" as const, "write" as const, "write" as const, "discard" as const, "zero" as const),
    disk: fc.constantFrom(0, 1),
    unit: fc.constantFrom(1, 512, CLUSTER_BYTES),
    at: fc.nat({ max: SIZES[0] }),
    count: fc.integer({ min: 1, max: 12 }),
  })
  .map(({ kind, disk, unit, at, count }) => {
    const size = SIZES[disk] ?? 0;
    const offset = Math.floor((at % size) / unit) * unit;
    return { kind, disk, offset, length: Math.min(size - offset, count * unit) };
  });

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant("send" as const),
      changes: fc.array(change, { minLength: 1, maxLength: 4 }),
    }),
  },
  { weight: 4, arbitrary: fc.record({ do: fc.constant("barrier" as const) }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant("commit" as const), pick: fc.nat() }) },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant("discard" as const),
      picks: fc.array(fc.nat(), { minLength: 1, maxLength: 3 }),
    }),
  },
  { weight: 3, arbitrary: change.map(({ disk, offset, length }) => ({ do: "read" as const, disk, offset, length })) },
  { weight: 2, arbitrary: change.map((made) => ({ do: "write-view" as const, change: made })) },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant("restart" as const),
      kind: fc.constantFrom("process" as const, "power" as const),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("reconnect" as const) }) },
);

/** Keeps a full copy of the disks for every checkpoint. */
class Model {
  current = SIZES.map((size, disk) => pattern(size, 100 + disk));
  committed: readonly Buffer[] = this.current;
  /** The committed copy with the secondary VM's own writes since. */
  view = this.current.map((disk) => Buffer.from(disk));
  prepared = new Map<number, readonly Buffer[]>();
  /** Bytes of the view that a loss of power may take back. */
  unflushed = SIZES.map((size) => Buffer.alloc(size));

  barrier(epoch: number): void {
    this.prepared.set(
      epoch,
      this.current.map((disk) => Buffer.from(disk)),
    );
  }

  commit(epoch: number): void {
    this.committed = present(this.prepared.get(epoch));
    this.view = this.committed.map((disk) => Buffer.from(disk));
    for (const marks of this.unflushed) marks.fill(0);
    for (const older of this.prepared.keys()) if (older <= epoch) this.prepared.delete(older);
  }
}

class Life {
  readonly #seed: number;
  readonly #durability: Durability;
  readonly #model = new Model();
  #bench: ReplicaBench;
  #epoch = 1;
  #steps = 0;

  private constructor(seed: number, durability: Durability, bench: ReplicaBench) {
    this.#seed = seed;
    this.#durability = durability;
    this.#bench = bench;
  }

  static async begin(seed: number, durability: Durability, mode: "colo" | "mc"): Promise<Life> {
    const storage = seededStorage(seed, 0.2);
    const disks = SIZES.map((size, index) => ({ name: `vd${index}`, content: Buffer.alloc(size) }));
    await makeSecondary(storage, disks, durability, { mode });
    const life = new Life(seed, durability, ReplicaBench.open(storage));
    await life.#startSession();
    await life.#barrier();
    await life.#bench.commit(1);
    life.#model.commit(1);
    await life.check();
    return life;
  }

  async run(action: Step): Promise<void> {
    this.#steps += 1;
    switch (action.do) {
      case "send":
        this.#send(action.changes);
        break;
      case "barrier":
        if (this.#model.prepared.size < PREPARED_EPOCHS_MAX) await this.#barrier();
        break;
      case "commit":
        await this.#commit(action.pick);
        break;
      case "discard":
        await this.#discard(action.picks);
        break;
      case "read":
        await this.#read(action.disk, action.offset, action.length);
        return;
      case "write-view":
        await this.#writeView(action.change);
        break;
      case "restart":
        await this.#restart(action.kind === "power" && this.#durability === "power" ? "power" : "process");
        break;
      case "reconnect":
        await this.#bench.drained();
        this.#epoch += 2;
        await this.#startSession();
        break;
    }
    await this.check();
  }

  /** The view is the committed copy, byte for byte, while the stream goes on. */
  async check(): Promise<void> {
    for (const disk of SIZES.keys()) {
      const expected = this.#model.view[disk] ?? Buffer.alloc(0);
      assert.equal(firstDifference(await this.#bench.readView(disk), expected), undefined);
    }
    assert.equal(this.#bench.failure, undefined);
    assert.deepEqual([...this.#bench.checkpoints.prepared], [...this.#model.prepared.keys()]);
  }

  /** At the end of everything: what the stream has brought is in the bases, and nothing is left over after a commit. */
  async end(): Promise<void> {
    await this.#barrier();
    await this.#bench.commit(this.#epoch - 1);
    this.#model.commit(this.#epoch - 1);
    await this.check();
    await this.#bench.checkpoints.settled();
    await this.#bench.applied();
    for (const [index, disk] of this.#bench.disks.entries()) {
      const base = Buffer.alloc(SIZES[index] ?? 0);
      await disk.base.read(base, 0);
      assert.equal(firstDifference(base, this.#model.current[index] ?? Buffer.alloc(0)), undefined);
      assert.deepEqual([disk.epochs.isEmpty, disk.active.isEmpty], [true, true]);
    }
  }

  /** A session: the primary sends everything, as a full sync would, and from then on its writes. */
  async #startSession(): Promise<void> {
    await this.#bench.begin(this.#epoch);
    this.#bench.writer.compare({ comparing: true, rewriting: false });
    for (const [disk, content] of this.#model.current.entries()) {
      for (let offset = 0; offset < content.length; offset += 2 * CLUSTER_BYTES) {
        const payload = content.subarray(offset, offset + 2 * CLUSTER_BYTES);
        this.#bench.push([{ kind: "write", disk, offset, length: payload.length, payload }]);
      }
    }
    this.#bench.writer.enqueue(() => {
      this.#bench.writer.compare({ comparing: false, rewriting: false });
      return Promise.resolve();
    });
  }

  #send(changes: readonly Change[]): void {
    this.#bench.push(
      changes.map(({ kind, disk, offset, length }, index) => {
        const payload = kind === "write" ? pattern(length, this.#seed + this.#steps * 10 + index) : Buffer.alloc(0);
        const current = this.#model.current[disk] ?? Buffer.alloc(0);
        if (kind === "write") payload.copy(current, offset);
        else current.fill(0, offset, offset + length);
        return { kind, disk, offset, length, payload };
      }),
    );
  }

  async #barrier(): Promise<void> {
    await this.#bench.barrier(this.#epoch);
    this.#model.barrier(this.#epoch);
    this.#epoch += 1;
  }

  async #commit(pick: number): Promise<void> {
    const prepared = [...this.#model.prepared.keys()];
    const epoch = prepared[pick % Math.max(1, prepared.length)];
    if (epoch === undefined) {
      await assert.rejects(this.#bench.commit(this.#epoch), { code: "epoch-unknown" });
      return;
    }
    await this.#bench.commit(epoch);
    this.#model.commit(epoch);
    await this.#bench.commit(epoch); // a lost answer: it is asked again
  }

  async #discard(picks: readonly number[]): Promise<void> {
    const prepared = [...this.#model.prepared.keys()];
    const epochs = [...new Set(picks.map((pick) => prepared[pick % Math.max(1, prepared.length)]))];
    const known = epochs.filter((epoch) => epoch !== undefined).sort((left, right) => left - right);
    assert.deepEqual(await this.#bench.checkpoints.discard(known), known);
    for (const epoch of known) this.#model.prepared.delete(epoch);
  }

  async #read(disk: number, offset: number, length: number): Promise<void> {
    const expected = (this.#model.view[disk] ?? Buffer.alloc(0)).subarray(offset, offset + length);
    assert.equal(firstDifference(await this.#bench.readView(disk, offset, length), expected), undefined);
  }

  async #writeView({ kind, disk, offset, length }: Change): Promise<void> {
    const { view } = present(this.#bench.disks[disk]);
    const expected = this.#model.view[disk] ?? Buffer.alloc(0);
    if (kind === "write") {
      const bytes = pattern(length, this.#steps);
      bytes.copy(expected, offset);
      await view.write(bytes, offset, NO_FLAGS);
    } else {
      expected.fill(0, offset, offset + length);
      await view.zero(offset, length, NO_FLAGS);
    }
    this.#model.unflushed[disk]?.fill(1, offset, offset + length);
    if (this.#steps % 2 === 0) {
      await view.flush();
      this.#model.unflushed[disk]?.fill(0);
    }
  }

  async #restart(kind: "process" | "power"): Promise<void> {
    if (this.#steps % 2 === 0) await this.#bench.drained();
    this.#bench = await this.#bench.restart(kind);
    if (kind === "power") await this.#forgetUnflushed();
    await this.check(); // before any session
    this.#epoch += 3;
    await this.#startSession();
  }

  /** The secondary VM's writes that were not flushed may be gone: what is left is believed for those bytes alone. */
  async #forgetUnflushed(): Promise<void> {
    for (const [disk, marks] of this.#model.unflushed.entries()) {
      const found = await this.#bench.readView(disk);
      for (const [index, isUnflushed] of marks.entries()) {
        const view = this.#model.view[disk];
        if (isUnflushed === 1 && view !== undefined) view[index] = found[index] ?? 0;
      }
      marks.fill(0);
    }
  }
}

const cases = (["colo", "mc"] as const).flatMap((mode) =>
  (["process", "power"] as const satisfies readonly Durability[]).map((durability) => ({ mode, durability })),
);

describe.each(cases)("the committed view in mode $mode, with durability $durability", ({ mode, durability }) => {
  it("is the committed checkpoint, whatever the stream, the operator and crashes do", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.nat({ max: 1 << 30 }),
        fc.array(step, { maxLength: 40, size: "max" }),
        async (seed, steps) => {
          const life = await Life.begin(seed, durability, mode);
          for (const action of steps) await life.run(action);
          await life.end();
        },
      ),
      { numRuns: 150 },
    );
  });
});
