import { describe, expect, it } from "vitest";
import type { Durability } from "../../proto/words.ts";
import { lookAtImages } from "./crash-images.ts";

/**
 * Crash images: for every sequence of up to three operations, what its last one may leave of the secondary's disk,
 * whenever the power fails and whichever unsynced changes survive it; and with durability `process` what a killed
 * process leaves. The secondary must start on each image, show the checkpoint that it owes, bit for bit on both disks,
 * and become equal to its primary again. There are more images than can be looked at each time, so a run draws some;
 * `COLOBUS_CRASH_IMAGES` is about how many, or `all`.
 */
const IMAGES_IN_CI = 4_000;
const IMAGES_HERE = 800;
/** Those of killed processes: there are fewer of them. */
const PROCESS_SHARE = 0.2;

const wanted = process.env.COLOBUS_CRASH_IMAGES ?? String(process.env.CI === "true" ? IMAGES_IN_CI : IMAGES_HERE);
const isExhaustive = wanted === "all";
const total = isExhaustive ? Number.POSITIVE_INFINITY : Number(wanted);
const limits = isExhaustive ? { timeout: 0 } : {};

async function look(durability: Durability, count: number): Promise<void> {
  const { looked, choices, sequences } = await lookAtImages(durability, count);
  process.stdout.write(
    `crash images, durability ${durability}: ${looked} looked at, of ${choices} choices in ${sequences} sequences\n`,
  );
  expect(looked).toBeGreaterThan(Math.min(count, 1_000) / 2);
}

describe("what a crash may leave of the secondary", () => {
  it("holds what was promised, whatever a loss of power leaves at any moment", limits, async () => {
    await look("power", Math.ceil(total * (1 - PROCESS_SHARE)));
  });

  it("holds what was promised, when the process is killed at any moment", limits, async () => {
    await look("process", Math.ceil(total * PROCESS_SHARE));
  });
});
