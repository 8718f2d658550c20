import { ColobusError } from "../proto/errors.ts";
import type { BlockDevice } from "../shared/block/block-device.ts";
import type { NbdExport, NbdExportDirectory } from "../shared/nbd/export.ts";
import { GuestFigures } from "../shared/nbd/guest-figures.ts";
import { CheckpointExport, type CheckpointExports } from "./checkpoint-exports.ts";

/** The export of one disk: what is behind it changes with the agent's role, while clients stay connected. */
export class DiskExport implements NbdExport {
  readonly name: string;
  readonly sizeBytes: number;
  readonly description: string;
  readonly figures = new GuestFigures();
  clients = 0;
  #device: BlockDevice | undefined;
  #readOnly: boolean;

  constructor(name: string, vm: string, device: BlockDevice, readOnly: boolean) {
    this.name = name;
    this.description = `disk ${name} of VM ${vm}`;
    this.sizeBytes = device.sizeBytes;
    this.#device = device;
    this.#readOnly = readOnly;
  }

  get device(): BlockDevice {
    if (this.#device === undefined) throw new ColobusError("shutting-down", "the agent is being stopped");
    return this.#device;
  }

  get readOnly(): boolean {
    return this.#readOnly;
  }

  /** Puts another device of the same size behind the export. */
  replace(device: BlockDevice, readOnly: boolean): void {
    this.#device = device;
    this.#readOnly = readOnly;
  }

  /** Nothing is behind the export any more. */
  withdraw(): void {
    this.#device = undefined;
  }
}

/** The exports of one agent. */
export class DiskExports implements NbdExportDirectory {
  #exports: DiskExport[] = [];
  #checkpoints: CheckpointExports | undefined;

  list(): readonly NbdExport[] {
    return [...this.#exports, ...(this.#checkpoints?.list() ?? [])];
  }

  find(name: string): NbdExport | undefined {
    return name === "" ? this.#exports[0] : (this.#findDisk(name) ?? this.#checkpoints?.find(name));
  }

  /** The disks' exports, without those of checkpoints. */
  disks(): readonly DiskExport[] {
    return this.#exports;
  }

  /** Clients that have the export open now. */
  clientsOf(name: string): number {
    return this.#findDisk(name)?.clients ?? this.#checkpoints?.clientsOf(name) ?? 0;
  }

  /** Errors: `no-checkpoint`. */
  opened(nbdExport: NbdExport): void {
    if (nbdExport instanceof CheckpointExport) this.#checkpoints?.opened(nbdExport);
    else this.#countClient(nbdExport, 1);
  }

  closed(nbdExport: NbdExport): void {
    if (nbdExport instanceof CheckpointExport) this.#closeCheckpoint(nbdExport);
    else this.#countClient(nbdExport, -1);
  }

  /** Exports a secondary's checkpoints as well; undefined: none any more, and clients that have one open get errors. */
  serveCheckpoints(checkpoints: CheckpointExports | undefined): void {
    this.#checkpoints = checkpoints;
  }

  /** Exports `device` as `name`: in place of what is exported under that name, or anew. */
  put(name: string, vm: string, device: BlockDevice, readOnly: boolean): void {
    const existing = this.#exports.find((candidate) => candidate.name === name);
    if (existing === undefined) this.#exports.push(new DiskExport(name, vm, device, readOnly));
    else existing.replace(device, readOnly);
  }

  withdrawAll(): void {
    for (const diskExport of this.#exports) diskExport.withdraw();
    this.#checkpoints = undefined;
  }

  #findDisk(name: string): DiskExport | undefined {
    return this.#exports.find((candidate) => candidate.name === name);
  }

  #countClient({ name }: NbdExport, change: 1 | -1): void {
    const found = this.#findDisk(name);
    if (found !== undefined) found.clients += change;
  }

  #closeCheckpoint(checkpointExport: CheckpointExport): void {
    if (this.#checkpoints === undefined) checkpointExport.close();
    else this.#checkpoints.closed(checkpointExport);
  }
}
