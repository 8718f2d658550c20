import assert from "node:assert/strict";
import type { ColobusError, ErrorCode } from "../../proto/errors.ts";
import type { BlockDevice } from "../../shared/block/block-device.ts";
import { ModelWrite, type DiskModel } from "./disk-model.ts";
import { drawRange } from "./life-guest.ts";
import type { OperationKind } from "./life-plan.ts";
import type { LifeScene } from "./life-scene.ts";
import type { PairDisk } from "./pair.ts";
import type { SeededRandom } from "./seeded-random.ts";

/** Errors that the secondary's VM may meet while the file system of its overlays is full. */
const FULL_CODES: readonly ErrorCode[] = ["out-of-space", "overlay-full"];
/** A request waits for a commit that is being recorded, and for slow devices. */
const LIMIT_MS = 10_000;

export type ReaderOperation = Extract<
  OperationKind,
  "view-read" | "view-read-all" | "view-write" | "view-zero" | "view-flush" | "kept-read"
>;

/**
 * Reads the secondary's committed view and, where the export is writable, writes to it as a lock-step VM does.
 *
 * A request that is under way holds a commit up, and one that waits for a commit goes on against the new view. So the
 * view that a request saw is the one that is committed at the moment at which it ends.
 */
export class LifeReader {
  readonly #scene: LifeScene;
  readonly #random: SeededRandom;
  /** The view was read back after the last start. */
  #recovered = false;

  constructor(scene: LifeScene, random: SeededRandom) {
    this.#scene = scene;
    this.#random = random;
  }

  get isRunning(): boolean {
    const { agent, host } = this.#scene.pair.secondary;
    const { process } = host;
    return this.#recovered && agent?.role === "Secondary" && !process.frozen && !this.#scene.paused.has(process);
  }

  do(kind: ReaderOperation): void {
    switch (kind) {
      case "view-read":
        return this.#readSome();
      case "view-read-all":
        return void this.readAll();
      case "view-write":
        return this.#write();
      case "view-zero":
        return this.#zero();
      case "view-flush":
        return this.#flush();
      case "kept-read":
        return void this.#readKept();
    }
  }

  /** Opens a checkpoint, reads it now and after a while, and leaves: it must stay what it was over all commits. */
  async #readKept(): Promise<void> {
    const { model, pair, plan } = this.#scene;
    const { agent, host } = pair.secondary;
    const { process } = host;
    const epochs = pair.secondary.status?.epoch;
    if (agent === undefined || epochs === undefined || epochs.committed === 0) return;
    const disk = this.#random.pick(plan.pair.disks);
    const which = this.#random.pick(["committed", ...epochs.retained]);
    const epoch = typeof which === "number" ? which : epochs.committed;
    const opened = agent.exports.find(`${disk.name}@${which}`);
    assert(opened !== undefined, `${disk.name}@${which} is not exported`);
    agent.exports.opened(opened);
    const expected = model.contentAt(epoch)[plan.pair.disks.indexOf(disk)];
    for (let round = 0; round < 3; round += 1) {
      const { offset, length } = drawRange(this.#random, disk.sizeBytes, disk.sizeBytes);
      const target = Buffer.alloc(length);
      const legal = this.#scene.voidCodes;
      this.#scene.world.note(`${opened.name} is read at [${offset}, +${length})`);
      await this.#scene.calls.make(
        pair.secondary,
        "kept-read",
        LIMIT_MS,
        () => opened.device.read(target, offset),
        (outcome) => {
          if (outcome.kind === "failed") this.#assertLegal(outcome.error, [...legal, "checkpoint-dropped"]);
          if (outcome.kind !== "done") return;
          assert(
            expected?.subarray(offset, offset + length).equals(target),
            `${opened.name} is not checkpoint ${epoch}`,
          );
        },
      );
      await this.#scene.world.sleep(this.#random.pick([0, 50, 1_000]));
      if (!process.alive || this.#scene.paused.has(process)) break;
    }
    if (process.alive) agent.exports.closed(opened);
  }

  #readSome(): void {
    const disk = this.#random.pick(this.#scene.plan.pair.disks);
    const { offset, length } = drawRange(this.#random, disk.sizeBytes, disk.sizeBytes);
    void this.#read(disk, offset, length);
  }

