import assert from "node:assert/strict";
import type { BlockDevice, OpenWrite } from "../../shared/block/block-device.ts";
import { ModelWrite, type DiskModel } from "./disk-model.ts";
import type { OperationKind } from "./life-plan.ts";
import type { LifeScene } from "./life-scene.ts";
import { imagePath, type PairDisk, type PairMember } from "./pair.ts";
import type { SeededRandom } from "./seeded-random.ts";

export type GuestOperation = Extract<OperationKind, "write" | "open-write" | "rewrite" | "zero" | "flush" | "read">;

/** The VM on the primary, and after a failover on the promoted side: it writes, flushes, and checks what it reads. */
export class LifeGuest {
  readonly #scene: LifeScene;
  readonly #random: SeededRandom;
  readonly #limitMs: number;
  /** The agent whose exports the VM uses. */
  member: PairMember;

  constructor(scene: LifeScene, random: SeededRandom) {
    this.#scene = scene;
    this.#random = random;
    this.member = scene.pair.primary;
    // A peer that hangs may hold the guest up until it is given up.
    this.#limitMs = 2 * scene.plan.pair.peerTimeoutMs + 3_000;
  }

  get isRunning(): boolean {
    const { process } = this.member.host;
    return this.member.agent !== undefined && !process.frozen && !this.#scene.paused.has(process);
  }

  /** Waits until fewer writes are under way than the plan allows. */
  async untilRoom(): Promise<void> {
    while (this.#scene.calls.count("write") >= this.#scene.plan.depth) await this.#scene.calls.untilNext();
  }

  do(kind: GuestOperation): void {
    switch (kind) {
      case "write":
        return this.#writeNew();
      case "open-write":
        return this.#writeInPieces();
      case "rewrite":
        return this.#writeSame();
      case "zero":
        return this.#zero();
      case "flush":
        return this.#flush();
      case "read":
        return this.#readSome();
    }
  }

  #writeNew(): void {
    const { disk, model, device } = this.#pickDisk();
    const { offset, length } = this.#range(disk, this.#scene.plan.writeMaxBytes);
    const data = this.#scene.bytes(this.#random, length);
    this.#write(disk, model, device, new ModelWrite(offset, length, data), data);
  }

