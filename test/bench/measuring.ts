/** A directory that the measured disks lie in. */
export interface Place {
  readonly name: "memory" | "disk";
  readonly directory: string;
}

export interface Row {
  readonly what: string;
  /** By name and unit. */
  readonly figures: Readonly<Record<string, number>>;
}

/** Two figures of one run, compared: the only thing that means anything on another day. */
export interface Ratio {
  readonly what: string;
  readonly ratio: number;
  /** What the ratio has to keep below; undefined: it is for information. */
  readonly atMost: number | undefined;
}

export interface Measured {
  readonly rows: readonly Row[];
  readonly ratios: readonly Ratio[];
}

export function isKept({ ratio, atMost = Infinity }: Ratio): boolean {
  return ratio <= atMost;
}

export function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((left, right) => left - right);
  const middle = Math.floor(sorted.length / 2);
  const high = sorted[middle] ?? 0;
  return sorted.length % 2 === 1 ? high : (high + (sorted[middle - 1] ?? 0)) / 2;
}
