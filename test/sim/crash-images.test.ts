import { describe, expect, it } from "vitest";
import type { Durability } from "../../proto/words.ts";
import { CRASH_STAGES, lookAtImages } from "./crash-images.ts";

/**
 * Crash images: for every sequence of up to three operations, what its last one may leave of one side's disk, whenever
 * the power fails and whichever unsynced changes survive it; and with durability `process` what a killed process
 * leaves. Each stage says which side dies, and what must hold then. There are more images than can be looked at each
 * time, so a run draws some; `COLOBUS_CRASH_IMAGES` is about how many of each stage, or `all`.
 */
const IMAGES_IN_CI = 150;
const IMAGES_HERE = 200;
/** Those of killed processes: there are fewer of them. */
const PROCESS_SHARE = 0.25;
/** Choices are drawn before it is known which come to the same image, so that fewer may be found than were asked for. */
const FOUND_SHARE_MIN = 0.5;

const wanted = process.env.COLOBUS_CRASH_IMAGES ?? String(process.env.CI === "true" ? IMAGES_IN_CI : IMAGES_HERE);
const isExhaustive = wanted === "all";
const total = isExhaustive ? Number.POSITIVE_INFINITY : Number(wanted);
/** Who asks for a number of them waits for them. */
const limits = process.env.COLOBUS_CRASH_IMAGES === undefined ? {} : { timeout: 0 };

const cases = CRASH_STAGES.flatMap((stage) =>
  (["power", "process"] as const satisfies readonly Durability[]).map((durability) => ({ stage, durability })),
);

describe("what a crash may leave", () => {
  it.each(cases)("of the $stage.name holds what was promised: $durability", limits, async ({ stage, durability }) => {
    const count = Math.ceil(total * (durability === "power" ? 1 - PROCESS_SHARE : PROCESS_SHARE));
    const { looked, again, choices, sequences } = await lookAtImages(stage, durability, count);
    process.stdout.write(
      `crash images of the ${stage.name}, durability ${durability}: ${looked} looked at, ${again} of them twice, ` +
        `of ${choices} choices in ${sequences} sequences\n`,
    );
    expect(looked).toBeGreaterThanOrEqual(Math.min(count, 1_000) * FOUND_SHARE_MIN);
  });
});
