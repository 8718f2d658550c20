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

/** Decides what a loss of power leaves of one unsynced operation. `sector` counts from the operation's first one. */
export interface Fate {
  /** Of a change of size or of allocation, which happens as a whole. */
  readonly keepsWhole: boolean;
  keepsSector(sector: number): boolean;
  /** Of a write that made the file longer, and whose last sector is lost: the file is longer all the same. */
  readonly keepsSize: boolean;
}

/** What is unsynced, as far as the choice of what survives needs to know it. */
export interface UnsyncedOperation {
  readonly kind: Unsynced["kind"];
  /** Sectors that survive one by one; 1 for what happens as a whole. */
  readonly sectorCount: number;
  /** A write beyond the end of the file. */
  readonly grows: boolean;
}

/** Beyond this many unsynced operations the kernel writes the older half back by itself. */
const UNSYNCED_OPERATIONS_MAX = 512;

type Unsynced =
  | {
      readonly kind: "write";
      readonly offset: number;
      readonly length: number;
      readonly data: Uint8Array;
      readonly grows: boolean;
    }
  | { readonly kind: "zero"; readonly offset: number; readonly length: number; readonly keepAllocated: boolean }
  | { readonly kind: "allocate"; readonly offset: number; readonly length: number; readonly sizeBefore: number }
  | { readonly kind: "truncate"; readonly sizeBytes: number; readonly sizeBefore: number };

/** What a file is that two hosts can reach: which of them has it in its cache, and what else hosts remember of it. */
export interface SharedMedium {
  /** The host whose cache holds what is unsynced: the one that has opened the file for writing last. */
  writer: object;
  /** What other hosts have read through their page cache: it stays there, whatever the writer does. */
  readonly caches: Map<object, Map<number, Uint8Array>>;
  /** Hosts write it beside each other, each pages of its own, as the mark of a shared disk. */
  readonly isPagewise: boolean;
  /** A lock keeps off processes of the same host only, as on a LUN. */
  readonly locksApart: boolean;
}

/** What a file that several hosts can reach is like. */
export type Sharing = Partial<Pick<SharedMedium, "isPagewise" | "locksApart">>;

export class SimInode {
  /** Set for a file that two hosts can reach. */
  shared: SharedMedium | undefined;
  /** A block device: no process changes its size. */
  isDevice = false;
  /** What readers see. */
  #current: PageTable;
  /** What the medium holds. */
  #durable: PageTable;
  #unsynced: Unsynced[] = [];
  /** Sequence number of the first unsynced operation. */
  #firstUnsynced = 0;
  /** Names that lead here, and files that are open. */
  references = 0;
  /** By what: the host's disk where hosts lock apart. */
  readonly locks = new Set<object>();

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

  /** Operations that a loss of power may undo, oldest first. */
  unsynced(): UnsyncedOperation[] {
    return this.#unsynced.map((operation) => ({
      kind: operation.kind,
      sectorCount: sectorCountOf(operation),
      grows: operation.kind === "write" && operation.grows,
    }));
  }

  /** To be given to `makeDurable`: covers everything done so far. */
  get position(): number {
    return this.#firstUnsynced + this.#unsynced.length;
  }

  write(source: Uint8Array, offset: number): void {
    const grows = offset + source.length > this.#current.sizeBytes;
    this.#current.write(source, offset);
    this.#note({ kind: "write", offset, length: source.length, data: new Uint8Array(source), grows });
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
    if (taken.length > 0) keepSome(this.#durable, taken, drawFates(taken.length, random));
  }

  /** Power is lost: an arbitrary legal part of what was not durable survives, and is all there is. */
  losePower(random: SeededRandom): void {
    this.makeUncertain(this.position, random);
    this.#restart();
  }

  /** Power is lost, and what survives was chosen: `fateOf` is asked once about each unsynced operation, in order. */
  losePowerKeeping(fateOf: (operation: number) => Fate): void {
    keepSome(this.#durable, this.#take(this.position), fateOf);
    this.#restart();
  }

  /**
   * Fills `target` as a host does that is not the writer: sector by sector with what the medium has, or with what the
   * writer's kernel may have written back by itself.
   */
  readMedium(target: Uint8Array, offset: number, random: SeededRandom): void {
    for (let done = 0; done < target.length;) {
      const length = Math.min(target.length - done, SECTOR_BYTES - ((offset + done) % SECTOR_BYTES));
      const table = random.chance(0.5) ? this.#durable : this.#current;
      table.read(target.subarray(done, done + length), offset + done);
      done += length;
    }
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
    copy.isDevice = this.isDevice;
    return copy;
  }

  #restart(): void {
    this.#current = this.#durable.clone();
    this.locks.clear();
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

/** The fates of `count` operations as chance will have them. They are to be asked for in order. */
function drawFates(count: number, random: SeededRandom): (operation: number) => Fate {
  const luck = random.pick<Luck>(["everything", "nothing", "in-order", "any", "any", "any"]);
  const survivors = luck === "in-order" ? random.below(count + 1) : luck === "nothing" ? 0 : count;
  return (operation) => {
    const lucky =
      luck === "any" ? random.pick(["all", "none", "some"] as const) : operation < survivors ? "all" : "none";
    return {
      keepsWhole: lucky !== "none",
      keepsSector: () => lucky === "all" || (lucky === "some" && random.chance(0.5)),
      get keepsSize() {
        return luck !== "nothing" && random.chance(0.3);
      },
    };
  };
}

/** Applies what survives of `operations`, within the rules of the cache. */
function keepSome(table: PageTable, operations: readonly Unsynced[], fateOf: (operation: number) => Fate): void {
  /** Sectors that lost an operation, and so lose all later ones. */
  const lostSectors = new Set<number>();
  /** No content is kept behind the first change of size that was lost, and no later change of size. */
  let limit = Number.POSITIVE_INFINITY;
  for (const [index, operation] of operations.entries()) {
    const fate = fateOf(index);
    switch (operation.kind) {
      case "write":
      case "zero":
        keepSectors(table, operation, fate, limit, lostSectors);
        break;
      case "truncate":
        if (limit !== Number.POSITIVE_INFINITY || !fate.keepsWhole)
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
        if (limit === Number.POSITIVE_INFINITY && fate.keepsWhole) table.allocate(operation.offset, operation.length);
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
  fate: Fate,
  limit: number,
  lostSectors: Set<number>,
): void {
  const end = operation.offset + operation.length;
  const firstSector = Math.floor(operation.offset / SECTOR_BYTES);
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
    if (sectorEnd <= limit && !lostSectors.has(sector) && fate.keepsSector(sector - firstSector)) {
      if (runStart < 0) runStart = at;
    } else {
      lostSectors.add(sector);
      applyRun(at);
    }
    at = sectorEnd;
  }
  applyRun(end);
  // The size may have reached the medium without the content: the new part of the file reads as zeroes.
  if (operation.kind === "write" && end > table.sizeBytes && end <= limit && fate.keepsSize) table.truncate(end);
}

function sectorCountOf(operation: Unsynced): number {
  if (operation.kind !== "write" && operation.kind !== "zero") return 1;
  const first = Math.floor(operation.offset / SECTOR_BYTES);
  return Math.ceil((operation.offset + operation.length) / SECTOR_BYTES) - first;
}
