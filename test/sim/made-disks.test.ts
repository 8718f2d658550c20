import { describe, expect, it } from "vitest";
import { imagePath } from "./pair.ts";
import { RoleSwap } from "./role-swap.ts";
import { ScriptedPair } from "./scripted-pair.ts";

/**
 * A secondary makes its images itself, in the primary's order, and its own record has them in another one: what this
 * process knows of the disks by their index is of the same disks as what the next one reads.
 */
const MODES = ["colo", "mc"] as const;
const DRAIN_MS = 10_000;

/** What came after the last checkpoint is on the secondary, and the network parts the two. */
async function parted(mode: (typeof MODES)[number]): Promise<{ scripted: ScriptedPair; swap: RoleSwap }> {
  const scripted = new ScriptedPair(1, "power", { mode, createImages: true });
  const { secondary } = scripted.pair;
  const images = scripted.disks.map(({ name }) => ({ name, image: imagePath({ name }) }));
  secondary.reconfigure({ disks: images.toReversed() });
  const swap = new RoleSwap(scripted, secondary.host);
  await scripted.start();
  await scripted.fillOverlays();
  await scripted.do("the partition", () => swap.part());
  return { scripted, swap };
}

describe.each(MODES)("a promoted secondary that has made its images, in mode %s", (mode) => {
  it("has the same differences of each disk after its death", async () => {
    const { scripted, swap } = await parted(mode);
    const { secondary } = scripted.pair;
    expect(await scripted.do("the failover", () => swap.promote(false))).toBe(true);
    secondary.host.crash("process");
    secondary.host.restart();
    await scripted.do("the start", () => secondary.start());
    await scripted.do("the end", () => swap.checkTogether());
  });

  it("finds each image as it was left by a clean stop", async () => {
    const { scripted, swap } = await parted(mode);
    const { secondary } = scripted.pair;
    expect(await scripted.do("the failover", () => swap.promote(false))).toBe(true);
    await scripted.do("the merge", () => swap.merged());
    await scripted.do("the stop", () => secondary.stop(DRAIN_MS));
    secondary.host.crash("process");
    secondary.host.restart();
    expect(await scripted.do("the start", () => secondary.start())).toBe(true);
    await scripted.do("the end", () => swap.checkTogether());
  });
});
