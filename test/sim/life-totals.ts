/** What is counted in one life: what happened in it, and the pairs of states that its two sides were seen in. */
export interface LifeCounts {
  readonly counts: Readonly<Record<string, number>>;
  readonly pairs: Readonly<Record<string, number>>;
}

/** What happened in many lives, added up. */
export class LifeTotals {
  lives = 0;
  readonly failed: number[] = [];
  readonly counts: Record<string, number> = {};
  readonly pairs: Record<string, number> = {};

  add(life: LifeCounts): void {
    this.lives += 1;
    addTo(this.counts, life.counts);
    addTo(this.pairs, life.pairs);
  }

  /** Adds what an earlier run has counted. */
  addTotals(earlier: LifeTotals): void {
    this.lives += earlier.lives;
    this.failed.push(...earlier.failed);
    addTo(this.counts, earlier.counts);
    addTo(this.pairs, earlier.pairs);
  }

  /** One line. */
  describe(): string {
    const counts = Object.entries(this.counts).sort(([left], [right]) => left.localeCompare(right));
    return [
      `${this.lives} lives lived, ${this.failed.length} failed`,
      ...counts.map(([name, count]) => `${name} ${Math.round(count)}`),
      `${Object.keys(this.pairs).length} pairs of states`,
    ].join("; ");
  }
}

function addTo(sums: Record<string, number>, more: Readonly<Record<string, number>>): void {
  for (const [name, count] of Object.entries(more)) sums[name] = (sums[name] ?? 0) + count;
}
