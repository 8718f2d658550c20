import type { DiskStatus } from "../proto/control-api.ts";
import type { StateRecord } from "../proto/state-record.ts";
import type { DiskState, SecondaryExport } from "../proto/words.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";
import { ActiveDisk } from "./active-disk.ts";
import { CheckpointView } from "./checkpoint-view.ts";
import { CommittedView } from "./committed-view.ts";
import type { Generation } from "./generation.ts";
import { HiddenDisk } from "./hidden-disk.ts";
import type { CheckpointHold } from "./kept-checkpoints.ts";
import { reserveMergeSpace } from "./merge-journal.ts";
import type { OverlayContext } from "./overlay-files.ts";
import { OverlayStack } from "./overlay-stack.ts";
import type { ViewGate } from "./view-gate.ts";

export interface RecoverEpochs {
  /** The oldest checkpoint that is kept: the committed one, or an earlier one that is retained. */
  readonly floor?: number;
  readonly committed: number;
  /** The newest prepared epoch, or the committed one. */
  readonly newestBarrier: number;
  readonly open: number;
  /** The host has booted since the overlays were last written. */
  readonly afterPowerLoss: boolean;
}

/** One disk of the secondary: base, hidden disk and active disk, and the view that is exported of them. */
export class ReplicaDisk {
  readonly name: string;
  readonly stack: OverlayStack;
  readonly view: CommittedView;
  readonly context: OverlayContext;
  readonly #gate: ViewGate;

  constructor(
    name: string,
    base: DiskImage,
    context: OverlayContext,
    epochs: RecoverEpochs,
    options: { readonly gate: ViewGate; readonly hasCheckpoint: () => boolean; readonly access: SecondaryExport },
  ) {
    this.name = name;
    this.context = context;
    this.#gate = options.gate;
    const hidden = HiddenDisk.recover(context, epochs);
    reserveMergeSpace(context);
    const active = ActiveDisk.recover(context, epochs.committed, epochs.afterPowerLoss);
    this.stack = new OverlayStack(context.geometry, base, hidden, active);
    this.view = new CommittedView(this.stack, options.gate, options.hasCheckpoint, options.access);
  }

  get base(): DiskImage {
    return this.stack.base;
  }

  /** Goes on with `base`, which holds the same, and closes the present one. No request may be under way. */
  replaceBase(base: DiskImage): void {
    this.stack.base.close();
    this.stack.base = base;
  }

  get hidden(): HiddenDisk {
    return this.stack.hidden;
  }

  get active(): ActiveDisk {
    return this.stack.active;
  }

  /**
   * Makes the checkpoint `epoch` the state that the view shows: keeps the generations from `floor` on, drops the older
   * ones, and starts an empty active disk. Returns what frees the storage; call it when no reader of the old view is
   * left.
   */
  switchView(epoch: number, floor: number): () => Promise<void> {
    this.hidden.keepThrough(epoch);
    return this.#replaceActive(epoch, this.hidden.dropKept(floor));
  }

  /** Removes what an active disk of `epoch` may have left: it is about to have one again. */
  removeStaleActive(epoch: number): void {
    new ActiveDisk(this.context, epoch).removeFiles();
  }

  /** Makes the kept checkpoint `epoch` the state that the view shows, as `switchView` does. */
  rollBack(epoch: number): () => Promise<void> {
    this.hidden.rollBack(epoch);
    return this.#replaceActive(epoch, []);
  }

  /** There is no checkpoint any more: drops every overlay. Returns what frees the storage, as `switchView` does. */
  dropOverlays(): () => Promise<void> {
    return this.#replaceActive(0, this.hidden.dropAll());
  }

  /** The disk as it was at a checkpoint that is kept while `hold` lasts. */
  viewOf(hold: CheckpointHold): CheckpointView {
    return new CheckpointView(this.context, this.base, this.hidden.asOf(hold.epoch), this.#gate, hold);
  }

  /** Starts an empty active disk of `epoch` and removes the present one. No reader may be under way. */
  discardActive(epoch: number): void {
    const old = this.active;
    this.stack.active = new ActiveDisk(this.context, epoch);
    old.removeFiles();
  }

  #replaceActive(epoch: number, dropped: readonly Generation[]): () => Promise<void> {
    const oldActive = this.active;
    this.stack.active = new ActiveDisk(this.context, epoch);
    return async () => {
      for (const generation of dropped) await generation.files.removeBehind();
      await oldActive.removeBehind();
    };
  }

  close(): void {
    this.hidden.close();
    this.active.close();
    this.base.close();
  }
}

/** What status says of a disk; `disk` is undefined while its image is still to be made. */
export function describeReplicaDisk(
  { name, image, sizeBytes }: StateRecord["disks"][number],
  disk: ReplicaDisk | undefined,
  state: DiskState,
): DiskStatus {
  return {
    name,
    sizeBytes,
    state,
    dirtyBytes: 0,
    hiddenBytes: disk?.hidden.allocatedBytes ?? 0,
    activeBytes: disk?.active.allocatedBytes ?? 0,
    bufferBytes: 0,
    image,
    generations: disk?.hidden.describeGenerations() ?? [],
    children: [{ name: "base", kind: "image", path: image, state: state === "Failed" ? "broken" : "sound" }],
  };
}
