/** Lets others wait for something that may hold after any of many changes. */
export class Changing {
  readonly #watchers = new Set<() => void>();

  /** Something has changed: who waits looks again. */
  changed(): void {
    for (const watcher of this.#watchers) watcher();
  }

  /** Resolves when `holds` returns true, now or after a change. Rejects with what it throws. */
  until(holds: () => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const look = (): void => {
        try {
          if (!holds()) return;
          resolve();
        } catch (error) {
          reject(error instanceof Error ? error : new Error(String(error)));
        }
        this.#watchers.delete(look);
      };
      this.#watchers.add(look);
      look();
    });
  }
}
