import type { Clock } from "./clock.ts";

/** Resolves `ms` from now. */
export function sleep(clock: Pick<Clock, "after">, ms: number): Promise<void> {
  return new Promise((resolve) => {
    clock.after(ms, resolve);
  });
}
