import type { ReplicatedContestant } from "./contestant.ts";
import type { RunningLoad } from "./fio.ts";

/** Takes a checkpoint every `everyMs` until the load has finished; one that takes longer delays the next. Returns how many. */
export async function checkpointEvery(
  contestant: ReplicatedContestant,
  everyMs: number,
  running: RunningLoad,
): Promise<number> {
  const ended = running.finished.then(
    () => true,
    () => true, // the caller awaits it too
  );
  for (let taken = 1; ; taken += 1) {
    const nextMs = performance.now() + everyMs;
    await contestant.checkpoint(running);
    if (await Promise.race([ended, sleepUntil(nextMs)])) return taken;
  }
}

function sleepUntil(ms: number): Promise<false> {
  return new Promise((resolve) => {
    setTimeout(() => resolve(false), Math.max(0, ms - performance.now()));
  });
}
