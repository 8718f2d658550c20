import type { Clock } from "./clock.ts";

/** Resolves `ms` from now. */
export function sleep(clock: Pick<Clock, "after">, ms: number): Promise<void> {
  return new Promise((resolve) => {
    clock.after(ms, resolve);
  });
}

/** Resolves when others have had their turn: for work that may go on long without ever waiting for the device. */
export function letOthersRun(clock: Pick<Clock, "defer">): Promise<void> {
  return new Promise((resolve) => {
    clock.defer(resolve);
  });
}
