import { expect, it } from "vitest";
import { sleep } from "../../../../shared/host/sleep.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { turn } from "../../../support/memory-storage.ts";

it("sleeps for as long as the clock says", async () => {
  const clock = new ManualClock();
  let isAwake = false;
  const sleeping = sleep(clock, 100).then(() => {
    isAwake = true;
  });
  clock.advance(99);
  await turn();
  expect(isAwake).toBe(false);
  clock.advance(1);
  await sleeping;
});
