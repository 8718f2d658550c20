import type { SecondaryExport } from "../proto/words.ts";
import type { Image } from "../shared/block/image.ts";
import { ActiveDisk } from "./active-disk.ts";
import { CommittedView } from "./committed-view.ts";
import { HiddenDisk } from "./hidden-disk.ts";
import { reserveMergeSpace } from "./merge-journal.ts";
import type { OverlayContext } from "./overlay-files.ts";
import { OverlayStack } from "./overlay-stack.ts";
import type { ViewGate } from "./view-gate.ts";

export interface RecoverEpochs {
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
  readonly base: Image;
  readonly stack: OverlayStack;
  readonly view: CommittedView;
  readonly context: OverlayContext;

  constructor(
    name: string,
    base: Image,
    context: OverlayContext,
    epochs: RecoverEpochs,
    options: { readonly gate: ViewGate; readonly hasCheckpoint: () => boolean; readonly access: SecondaryExport },
  ) {
    this.name = name;
    this.base = base;
    this.context = context;
    const hidden = HiddenDisk.recover(context, epochs);
    reserveMergeSpace(context);
    const active = ActiveDisk.recover(context, epochs.committed, epochs.afterPowerLoss);
    this.stack = new OverlayStack(context.geometry, base, hidden, active);
    this.view = new CommittedView(this.stack, options.gate, options.hasCheckpoint, options.access);
  }

  get hidden(): HiddenDisk {
    return this.stack.hidden;
  }

  get active(): ActiveDisk {
    return this.stack.active;
  }

  /**
   * Makes `epoch` the state that the view shows: drops the generations up to it and starts an empty active disk.
   * Returns what frees the storage; call it when no reader of the old view is left.
   */
  switchView(epoch: number): () => Promise<void> {
    const dropped = this.hidden.dropThrough(epoch);
    const oldActive = this.active;
    this.stack.active = new ActiveDisk(this.context, epoch);
    return async () => {
      for (const generation of dropped) await generation.files.removeBehind();
      await oldActive.removeBehind();
    };
  }

  /** Starts an empty active disk of `epoch` and removes the present one. No reader may be under way. */
  discardActive(epoch: number): void {
    const old = this.active;
    this.stack.active = new ActiveDisk(this.context, epoch);
    old.removeFiles();
  }

  close(): void {
    this.hidden.close();
    this.active.close();
    this.base.close();
  }
}
