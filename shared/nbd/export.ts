import type { BlockDevice } from "../block/block-device.ts";
import type { MetaContext } from "./meta-context.ts";
import type { GuestFigures } from "./guest-figures.ts";

/**
 * One name that NBD clients can open. The export outlives what is behind it: a failover puts another device behind the
 * same export while clients stay connected, so the server asks for `device` anew with every request.
 */
export interface NbdExport {
  readonly name: string;
  readonly description: string;
  /** Fixed for the life of the export. */
  readonly sizeBytes: number;
  /** What is behind the export now. Throws a ColobusError when there is nothing to serve: the request fails with that error. */
  readonly device: BlockDevice;
  /** Metadata beside base:allocation, as of now. */
  readonly contexts?: readonly MetaContext[];
  /** Whether several connections see the same content; default: they do. */
  readonly multiConn?: boolean;
  /** Whether writes are refused now. Told to a client when it connects, and asked anew with every write. */
  readonly readOnly: boolean;
  /** Where the requests of all clients are accounted for; undefined: nobody asks. */
  readonly figures?: GuestFigures;
}

/** Where the server looks exports up. */
export interface NbdExportDirectory {
  list(): readonly NbdExport[];
  /** The empty name is that of the default export. undefined: there is no such export. */
  find(name: string): NbdExport | undefined;
  /** Called when a client has entered the transmission phase, and when it has left. */
  opened(nbdExport: NbdExport): void;
  closed(nbdExport: NbdExport): void;
}
