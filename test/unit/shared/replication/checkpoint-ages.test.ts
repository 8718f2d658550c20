import { describe, expect, it } from "vitest";
import { PREPARED_EPOCHS_MAX } from "../../../../proto/limits.ts";
import { CheckpointAges } from "../../../../shared/replication/checkpoint-ages.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { stateRecord } from "../../../support/state-records.ts";

const HOUR_MS = 3_600_000;

/** A clock that somebody sets. */
class SetClock extends ManualClock {
  offMs = 0;

  override wallMs(): number {
    return super.wallMs() + this.offMs;
  }
}

function agesOf(clock: SetClock, record = stateRecord()): CheckpointAges {
  return new CheckpointAges(clock, record);
}

describe("the ages of checkpoints", () => {
  it.each([HOUR_MS, -HOUR_MS])("count on by the monotonic clock, whether the other is set by %i ms", (offMs) => {
    const clock = new SetClock();
    const left = { epoch: 3, atMs: clock.wallMs() - 500 };
    const ages = agesOf(clock, stateRecord({ committed: left }));
    expect(ages.take(4, [3])).toEqual({ epoch: 4, atMs: clock.wallMs() });
    clock.offMs = offMs;
    clock.advance(1000);
    expect(ages.ageMs(3)).toBe(1500);
    expect(ages.ageMs(4)).toBe(1000);
    // The next process reads the clock as it is set now.
    expect(ages.recorded(4)).toEqual({ epoch: 4, atMs: clock.wallMs() - 1000 });
    expect(agesOf(clock, stateRecord({ committed: ages.recorded(4) })).ageMs(4)).toBe(1000);
  });

  it("are those of all that the record names, at the start, and never less than nothing", () => {
    const clock = new SetClock();
    const nowMs = clock.wallMs();
    const ages = agesOf(
      clock,
      stateRecord({
        retained: [{ epoch: 1, atMs: nowMs - 3000 }],
        committed: { epoch: 2, atMs: nowMs - 2000 },
        prepared: [{ epoch: 3, atMs: nowMs + HOUR_MS }],
      }),
    );
    expect([1, 2, 3].map((epoch) => ages.ageMs(epoch))).toEqual([3000, 2000, 0]);
    expect(agesOf(clock, stateRecord({ committed: { epoch: 2, atMs: nowMs - 2000 } })).ageMs(1)).toBe(2000);
    clock.advance(10);
    expect([1, 2, 3].map((epoch) => ages.ageMs(epoch))).toEqual([3010, 2010, 10]);
  });

  it("of what this process knows nothing of is not too low", () => {
    const clock = new SetClock();
    clock.advance(100);
    const ages = agesOf(clock);
    clock.advance(1000);
    expect(ages.ageMs(2)).toBe(1000);
    ages.take(5, []);
    clock.advance(10);
    expect([2, 5, 6].map((epoch) => ages.ageMs(epoch))).toEqual([1010, 10, 1010]);
    expect(ages.recorded(0)).toEqual({ epoch: 0, atMs: 0 });
  });

  it("are remembered of what is needed, and of the last that may be under way", () => {
    const clock = new SetClock();
    const ages = agesOf(clock);
    const last = 3 * PREPARED_EPOCHS_MAX;
    for (let epoch = 1; epoch <= last; epoch += 1) {
      ages.take(epoch, [2]);
      clock.advance(1);
    }
    const oldest = last - PREPARED_EPOCHS_MAX + 1;
    const taken = (epoch: number): number => last - epoch + 1;
    expect([2, oldest, last].map((epoch) => ages.ageMs(epoch))).toEqual([2, oldest, last].map(taken));
    // Forgotten: as old as the process.
    expect(ages.ageMs(oldest - 1)).toBe(last);
  });
});
