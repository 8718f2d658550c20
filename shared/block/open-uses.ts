/** Of uses that began before the same moment, how many are open. */
interface Generation {
  open: number;
  ended: (() => void) | undefined;
}

/** Counts what is under way on something that may be replaced, so that the old one is closed when nobody uses it any more. */
export class OpenUses {
  #present: Generation = { open: 0, ended: undefined };
  /** Resolves when nothing that began before the last `past` is under way. */
  #before: Promise<void> = Promise.resolve();

  /** `use` as it was given: it counts until it settles. */
  count<T>(use: Promise<T>): Promise<T> {
    const generation = this.#present;
    generation.open += 1;
    const end = (): void => {
      generation.open -= 1;
      if (generation.open === 0) generation.ended?.();
    };
    use.then(end, end);
    return use;
  }

  /** Resolves when everything that has begun by now has settled. */
  past(): Promise<void> {
    const generation = this.#present;
    this.#present = { open: 0, ended: undefined };
    const before = this.#before;
    this.#before = (async () => {
      await before;
      if (generation.open === 0) return;
      await new Promise<void>((resolve) => {
        generation.ended = resolve;
      });
    })();
    return this.#before;
  }
}
