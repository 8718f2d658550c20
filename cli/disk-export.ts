import { ColobusError } from "../proto/errors.ts";
import type { BlockDevice } from "../shared/block/block-device.ts";
import type { NbdExport, NbdExportDirectory } from "../shared/nbd/export.ts";
import type { MetaContext } from "../shared/nbd/meta-context.ts";
import { GuestFigures } from "../shared/nbd/guest-figures.ts";
import { CheckpointExport, type CheckpointExports } from "./checkpoint-exports.ts";

/** The export of one disk: what is behind it changes with the agent's role, while clients stay connected. */
export class DiskExport implements NbdExport {
  readonly name: string;
  readonly description: string;
  readonly figures = new GuestFigures();
  clients = 0;
  /** What is behind the export, or why nothing is. */
  #behind: BlockDevice | ColobusError;
  #sizeBytes: number;
  #readOnly: boolean;
  readonly #contexts: () => readonly MetaContext[];

  constructor(
    name: string,
    vm: string,
    device: BlockDevice,
    readOnly: boolean,
    contexts: () => readonly MetaContext[] = () => [],
  ) {
    this.name = name;
    this.description = `disk ${name} of VM ${vm}`;
    this.#sizeBytes = device.sizeBytes;
    this.#behind = device;
    this.#readOnly = readOnly;
    this.#contexts = contexts;
  }

  get device(): BlockDevice {
    if (this.#behind instanceof ColobusError) throw this.#behind;
    return this.#behind;
  }

  /** What clients are told as they connect. */
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  get contexts(): readonly MetaContext[] {
    return this.#contexts();
  }

  get readOnly(): boolean {
    return this.#readOnly;
  }

  /** Puts another device behind the export, of the same disk: it may have grown. */
  replace(device: BlockDevice, readOnly: boolean): void {
    this.#sizeBytes = device.sizeBytes;
    this.#behind = device;
    this.#readOnly = readOnly;
  }

  /** Nothing is behind the export any more: requests fail with `reason`. */
  withdraw(reason: ColobusError): void {
    this.#behind = reason;
  }
}

/** The exports of one agent, in the order of its disks: the empty name is that of the first disk, also while that has no export. */
export class DiskExports implements NbdExportDirectory {
  /** The disks' names, in their order. */
  readonly #names: () => readonly string[];
  #exports: DiskExport[] = [];
  #checkpoints: CheckpointExports | undefined;
  #contextsOf: (disk: string) => readonly MetaContext[] = () => [];

  constructor(names: () => readonly string[]) {
    this.#names = names;
  }

  list(): readonly NbdExport[] {
    return [...this.#exports, ...(this.#checkpoints?.list() ?? [])];
  }

  find(name: string): NbdExport | undefined {
    if (name !== "") return this.#findDisk(name) ?? this.#checkpoints?.find(name);
    const [first] = this.#names();
    return first === undefined ? undefined : this.#findDisk(first);
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

  /** Has clients ask for the contexts of a disk; undefined: there are none. */
  serveContexts(contextsOf: ((disk: string) => readonly MetaContext[]) | undefined): void {
    this.#contextsOf = contextsOf ?? (() => []);
  }

  /** Exports `device` as `name`: in place of what is exported under that name, or anew. */
  put(name: string, vm: string, device: BlockDevice, readOnly: boolean): void {
    const existing = this.#exports.find((candidate) => candidate.name === name);
    if (existing !== undefined) {
      existing.replace(device, readOnly);
      return;
    }
    this.#exports.push(new DiskExport(name, vm, device, readOnly, () => this.#contextsOf(name)));
    const names = this.#names();
    this.#exports.sort((one, other) => names.indexOf(one.name) - names.indexOf(other.name));
  }

  /** Nothing is behind the exports any more: requests of who has one open fail with `reason`. */
  withdrawAll(reason: ColobusError): void {
    for (const diskExport of this.#exports) diskExport.withdraw(reason);
    this.#checkpoints = undefined;
    this.serveContexts(undefined);
  }

  /** Nobody finds the disks any more; requests of who has one open fail with `reason`. */
  removeAll(reason: ColobusError): void {
    this.withdrawAll(reason);
    this.#exports = [];
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
