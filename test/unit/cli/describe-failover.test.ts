import { describe, expect, it } from "vitest";
import { describeFailover } from "../../../cli/describe-failover.ts";
import type { FailoverAnswer, ForeseenClaim } from "../../../proto/control-api.ts";
import type { ArbiterOutlook } from "../../../proto/words.ts";

const DRY: FailoverAnswer = {
  already: false,
  dryRun: true,
  startsVm: false,
  mode: "colo",
  epoch: 42,
  ageMs: 1_200,
  wouldLose: { writes: 0, bytes: 0, atLeast: false },
  discardedActiveBytes: 0,
  mergeBytes: 1024,
  jobs: [],
};

/** What is said of each, beside a reason. */
const SAID: Record<ArbiterOutlook, string> = {
  granted: "the arbiter would let it",
  promised: "would wait 3.2 s first: why",
  held: "would wait first, and fail while that goes on: why",
  overruled: "would overrule the arbiter: why",
  untold: "the arbiter would be told later: why",
};

describe("what a failover would come to", () => {
  it.each(Object.entries(SAID))("says what the arbiter would make of it: %s", (word, said) => {
    const outlook = word as ArbiterOutlook;
    const arbiter: ForeseenClaim = {
      outlook,
      reason: outlook === "granted" ? null : "why",
      waitMs: outlook === "promised" ? 3_200 : null,
    };
    expect(describeFailover({ ...DRY, arbiter })).toEqual([
      "would become Primary from checkpoint 42, 1.2 s old, losing nothing",
      said,
      "1 KiB would be merged in the background",
    ]);
  });

  it("says nothing of an arbiter where there is none", () => {
    expect(describeFailover(DRY)).toHaveLength(2);
  });
});
