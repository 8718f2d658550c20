import { ColobusError } from "../proto/errors.ts";
import type { BlockDevice } from "../shared/block/block-device.ts";
import type { NbdExport, NbdExportDirectory } from "../shared/nbd/export.ts";

/** The export of one disk: what is behind it changes with the agent's role, while clients stay connected. */
export class DiskExport implements NbdExport {
  readonly name: string;
  readonly sizeBytes: number;
  readonly description: string;
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

  list(): readonly DiskExport[] {
    return this.#exports;
  }

  find(name: string): DiskExport | undefined {
    return name === "" ? this.#exports[0] : this.#exports.find((candidate) => candidate.name === name);
  }

  opened(nbdExport: NbdExport): void {
    const found = this.find(nbdExport.name);
    if (found !== undefined) found.clients += 1;
  }

  closed(nbdExport: NbdExport): void {
    const found = this.find(nbdExport.name);
    if (found !== undefined) found.clients -= 1;
  }

  /** Exports `device` as `name`: in place of what is exported under that name, or anew. */
  put(name: string, vm: string, device: BlockDevice, readOnly: boolean): void {
    const existing = this.#exports.find((candidate) => candidate.name === name);
    if (existing === undefined) this.#exports.push(new DiskExport(name, vm, device, readOnly));
    else existing.replace(device, readOnly);
  }

  withdrawAll(): void {
    for (const diskExport of this.#exports) diskExport.withdraw();
  }
}
