import { PageTable } from "./page-table.ts";
import type { SeededRandom } from "./seeded-random.ts";

/**
 * One file of a simulated disk: what readers see, what the medium holds, and, in order, what was done since.
 *
 * The volatile cache works in sectors, as a page cache over a disk does: after a loss of power each sector holds one of
 * the versions that it went through since it was last made durable, and no two sectors need agree (a torn write). Within
 * a sector nothing is ever reordered. Changes of size are ordered among themselves, as in a file system with a
 * metadata journal; content that was written behind a lost change of size is lost with it.
 */
export const SECTOR_BYTES = 512;

/** Beyond this many unsynced operations the kernel writes the older half back by itself. */
const UNSYNCED_OPERATIONS_MAX = 512;

type Unsynced =
  | { readonly kind: "write"; readonly offset: number; readonly length: number; readonly data: Uint8Array }
  | { readonly kind: "zero"; readonly offset: number; readonly length: number; readonly keepAllocated: boolean }
  | { readonly kind: "allocate"; readonly offset: number; readonly length: number; readonly sizeBefore: number }
  | { readonly kind: "truncate"; readonly sizeBytes: number; readonly sizeBefore: number };

export class SimInode {
  /** What readers see. */
  #current: PageTable;
  /** What the medium holds. */
  #durable: PageTable;
  #unsynced: Unsynced[] = [];
  /** Sequence number of the first unsynced operation. */
  #firstUnsynced = 0;
  /** Names that lead here, and files that are open. */
  references = 0;
  locked = false;

  constructor(current = new PageTable(), durable = new PageTable()) {
    this.#current = current;
    this.#durable = durable;
  }

  /** For reading. Changes go through the methods below. */
  get content(): PageTable {
    return this.#current;
  }

  get durableContent(): PageTable {
    return this.#durable;
  }

  /** Operations that a loss of power may undo. */
  get unsyncedCount(): number {
    return this.#unsynced.length;
  }

  /** To be given to `makeDurable`: covers everything done so far. */
  get position(): number {
    return this.#firstUnsynced + this.#unsynced.length;
  }

  write(source: Uint8Array, offset: number): void {
    this.#current.write(source, offset);
    this.#note({ kind: "write", offset, length: source.length, data: new Uint8Array(source) });
  }

  zero(offset: number, length: number, keepAllocated: boolean): void {
    this.#current.zero(offset, length, keepAllocated);
    this.#note({ kind: "zero", offset, length, keepAllocated });
  }

  allocate(offset: number, length: number): void {
    const sizeBefore = this.#current.sizeBytes;
    this.#current.allocate(offset, length);
    this.#note({ kind: "allocate", offset, length, sizeBefore });
  }

  truncate(sizeBytes: number): void {
    const sizeBefore = this.#current.sizeBytes;
    this.#current.truncate(sizeBytes);
    this.#note({ kind: "truncate", sizeBytes, sizeBefore });
  }

  /** Everything before `position` is on the medium. */
  makeDurable(position: number): void {
    for (const operation of this.#take(position)) {
      if (operation.kind === "write") this.#durable.write(operation.data, operation.offset);
      else if (operation.kind === "zero")
        this.#durable.zero(operation.offset, operation.length, operation.keepAllocated);
      else if (operation.kind === "allocate") this.#durable.allocate(operation.offset, operation.length);
      else this.#durable.truncate(operation.sizeBytes);
    }
  }

