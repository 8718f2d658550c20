/**
 * Owns which bytes of a disk one epoch's buffer has, and where in its log they lie.
 *
 * How: the parts of a cluster, *fragments*, form a list that ascends and does not overlap; later data cuts earlier data
 * out of the way. Whole clusters of zeroes are in a bitmap, below the fragments of the cluster: so a trim of terabytes
 * costs little. Fragments live in typed arrays, 24 bytes each, since the garbage collector would walk objects.
 *
 * Does not: read or write anything.
 */
import assert from "node:assert/strict";
import { ClusterBitmap, clusterRuns, intersectsRange } from "../shared/block/cluster-bitmap.ts";
import { clusterEndOffset, type ClusterGeometry } from "../shared/block/cluster-geometry.ts";
import { ClusterTable } from "./cluster-table.ts";

/** Positions that lie in no log: zeroes, and zeroes whose space is freed. */
export const ZERO_POSITION = -1;
export const DISCARD_POSITION = -2;

/** The position of the byte `by` behind `position`. */
export function positionBehind(position: number, by: number): number {
  return position < 0 ? position : position + by;
}

const FIRST_CAPACITY = 64;
const NONE = -1;

export class FragmentIndex {
  readonly #geometry: ClusterGeometry;
  /** The first fragment of each cluster with a list. */
  readonly #heads = new ClusterTable();
  #starts = new Uint32Array(FIRST_CAPACITY);
  #lengths = new Uint32Array(FIRST_CAPACITY);
  #positions = new Float64Array(FIRST_CAPACITY);
  #nexts = new Int32Array(FIRST_CAPACITY);
  /** Slots below it were used; those of dropped fragments form a list. */
  #used = 0;
  #dropped = NONE;
  #count = 0;
  /** Clusters with a list. */
  readonly #listed = new ClusterBitmap();
  readonly #zeroed = new ClusterBitmap();
  /** Those of the zeroed ones whose space is freed. */
  readonly #discarded = new ClusterBitmap();

  constructor(geometry: ClusterGeometry) {
    this.#geometry = geometry;
  }

  /** The number of fragments. */
  get count(): number {
    return this.#count;
  }

  get isEmpty(): boolean {
    return this.#listed.isEmpty && this.#zeroed.isEmpty;
  }

  has(cluster: number): boolean {
    return this.#heads.get(cluster) >= 0 || (!this.#zeroed.isEmpty && this.#zeroed.has(cluster));
  }

