import { ColobusError } from "../proto/errors.ts";
import type { CheckpointOperations } from "../secondary/checkpoint-operations.ts";
import type { CheckpointHold } from "../secondary/kept-checkpoints.ts";
import type { SecondaryRole } from "../secondary/secondary-role.ts";
import type { BlockDevice } from "../shared/block/block-device.ts";
import type { NbdExport } from "../shared/nbd/export.ts";

/** `DISK@EPOCH` or `DISK@committed`, opened by one client, or about to be. */
export class CheckpointExport implements NbdExport {
  readonly name: string;
  readonly description: string;
  readonly sizeBytes: number;
  readonly readOnly = true;
  readonly multiConn: boolean;
  readonly #operations: CheckpointOperations;
  readonly #disk: string;
  readonly #epoch: number | "committed";
  #open: { readonly hold: CheckpointHold; readonly device: BlockDevice } | undefined;

  constructor(
    operations: CheckpointOperations,
    disk: { readonly name: string; readonly sizeBytes: number },
    epoch: number | "committed",
  ) {
    this.name = `${disk.name}@${epoch}`;
    this.description =
      epoch === "committed" ? `disk ${disk.name} at the last checkpoint` : `disk ${disk.name} at ${epoch}`;
    this.sizeBytes = disk.sizeBytes;
    // A later connection of the same client may find another checkpoint committed.
    this.multiConn = epoch !== "committed";
    this.#operations = operations;
    this.#disk = disk.name;
    this.#epoch = epoch;
  }

  get device(): BlockDevice {
    if (this.#open === undefined) throw noCheckpoint(this.name);
    return this.#open.device;
  }

  /** A client has connected: the checkpoint is held for it. Errors: `no-checkpoint`. */
  open(): void {
    const hold = this.#operations.tryHold(this.#epoch);
    const device = hold === undefined ? undefined : this.#operations.viewOf(this.#disk, hold);
    if (hold === undefined || device === undefined) {
      hold?.release();
      throw noCheckpoint(this.name);
    }
    this.#open = { hold, device };
  }

  /** The client has gone. */
  close(): void {
    this.#open?.hold.release();
    this.#open = undefined;
  }
}

function noCheckpoint(name: string): ColobusError {
  return new ColobusError("no-checkpoint", `there is no checkpoint to serve as ${name}`, "See `colobus status`.");
}

/** The checkpoints of a secondary's disks as exports, beside those of the disks themselves. */
export class CheckpointExports {
  readonly #operations: CheckpointOperations;
  readonly #disks: () => readonly { readonly name: string; readonly sizeBytes: number }[];
  readonly #epochs: () => readonly (number | "committed")[];
  readonly #clients = new Map<string, number>();

  /** `epochs` are those to be listed. */
  constructor(
    operations: CheckpointOperations,
    disks: () => readonly { readonly name: string; readonly sizeBytes: number }[],
    epochs: () => readonly (number | "committed")[],
  ) {
    this.#operations = operations;
    this.#disks = disks;
    this.#epochs = epochs;
  }

  list(): readonly CheckpointExport[] {
    return this.#disks().flatMap((disk) => this.#epochs().map((epoch) => this.#export(disk, epoch)));
  }

  find(name: string): CheckpointExport | undefined {
    const match = /^(.+)@(committed|[1-9]\d{0,14})$/.exec(name);
    const disk = this.#disks().find((candidate) => candidate.name === match?.[1]);
    if (disk === undefined || match?.[2] === undefined) return undefined;
    const epoch = match[2] === "committed" ? "committed" : Number(match[2]);
    if (epoch !== "committed" && !this.#operations.isKept(epoch)) return undefined;
    return this.#export(disk, epoch);
  }

  clientsOf(name: string): number {
    return this.#clients.get(name) ?? 0;
  }

  opened(checkpointExport: CheckpointExport): void {
    checkpointExport.open();
    this.#clients.set(checkpointExport.name, this.clientsOf(checkpointExport.name) + 1);
  }

  closed(checkpointExport: CheckpointExport): void {
    checkpointExport.close();
    const left = this.clientsOf(checkpointExport.name) - 1;
    if (left > 0) this.#clients.set(checkpointExport.name, left);
    else this.#clients.delete(checkpointExport.name);
  }

  #export(disk: { readonly name: string; readonly sizeBytes: number }, epoch: number | "committed"): CheckpointExport {
    return new CheckpointExport(this.#operations, disk, epoch);
  }
}

/** Those of a secondary: listed are the committed checkpoint, and the retained ones. */
export function checkpointExportsOf(secondary: SecondaryRole): CheckpointExports {
  const { operations, checkpoints } = secondary;
  return new CheckpointExports(
    operations,
    () => secondary.disks.map(({ name, base }) => ({ name, sizeBytes: base.sizeBytes })),
    () => (checkpoints.committed.epoch === 0 ? [] : ["committed", ...checkpoints.kept.retained]),
  );
}
