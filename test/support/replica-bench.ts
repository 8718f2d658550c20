import { NodeClock } from "../../shared/host/node-clock.ts";
import { openImage } from "../../shared/block/image.ts";
import { clusterGeometry } from "../../shared/block/cluster-geometry.ts";
import type { PeerTrackingOptions } from "../../shared/replication/peer-tracking.ts";
import { LostSyncs } from "../../shared/journal/lost-syncs.ts";
import { StateFile } from "../../shared/journal/state-file.ts";
import { CheckpointAges } from "../../shared/replication/checkpoint-ages.ts";
import type { DataMessage, Operation } from "../../proto/replication-messages.ts";
import type { ColobusError } from "../../proto/errors.ts";
import type { StateRecord } from "../../proto/state-record.ts";
import type { Durability } from "../../proto/words.ts";
import type { BufferHost } from "../../secondary/block-buffer.ts";
import { BufferMemory } from "../../secondary/buffer-memory.ts";
import { Checkpoints } from "../../secondary/checkpoints.ts";
import { overlayContext } from "../../secondary/overlay-files.ts";
import { OverlayQuota, type OverlayUsage } from "../../secondary/overlay-quota.ts";
import { ReplicaDisk } from "../../secondary/replica-disk.ts";
import type { SourceHistory } from "../../secondary/replica-history.ts";
import { ReplicaWriter } from "../../secondary/replica-writer.ts";
import { ViewGate } from "../../secondary/view-gate.ts";
import { SeededRandom } from "../sim/seeded-random.ts";
import { SimRandom } from "../sim/sim-random.ts";
import { ManualClock } from "./manual-clock.ts";
import type { MemoryStorage } from "./memory-storage.ts";
import { SilentLog } from "./silent-log.ts";
import { stateRecord } from "./state-records.ts";

export const STATE_DIRECTORY = "/state";
const LINEAGE = "1".repeat(32);
const sourceOf = (): SourceHistory => ({ lineage: LINEAGE, ancestors: [], later: [] });

export const BENCH_WINDOW_BYTES = 1_048_576;

export interface BenchOptions {
  readonly afterPowerLoss?: boolean;
  readonly retain?: number;
  readonly limitBytes?: number;
}

export interface BenchDisk {
  readonly name: string;
  readonly content: Buffer;
}

/** Makes the images of `disks` and the state of a secondary that has received nothing yet. */
export async function makeSecondary(
  storage: MemoryStorage,
  disks: readonly BenchDisk[],
  durability: Durability,
  changes: Partial<StateRecord> = {},
): Promise<void> {
  for (const { name, content } of disks) {
    storage.disk.addDirectory(`${STATE_DIRECTORY}/disks/${name}`);
    const isSparse = content.every((byte) => byte === 0);
    storage.disk.addFile(imagePath(name), content.length, isSparse ? Buffer.alloc(0) : content);
  }
  const state = await StateFile.create(
    storage,
    STATE_DIRECTORY,
    stateRecord({
      durability,
      disks: disks.map(({ name, content }) => ({
        name,
        image: imagePath(name),
        sizeBytes: content.length,
        cleanMark: null,
      })),
      ...changes,
    }),
  );
  await state.close();
}

/** What dirty bitmaps of a secondary's disks are made of. */
export function trackingOptions(storage: MemoryStorage, state: StateFile): PeerTrackingOptions {
  return {
    storage,
    clock: new NodeClock(),
    random: new SimRandom(new SeededRandom(12)),
    log: new SilentLog(),
    state,
    extentBytes: 4 * state.record.clusterBytes,
    slot: 0,
    settleEveryMs: 5_000,
    emit: () => undefined,
    disks: state.record.disks.map(({ name, sizeBytes }) => ({
      geometry: clusterGeometry(sizeBytes ?? 0, state.record.clusterBytes),
      directory: `${STATE_DIRECTORY}/disks/${name}`,
    })),
  };
}

export function imagePath(name: string): string {
  return `/images/${name}.img`;
}

/** A secondary's disks, checkpoints and writer as its role puts them together, without sessions. */
/** Fsyncs that have failed, as a state record names them. */
export function lostSyncsOf(state: StateFile): LostSyncs {
  return new LostSyncs({ state, clock: new ManualClock(), log: new SilentLog() });
}

export class ReplicaBench {
  readonly state: StateFile;
  readonly gate = new ViewGate();
  readonly log = new SilentLog();
  readonly disks: readonly ReplicaDisk[];
  readonly checkpoints: Checkpoints;
  readonly #storage: MemoryStorage;
  readonly #clock = new NodeClock();
  writer: ReplicaWriter;
  failure: ColobusError | undefined;
  stable = 0;
  #sequence = 0;
  /** Mode `mirror`: the images are what a failover returns. */
  follows = false;
  /** Retained checkpoints that had to go. */
  readonly retainedDropped: number[] = [];
  readonly quota: OverlayQuota | undefined;
  /** How often a checkpoint was asked for. */
  wanted = 0;
  readonly #options: BenchOptions;
  readonly #memory = new BufferMemory({ bytes: 1_048_576, fragments: 1_000_000 }, () => (this.wanted += 1));

