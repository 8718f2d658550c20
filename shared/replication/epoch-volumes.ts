/** Counts writes by the epoch that they belong to, for what a failover would lose. */
export class EpochVolumes {
  readonly #volumes = new Map<number, { writes: number; bytes: number }>();

  add(epoch: number, writes: number, bytes: number): void {
    const volume = this.#volumes.get(epoch);
    if (volume === undefined) this.#volumes.set(epoch, { writes, bytes });
    else {
      volume.writes += writes;
      volume.bytes += bytes;
    }
  }

  /** Forgets the epochs up to `epoch`: nothing returns to before their end. */
  dropThrough(epoch: number): void {
    for (const counted of this.#volumes.keys()) if (counted <= epoch) this.#volumes.delete(counted);
  }

  /** Everything counted of the epochs after `epoch`. */
  total(epoch = 0): { readonly writes: number; readonly bytes: number } {
    let writes = 0;
    let bytes = 0;
    for (const [counted, volume] of this.#volumes) {
      if (counted <= epoch) continue;
      writes += volume.writes;
      bytes += volume.bytes;
    }
    return { writes, bytes };
  }
}
