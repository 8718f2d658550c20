import type { Clock, Timer } from "./clock.ts";

/** Does `work` each time that so long has passed, until it is cancelled. */
export function every(clock: Pick<Clock, "after">, everyMs: number, work: () => void): Timer {
  const again = (): Timer =>
    clock.after(everyMs, () => {
      timer = again();
      work();
    });
  let timer = again();
  return { cancel: () => timer.cancel() };
}