  private constructor(storage: MemoryStorage, state: StateFile, options: BenchOptions) {
    this.#storage = storage;
    this.state = state;
    this.#options = options;
    const { committed, prepared, retained, epochReserved } = state.record;
    if (options.limitBytes !== undefined) {
      this.quota = new OverlayQuota(
        options.limitBytes,
        () => this.usage(),
        () => (this.wanted += 1),
      );
    }
    const random = new SimRandom(new SeededRandom(11));
    const epochs = {
      committed: committed.epoch,
      newestBarrier: prepared.at(-1)?.epoch ?? committed.epoch,
      open: epochReserved + 1,
      floor: retained[0]?.epoch ?? committed.epoch,
      afterPowerLoss: options.afterPowerLoss ?? false,
    };
    this.disks = state.record.disks.map(({ name, image, sizeBytes }) => {
      const context = overlayContext(
        { storage, random, stateDirectory: STATE_DIRECTORY, quota: this.quota, lostSyncs: lostSyncsOf(state) },
        state.record,
        name,
        sizeBytes ?? 0,
      );
      return new ReplicaDisk(name, openImage(storage, image), context, epochs, {
        gate: this.gate,
        hasCheckpoint: () => this.checkpoints.committed.epoch > 0,
        access: "read-write",
        buffers: state.record.mode === "mc" ? this.#bufferHost() : undefined,
      });
    });
    this.checkpoints = new Checkpoints({
      state,
      disks: () => this.disks,
      gate: this.gate,
      clock: this.#clock,
      ages: new CheckpointAges(this.#clock, state.record),
      log: this.log,
      retain: options.retain ?? 0,
      retainedDropped: (epochs) => this.retainedDropped.push(...epochs),
      freed: () => this.quota?.measure(),
      statesNeeded: () => undefined,
    });
    this.writer = this.#newWriter();
  }

  static open(storage: MemoryStorage, options: BenchOptions = {}): ReplicaBench {
    const state = StateFile.open(storage, STATE_DIRECTORY);
    if (state === undefined) throw new Error("there is no state");
    return new ReplicaBench(storage, state, options);
  }

  usage(): OverlayUsage {
    const keptBytes = this.disks.reduce((sum, { epochs }) => sum + epochs.keptBytes, 0);
    const totalBytes = this.disks.reduce(
      (sum, { epochs, active }) => sum + epochs.allocatedBytes + active.allocatedBytes,
      0,
    );
    return { totalBytes, freeableBytes: totalBytes - keptBytes };
  }

  /** A session begins: later operations belong to `epoch`. */
  async begin(epoch: number): Promise<void> {
    await this.writer.stop();
    await this.checkpoints.openAt(epoch);
    this.writer = this.#newWriter();
  }

  push(operations: readonly Operation[]): void {
    const message: DataMessage = { type: "data", firstSequence: this.#sequence + 1, operations };
    this.#sequence += operations.length;
    this.writer.push(message);
  }

  /** Closes `epoch` behind everything pushed so far. */
  barrier(epoch: number): Promise<void> {
    return new Promise((resolve, reject) => {
      this.writer.enqueue(async () => {
        await this.writer.makeStable();
        await this.checkpoints.prepare(epoch).then(resolve, reject);
      });
    });
  }

  /** Behind everything pushed so far, as a barrier that commits is. */
  prepareAndCommit(epoch: number): Promise<void> {
    return new Promise((resolve, reject) => {
      this.writer.enqueue(async () => {
        await this.writer.makeStable();
        await this.checkpoints.prepareAndCommit(epoch, sourceOf).then(resolve, reject);
      });
    });
  }

  /** Resolves when everything pushed so far is applied. */
  drained(): Promise<void> {
    return new Promise((resolve) => {
      this.writer.enqueue(() => Promise.resolve(resolve()));
    });
  }

  commit(epoch: number): Promise<void> {
    return this.checkpoints.commit(epoch, sourceOf);
  }

  /** The process dies, or the machine loses its power, between two calls; then the secondary starts again. */
  async restart(kind: "process" | "power"): Promise<ReplicaBench> {
    await this.writer.stop();
    for (const { epochs } of this.disks) await epochs.end();
    await this.checkpoints.settled();
    this.#storage.crash(kind);
    return ReplicaBench.open(this.#storage, { ...this.#options, afterPowerLoss: kind === "power" });
  }

  /** Resolves when the bases have everything that is committed. */
  async applied(): Promise<void> {
    for (const { epochs } of this.disks) await epochs.release(this.checkpoints.kept.floor)();
  }

  async readView(disk: number, offset = 0, length?: number): Promise<Buffer> {
    const { view } = this.disks[disk] ?? missing();
    const target = Buffer.alloc(length ?? view.sizeBytes - offset);
    await view.read(target, offset);
    return target;
  }

  #bufferHost(): BufferHost {
    return {
      memory: this.#memory,
      clock: this.#clock,
      failed: (reason) => {
        this.failure = reason;
      },
      applied: () => this.quota?.measure(),
    };
  }

  #newWriter(): ReplicaWriter {
    this.#sequence = 0;
    return new ReplicaWriter({
      disks: this.disks,
      follows: () => this.follows,
      clock: this.#clock,
      durability: this.state.record.durability,
      sharesDisks: this.state.record.mode === "shared",
      windowBytes: BENCH_WINDOW_BYTES,
      ack: "async",
      savesOriginals: () => this.checkpoints.newestBarrier > 0,
      makeRoom: () => this.checkpoints.makeRoom(),
      acknowledge: (_, stable) => {
        this.stable = stable;
      },
      applied: (operations, bytes) => this.checkpoints.countApplied(operations, bytes),
      failed: (reason) => {
        this.failure = reason;
      },
    });
  }
}

function missing(): never {
  throw new RangeError("there is no such disk");
}
