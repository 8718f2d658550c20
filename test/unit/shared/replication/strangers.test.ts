import { expect, it } from "vitest";
import { REFUSAL_REASONS_MAX, REFUSAL_TOLD_EVERY_MS } from "../../../../proto/limits.ts";
import { Strangers } from "../../../../shared/replication/strangers.ts";
import { ManualClock } from "../../../support/manual-clock.ts";

it("strangers who were refused are told of a limited number of times, and again later", () => {
  const clock = new ManualClock();
  const strangers = new Strangers(clock);
  const toldOf = (count: number): number =>
    Array.from({ length: count }, () => strangers.mayTell()).filter(Boolean).length;
  expect(toldOf(10)).toBe(10);
  clock.advance(REFUSAL_TOLD_EVERY_MS - 1);
  expect(toldOf(1000)).toBe(REFUSAL_REASONS_MAX - 10);
  clock.advance(1);
  expect(toldOf(1000)).toBe(REFUSAL_REASONS_MAX);
});