  /** Reads and checks every disk; resolves with whether all were read to the end. */
  async readAll(): Promise<boolean> {
    for (const disk of this.#scene.plan.pair.disks) {
      if ((await this.#read(disk, 0, disk.sizeBytes)) === undefined) return false;
    }
    return true;
  }

  #write(): void {
    const disk = this.#random.pick(this.#scene.plan.pair.disks);
    const { offset, length } = drawRange(this.#random, disk.sizeBytes, this.#scene.plan.writeMaxBytes);
    const data = this.#scene.bytes(this.#random, length);
    this.#change(disk, new ModelWrite(offset, length, data), (device, fua) => device.write(data, offset, { fua }));
  }

  #zero(): void {
    const disk = this.#random.pick(this.#scene.plan.pair.disks);
    const { offset, length } = drawRange(this.#random, disk.sizeBytes, 2 * this.#scene.plan.writeMaxBytes);
    this.#change(disk, new ModelWrite(offset, length, undefined), (device, fua) =>
      device.zero(offset, length, { fua, mayUnmap: true }),
    );
  }

  #flush(): void {
    const disk = this.#random.pick(this.#scene.plan.pair.disks);
    const device = this.#scene.pair.secondary.device(disk);
    const covered = this.#modelOf(disk)?.beginFlush();
    if (device === undefined || covered === undefined) return;
    this.#scene.world.note(`the secondary's VM flushes ${disk.name}`);
    void this.#scene.calls.make(
      this.#scene.pair.secondary,
      "view-flush",
      LIMIT_MS,
      () => device.flush(),
      (outcome) => {
        if (outcome.kind === "lost") return;
        if (!this.#scene.observeCommitted()) return;
        if (outcome.kind === "done") this.#modelOf(disk)?.flushed(covered);
        else this.#assertLegal(outcome.error);
      },
    );
  }

  /** The secondary has started again: the view must be there at once, on all disks. False when it died meanwhile. */
  async recover(): Promise<boolean> {
    const { secondary } = this.#scene.pair;
    this.#recovered = false;
    const { process } = secondary.host;
    const { access } = this.#scene.plan.pair;
    const { status } = secondary;
    if (status === undefined) return false;
    this.#scene.model.observeSecondary(status.epoch);
    if (access !== "off" && this.#scene.model.committed > 0) {
      for (const disk of this.#scene.plan.pair.disks) {
        const model = this.#modelOf(disk);
        const content = await this.#read(disk, 0, disk.sizeBytes);
        if (content === undefined) return false;
        // With a commit meanwhile it is another model, which is not in doubt.
        if (model !== undefined && model === this.#modelOf(disk)) model.adopt(content);
      }
    }
    if (!process.alive) return false;
    this.#recovered = true;
    return true;
  }

  died(): void {
    this.#recovered = false;
  }

  #assertLegal({ code, message }: ColobusError, also: readonly ErrorCode[] = []): void {
    const legal = [...FULL_CODES, ...also, ...this.#scene.deviceCodes, ...this.#scene.voidCodes];
    assert(legal.includes(code), `${code}: ${message}`);
  }

  #modelOf(disk: PairDisk): DiskModel | undefined {
    return this.#scene.model.view[this.#scene.plan.pair.disks.indexOf(disk)];
  }

  /** Resolves with what was read and checked, or undefined when nothing was. */
  async #read(disk: PairDisk, offset: number, length: number): Promise<Buffer | undefined> {
    const { secondary } = this.#scene.pair;
    const device = secondary.device(disk);
    if (device === undefined || this.#scene.paused.has(secondary.host.process)) return undefined;
    const target = Buffer.alloc(length);
    // A view that nobody has looked at yet is one already: what is written to it during this read must excuse the read.
    this.#scene.observeCommitted();
    const reading = this.#modelOf(disk)?.beginRead();
    const legal = this.#scene.voidCodes;
    let seen = false;
    this.#scene.world.note(`view of ${disk.name} is read at [${offset}, +${length})`);
    await this.#scene.calls.make(
      secondary,
      "view-read",
      LIMIT_MS,
      () => device.read(target, offset),
      (outcome) => {
        if (outcome.kind === "lost") return;
        const before = this.#modelOf(disk);
        if (!this.#scene.observeCommitted()) return;
        const now = this.#modelOf(disk);
        if (outcome.kind === "failed") {
          if ([...this.#scene.deviceCodes, ...legal, ...this.#scene.voidCodes].includes(outcome.error.code)) return;
          assert.equal(outcome.error.code, "no-checkpoint", outcome.error.message);
          assert(before === undefined || now === undefined, "the view is refused, though there is a checkpoint");
          return;
        }
        assert(now !== undefined, "a view is served before the first checkpoint");
        now.check(target, offset, `the view of ${disk.name} at epoch ${this.#scene.model.committed}`, reading);
        seen = true;
      },
    );
    if (reading !== undefined) this.#modelOf(disk)?.endRead(reading);
    return seen ? target : undefined;
  }

  #change(disk: PairDisk, write: ModelWrite, call: (device: BlockDevice, fua: boolean) => void | Promise<void>): void {
    const { secondary } = this.#scene.pair;
    const device = secondary.device(disk);
    const model = this.#modelOf(disk);
    if (device === undefined || model === undefined) return;
    const fua = this.#random.chance(0.1);
    const covered = model.beginFlush();
    const legal = this.#scene.voidCodes;
    model.begin(write);
    this.#scene.world.note(
      `the secondary's VM ${write.data === undefined ? "zeroes" : "writes"} ${disk.name} [${write.offset}, +${write.length})`,
    );
    void this.#scene.calls.make(
      secondary,
      "view-write",
      LIMIT_MS,
      () => call(device, fua),
      (outcome) => {
        if (outcome.kind === "lost") return;
        if (!this.#scene.observeCommitted()) return;
        if (outcome.kind === "done") {
          write.settled = true;
          if (fua) this.#modelOf(disk)?.flushed(new Set([...covered, write]));
        } else this.#assertLegal(outcome.error, legal);
      },
    );
  }
}