  intersects(first: number, end: number): boolean {
    if (end - first === 1) return this.has(first);
    return intersectsRange(this.#listed, first, end) || intersectsRange(this.#zeroed, first, end);
  }

  /** Clusters of which any byte is here. The caller owns the bitmap. */
  held(): ClusterBitmap {
    return ClusterBitmap.or(this.#listed, this.#zeroed);
  }

  /** Clusters that are nothing but zeroes whose space is not freed. The caller owns the bitmap. */
  onlyZeroed(): ClusterBitmap {
    const clusters = ClusterBitmap.andNot(this.#zeroed, this.#discarded);
    clusters.andNotInPlace(this.#listed);
    return clusters;
  }

  /** Clusters that are nothing but zeroes whose space is freed. The caller owns the bitmap. */
  onlyDiscarded(): ClusterBitmap {
    return ClusterBitmap.andNot(this.#discarded, this.#listed);
  }

  /** ZERO_POSITION or DISCARD_POSITION where what no fragment has of the cluster is zeroes; undefined: it is not here. */
  zeroesOf(cluster: number): number | undefined {
    if (this.#zeroed.isEmpty || !this.#zeroed.has(cluster)) return undefined;
    return this.#discarded.has(cluster) ? DISCARD_POSITION : ZERO_POSITION;
  }

  /** The first fragment of the cluster, by its handle, which the next change may void; negative: there is none. */
  first(cluster: number): number {
    return this.#heads.get(cluster);
  }

  next(fragment: number): number {
    return this.#nexts[fragment] ?? NONE;
  }

  /** Where in its cluster the fragment begins. */
  startOf(fragment: number): number {
    return this.#starts[fragment] ?? 0;
  }

  lengthOf(fragment: number): number {
    return this.#lengths[fragment] ?? 0;
  }

  positionOf(fragment: number): number {
    return this.#positions[fragment] ?? 0;
  }

  /** [offset, offset+length) of the disk is what lies at `position` of the log, or zeroes, whatever it was before. */
  add(offset: number, length: number, position: number): void {
    const { clusterBytes } = this.#geometry;
    const end = offset + length;
    let at = offset;
    while (at < end) {
      const cluster = Math.floor(at / clusterBytes);
      const clusterEnd = clusterEndOffset(this.#geometry, cluster + 1);
      const start = at - cluster * clusterBytes;
      if (position < 0 && start === 0 && end >= clusterEnd) {
        // The last cluster of the disk may be short, and is whole then.
        const endCluster =
          end >= this.#geometry.sizeBytes ? this.#geometry.clusterCount : Math.floor(end / clusterBytes);
        this.#zero(cluster, endCluster, position);
        at = clusterEndOffset(this.#geometry, endCluster);
      } else {
        const pieceEnd = Math.min(end, clusterEnd);
        this.#insert(cluster, start, start + pieceEnd - at, positionBehind(position, at - offset));
        at = pieceEnd;
      }
    }
  }

  #zero(first: number, end: number, position: number): void {
    const listed = ClusterBitmap.and(this.#listed, ClusterBitmap.fromRange(first, end));
    for (const run of clusterRuns(listed)) {
      for (let cluster = run.first; cluster < run.end; cluster += 1) this.#dropList(cluster);
    }
    this.#listed.removeRange(first, end);
    this.#zeroed.addRange(first, end);
    if (position === DISCARD_POSITION) this.#discarded.addRange(first, end);
    else this.#discarded.removeRange(first, end);
  }

  #dropList(cluster: number): void {
    for (let fragment = this.first(cluster); fragment >= 0;) {
      const next = this.next(fragment);
      this.#drop(fragment);
      fragment = next;
    }
    this.#heads.remove(cluster);
  }

  #insert(cluster: number, start: number, end: number, position: number): void {
    let previous = NONE;
    let current = this.first(cluster);
    if (current < 0) this.#listed.add(cluster);
    while (current >= 0 && this.startOf(current) + this.lengthOf(current) <= start) {
      previous = current;
      current = this.next(current);
    }
    if (current >= 0 && this.startOf(current) < start) {
      const currentStart = this.startOf(current);
      const currentEnd = currentStart + this.lengthOf(current);
      this.#lengths[current] = start - currentStart;
      previous = current;
      current = this.next(current);
      if (currentEnd > end) {
        const behind = positionBehind(this.positionOf(previous), end - currentStart);
        current = this.#take(end, currentEnd - end, behind, current);
      }
    }
    while (current >= 0 && this.startOf(current) + this.lengthOf(current) <= end) {
      const next = this.next(current);
      this.#drop(current);
      current = next;
    }
    if (current >= 0 && this.startOf(current) < end) {
      const cut = end - this.startOf(current);
      this.#starts[current] = end;
      this.#lengths[current] = this.lengthOf(current) - cut;
      this.#positions[current] = positionBehind(this.positionOf(current), cut);
    }
    const taken = this.#take(start, end - start, position, current);
    if (previous < 0) this.#heads.set(cluster, taken);
    else this.#nexts[previous] = taken;
  }

  #take(start: number, length: number, position: number, next: number): number {
    let fragment = this.#dropped;
    if (fragment >= 0) this.#dropped = this.next(fragment);
    else {
      if (this.#used === this.#starts.length) this.#grow();
      fragment = this.#used;
      this.#used += 1;
    }
    this.#count += 1;
    this.#starts[fragment] = start;
    this.#lengths[fragment] = length;
    this.#positions[fragment] = position;
    this.#nexts[fragment] = next;
    return fragment;
  }

  #drop(fragment: number): void {
    assert(fragment >= 0 && fragment < this.#used);
    this.#count -= 1;
    this.#nexts[fragment] = this.#dropped;
    this.#dropped = fragment;
  }

  #grow(): void {
    const capacity = this.#starts.length * 2;
    const grown = <T extends Uint32Array | Float64Array | Int32Array>(larger: T, old: T): T => {
      larger.set(old);
      return larger;
    };
    this.#starts = grown(new Uint32Array(capacity), this.#starts);
    this.#lengths = grown(new Uint32Array(capacity), this.#lengths);
    this.#positions = grown(new Float64Array(capacity), this.#positions);
    this.#nexts = grown(new Int32Array(capacity), this.#nexts);
  }
}