  /** Writes what is there already. */
  #writeSame(): void {
    const { disk, model, device } = this.#pickDisk();
    const { offset, length } = this.#range(disk, this.#scene.plan.writeMaxBytes);
    const data = model.content(offset, length);
    this.#write(disk, model, device, new ModelWrite(offset, length, data), data);
  }

  #zero(): void {
    const { disk, model, device } = this.#pickDisk();
    const { offset, length } = this.#random.chance(0.05)
      ? { offset: 0, length: disk.sizeBytes }
      : this.#range(disk, 2 * this.#scene.plan.writeMaxBytes);
    const mayUnmap = this.#random.chance(0.6);
    const fua = this.#random.chance(0.1);
    const write = new ModelWrite(offset, length, undefined);
    const covered = model.beginFlush();
    model.begin(write);
    void this.#call(
      `zeroes ${disk.name} [${offset}, +${length})`,
      "write",
      () => device.zero(offset, length, { fua, mayUnmap }),
      () => {
        write.settled = true;
        this.#acknowledged(model, write);
        if (fua) model.flushed(new Set([...covered, write]));
      },
    );
  }

  #acknowledged(model: DiskModel, write: ModelWrite): void {
    this.#scene.acknowledged(this.#scene.model.guest.indexOf(model), write, this.member);
  }

  /** A write whose payload comes in pieces, and sometimes not to its end. */
  #writeInPieces(): void {
    const { disk, model, device } = this.#pickDisk();
    const { offset, length } = this.#range(disk, this.#scene.plan.writeMaxBytes);
    const data = this.#scene.bytes(this.#random, length);
    const write = new ModelWrite(offset, length, data);
    const cuts = [0, this.#random.below(length), this.#random.below(length), length].sort((one, other) => one - other);
    // On shared disks a piece may wait for the secondary, and be written after its request was given up.
    const givenUp = this.#random.chance(0.2) && this.#scene.plan.pair.mode !== "shared";
    const pausesMs = cuts.map(() => (this.#random.chance(0.5) ? 0 : this.#random.fraction()));
    const { process } = this.member.host;
    // A promoted side has the truth in its overlays.
    const inImage = this.member === this.#scene.pair.primary;
    model.begin(write);
    const push = async (open: OpenWrite): Promise<void> => {
      for (const [index, end] of cuts.slice(1).entries()) {
        const piece = data.subarray(cuts[index], end);
        if (piece.length > 0) {
          const pending = open.push(piece);
          if (pending !== undefined) await pending;
        }
        const pauseMs = pausesMs[index] ?? 0;
        if (pauseMs > 0) await this.#scene.world.sleep(pauseMs);
        while (process.frozen) await this.#scene.world.sleep(10);
        if (givenUp && index === 1 && process.alive) {
          if (inImage) model.giveUp(write, this.#image(disk).subarray(offset, offset + length));
          open.abandon();
          return;
        }
      }
      const ending = open.end();
      if (ending !== undefined) await ending;
    };
    void this.#call(
      `writes ${disk.name} [${offset}, +${length}) in pieces`,
      "write",
      async () => push(await device.openWrite(offset, length, { fua: false })),
      () => {
        // Else nobody can tell what has been written, until everything is read again.
        if (!givenUp || inImage) write.settled = true;
      },
    );
  }

  #flush(): void {
    const { disk, model, device } = this.#pickDisk();
    const covered = model.beginFlush();
    void this.#call(
      `flushes ${disk.name}`,
      "flush",
      () => device.flush(),
      () => model.flushed(covered),
    );
  }

  #readSome(): void {
    const { disk, model, device } = this.#pickDisk();
    const { offset, length } = this.#range(disk, disk.sizeBytes);
    void this.#read(disk, model, device, offset, length);
  }

  /** Reads and checks everything; resolves with whether it came to its end. No write may be under way. */
  async readAll(): Promise<boolean> {
    return (await this.readContents()) !== undefined;
  }

  /** As `readAll`, with what was read. */
  async readContents(): Promise<readonly Buffer[] | undefined> {
    const contents: Buffer[] = [];
    for (const [index, disk] of this.#scene.plan.pair.disks.entries()) {
      const model = this.#scene.model.guest[index];
      const device = this.member.device(disk);
      if (model === undefined || device === undefined) return undefined;
      const content = await this.#read(disk, model, device, 0, disk.sizeBytes);
      if (content === undefined) return undefined;
      model.adopt(content);
      contents.push(content);
    }
    return contents;
  }

  #write(disk: PairDisk, model: DiskModel, device: BlockDevice, write: ModelWrite, data: Buffer): void {
    const fua = this.#random.chance(0.05);
    const covered = model.beginFlush();
    model.begin(write);
    const { offset, length } = write;
    void this.#call(
      `writes ${disk.name} [${offset}, +${length})${fua ? " fua" : ""}`,
      "write",
      () => device.write(data, offset, { fua }),
      () => {
        write.settled = true;
        this.#acknowledged(model, write);
        if (fua) model.flushed(new Set([...covered, write]));
      },
    );
  }

  async #read(
    disk: PairDisk,
    model: DiskModel,
    device: BlockDevice,
    offset: number,
    length: number,
  ): Promise<Buffer | undefined> {
    const target = Buffer.alloc(length);
    const reading = model.beginRead();
    const outcome = await this.#call(
      `reads ${disk.name} [${offset}, +${length})`,
      "read",
      () => device.read(target, offset),
      () => {
        model.check(target, offset, `${disk.name} as its guest reads it`, reading);
      },
    );
    model.endRead(reading);
    return outcome ? target : undefined;
  }

  /**
   * A call of the guest, none of which may fail, but for the one that is told what a promoted side's device has lost before.
   * Resolves with whether it was done.
   */
  async #call(line: string, what: string, call: () => void | Promise<void>, done: () => void): Promise<boolean> {
    const { name } = this.member;
    this.#scene.world.note(`guest on ${name} ${line}`);
    const outcome = await this.#scene.calls.make(this.member, what, this.#limitMs, call, (ended) => {
      if (ended.kind === "done") done();
      if (ended.kind !== "failed") return;
      const { code, message } = ended.error;
      const isOfLoss =
        this.member === this.#scene.pair.secondary && message.includes("has failed in an earlier process");
      assert(isOfLoss && this.#scene.deviceCodes.includes(code), `${line}: ${code}, ${message}`);
    });
    return outcome.kind === "done";
  }

  /** The image as it is now, as its bytes. */
  #image(disk: PairDisk): Buffer {
    return this.member.host.disk.readFile(imagePath(disk));
  }

  #pickDisk(): { disk: PairDisk; model: DiskModel; device: BlockDevice } {
    const { disks } = this.#scene.plan.pair;
    const index = this.#random.below(disks.length);
    const disk = disks[index];
    const model = this.#scene.model.guest[index];
    assert(disk !== undefined && model !== undefined);
    const device = this.member.device(disk);
    assert(device !== undefined, "a running agent exports its disks");
    return { disk, model, device };
  }

  #range(disk: PairDisk, maxBytes: number): { offset: number; length: number } {
    return drawRange(this.#random, disk.sizeBytes, maxBytes);
  }
}

/** A range within the disk: of any length, at any byte; often in the first quarter, often of whole pages. */
export function drawRange(
  random: SeededRandom,
  sizeBytes: number,
  maxBytes: number,
): { offset: number; length: number } {
  const within = random.chance(0.4) ? Math.ceil(sizeBytes / 4) : sizeBytes;
  let length = Math.min(Math.max(1, Math.ceil(2 ** random.within([0, Math.log2(maxBytes)]))), within);
  let offset = random.below(within - length + 1);
  if (random.chance(0.4)) {
    offset -= offset % 4096;
    length = Math.min(Math.ceil(length / 4096) * 4096, sizeBytes - offset);
  } else if (random.chance(0.05)) offset = sizeBytes - length;
  return { offset, length };
}
