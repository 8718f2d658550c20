/** A stretch of a disk, and what one metadata context says of it: flags that the context defines. */
export interface MetaExtent {
  readonly length: number;
  readonly flags: number;
}

/** Metadata of an export that a client can ask for by BLOCK_STATUS, beside base:allocation. */
export interface MetaContext {
  /** The whole name: `qemu:dirty-bitmap:NAME`. */
  readonly name: string;
  /** What it says from `offset` on, within the range, at most so many extents. Errors: it is not there any more. */
  extents(offset: number, length: number, maxExtents: number): readonly MetaExtent[];
}
