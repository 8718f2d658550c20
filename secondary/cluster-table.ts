const FIRST_CAPACITY = 256;
/** Slots of `#values` that hold no cluster, and those whose cluster was removed. */
const FREE = -2;
const REMOVED = -1;

/**
 * A number, not negative, for each of some clusters: a hash table in typed arrays, which is looked up in half the time of a
 * Map, and which the garbage collector does not walk.
 */
export class ClusterTable {
  #keys = new Uint32Array(FIRST_CAPACITY);
  #values = new Int32Array(FIRST_CAPACITY).fill(FREE);
  /** Slots that are not free. */
  #used = 0;

  /** The cluster's number; negative: it has none. */
  get(cluster: number): number {
    const value = this.#values[this.#slotOf(cluster)] ?? FREE;
    return value < 0 ? REMOVED : value;
  }

  set(cluster: number, value: number): void {
    let slot = this.#slotOf(cluster);
    if (this.#values[slot] === FREE) {
      // Half of the slots stay free, so that what is looked for lies near where it belongs.
      if (this.#used * 2 >= this.#values.length) {
        this.#rebuild();
        slot = this.#slotOf(cluster);
      }
      this.#used += 1;
      this.#keys[slot] = cluster;
    }
    this.#values[slot] = value;
  }

  remove(cluster: number): void {
    const slot = this.#slotOf(cluster);
    if (this.#values[slot] !== FREE) this.#values[slot] = REMOVED;
  }

  /** Where the cluster is, or would be put. */
  #slotOf(cluster: number): number {
    const mask = this.#values.length - 1;
    let slot = hashOf(cluster) & mask;
    while (this.#values[slot] !== FREE && this.#keys[slot] !== cluster) slot = (slot + 1) & mask;
    return slot;
  }

  /** Makes room: without what was removed, or else in twice as many slots. */
  #rebuild(): void {
    const [keys, values] = [this.#keys, this.#values];
    let held = 0;
    for (const value of values) if (value >= 0) held += 1;
    const capacity = held * 4 > values.length ? values.length * 2 : values.length;
    this.#keys = new Uint32Array(capacity);
    this.#values = new Int32Array(capacity).fill(FREE);
    this.#used = 0;
    for (let slot = 0; slot < values.length; slot += 1) {
      const value = values[slot] ?? FREE;
      if (value >= 0) this.set(keys[slot] ?? 0, value);
    }
  }
}

/** Spreads neighbours, so that runs of clusters do not fill one stretch of the table. */
function hashOf(cluster: number): number {
  const mixed = Math.imul(cluster, 0x9e3779b1);
  return mixed ^ (mixed >>> 15);
}