  /**
   * Some of what was done before `position` is on the medium, the rest will never be, though readers still see it: what
   * a failed fsync leaves, since the kernel marks the pages clean.
   */
  makeUncertain(position: number, random: SeededRandom): void {
    const taken = this.#take(position);
    if (taken.length > 0) keepSome(this.#durable, taken, random);
  }

  /** Power is lost: an arbitrary legal part of what was not durable survives, and is all there is. */
  losePower(random: SeededRandom): void {
    this.makeUncertain(this.position, random);
    this.#current = this.#durable.clone();
    this.locked = false;
  }

  /** Changes a byte on the medium and in the cache, behind everybody's back. */
  corrupt(offset: number, mask: number): void {
    for (const table of [this.#current, this.#durable]) {
      if (offset >= table.sizeBytes) continue;
      const byte = new Uint8Array(1);
      table.read(byte, offset);
      byte[0] = (byte[0] ?? 0) ^ mask;
      table.write(byte, offset);
    }
  }

  /** A copy that shares content until one side changes it. */
  fork(): SimInode {
    const copy = new SimInode(this.#current.clone(), this.#durable.clone());
    copy.#unsynced = this.#unsynced.slice();
    return copy;
  }

  #note(operation: Unsynced): void {
    this.#unsynced.push(operation);
    if (this.#unsynced.length > UNSYNCED_OPERATIONS_MAX)
      this.makeDurable(this.#firstUnsynced + UNSYNCED_OPERATIONS_MAX / 2);
  }

  #take(position: number): Unsynced[] {
    const taken = this.#unsynced.splice(0, Math.max(0, position - this.#firstUnsynced));
    this.#firstUnsynced += taken.length;
    return taken;
  }
}

/** How a whole crash turns out, before each operation has its own luck. */
type Luck = "everything" | "nothing" | "in-order" | "any";

function keepSome(table: PageTable, operations: readonly Unsynced[], random: SeededRandom): void {
  const luck = random.pick<Luck>(["everything", "nothing", "in-order", "any", "any", "any"]);
  if (luck === "nothing") return;
  const survivors = luck === "in-order" ? random.below(operations.length + 1) : operations.length;
  /** Sectors that lost an operation, and so lose all later ones. */
  const lostSectors = new Set<number>();
  /** No content is kept behind the first change of size that was lost, and no later change of size. */
  let limit = Number.POSITIVE_INFINITY;
  for (const [index, operation] of operations.entries()) {
    const lucky = luck === "any" ? random.pick(["all", "none", "some"] as const) : index < survivors ? "all" : "none";
    switch (operation.kind) {
      case "write":
      case "zero":
        keepSectors(table, operation, lucky, limit, lostSectors, random);
        break;
      case "truncate":
        if (lucky === "none" || limit !== Number.POSITIVE_INFINITY)
          limit = Math.min(limit, operation.sizeBytes, operation.sizeBefore);
        else {
          table.truncate(operation.sizeBytes);
          for (const sector of lostSectors) {
            if (sector * SECTOR_BYTES >= operation.sizeBytes) lostSectors.delete(sector);
          }
        }
        break;
      case "allocate": {
        const grows = operation.offset + operation.length > operation.sizeBefore;
        if (lucky !== "none" && limit === Number.POSITIVE_INFINITY) table.allocate(operation.offset, operation.length);
        else if (grows) limit = Math.min(limit, operation.sizeBefore);
        break;
      }
    }
  }
}

/** Applies what survives of one operation, in runs of whole sectors. */
function keepSectors(
  table: PageTable,
  operation: Extract<Unsynced, { kind: "write" | "zero" }>,
  lucky: "all" | "none" | "some",
  limit: number,
  lostSectors: Set<number>,
  random: SeededRandom,
): void {
  const end = operation.offset + operation.length;
  let runStart = -1;
  const applyRun = (runEnd: number): void => {
    if (runStart < 0) return;
    if (operation.kind === "zero") table.zero(runStart, runEnd - runStart, operation.keepAllocated);
    else table.write(operation.data.subarray(runStart - operation.offset, runEnd - operation.offset), runStart);
    runStart = -1;
  };
  for (let at = operation.offset; at < end;) {
    const sector = Math.floor(at / SECTOR_BYTES);
    const sectorEnd = Math.min(end, (sector + 1) * SECTOR_BYTES);
    const kept =
      sectorEnd <= limit && !lostSectors.has(sector) && (lucky === "all" || (lucky === "some" && random.chance(0.5)));
    if (kept) {
      if (runStart < 0) runStart = at;
    } else {
      lostSectors.add(sector);
      applyRun(at);
    }
    at = sectorEnd;
  }
  applyRun(end);
  // The size may have reached the medium without the content: the new part of the file reads as zeroes.
  if (operation.kind === "write" && end > table.sizeBytes && end <= limit && random.chance(0.3)) table.truncate(end);
}
