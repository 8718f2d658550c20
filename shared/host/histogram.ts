/** How often values fell between fixed bounds, and their sum: what a Prometheus histogram is made of. */
export class Histogram {
  /** Upper bounds, ascending; one more bucket takes what is above the last. */
  readonly bounds: readonly number[];
  readonly #counts: Float64Array;
  #sum = 0;

  constructor(bounds: readonly number[]) {
    this.bounds = bounds;
    this.#counts = new Float64Array(bounds.length + 1);
  }

  /** Of everything that was observed. */
  get sum(): number {
    return this.#sum;
  }

  /** Takes note of `value`, `times` over. It allocates nothing. */
  observe(value: number, times = 1): void {
    let bucket = 0;
    while (value > (this.bounds[bucket] ?? Infinity)) bucket += 1;
    this.#counts[bucket] = (this.#counts[bucket] ?? 0) + times;
    this.#sum += value * times;
  }

  /** For each bound, and for infinity, how many values were not above it. */
  cumulative(): number[] {
    let total = 0;
    return Array.from(this.#counts, (count) => (total += count));
  }
}
