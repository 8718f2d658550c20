import { describe, expect, it } from "vitest";
import { present } from "../support/present.ts";
import { imagePath } from "./pair.ts";
import { RoleSwap } from "./role-swap.ts";
import { ScriptedPair } from "./scripted-pair.ts";

/**
 * A secondary makes its images itself, in the primary's order, and its own record has them in another one: what this
 * process knows of the disks is what the next one reads, and of the same disks.
 */
const MODES = ["colo", "mc"] as const;
const DRAIN_MS = 10_000;

interface Scene {
  readonly scripted: ScriptedPair;
  readonly swap: RoleSwap;
  /** A checkpoint that the secondary retains. */
  readonly first: number;
}

/** What came after the last checkpoint is on the secondary, and the network parts the two. */
async function parted(mode: (typeof MODES)[number]): Promise<Scene> {
  const scripted = new ScriptedPair(1, "power", { mode, createImages: true, retain: 2 });
  const { secondary } = scripted.pair;
  const images = scripted.disks.map((disk) => ({ name: disk.name, image: imagePath(disk) }));
  secondary.reconfigure({ disks: images.toReversed() });
  const swap = new RoleSwap(scripted, secondary.host);
  await scripted.start();
  const first = present(secondary.status).epoch.committed;
  await scripted.fillOverlays();
  await scripted.do("the partition", () => swap.part());
  return { scripted, swap, first };
}

/** As `parted`, and the secondary is back at its first checkpoint. */
async function rolledBack(mode: (typeof MODES)[number]): Promise<Scene> {
  const scene = await parted(mode);
  await scene.scripted.do("a rollback", () => scene.scripted.rollBack(scene.first));
  return scene;
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

describe.each(MODES)("a secondary that has made its images, and was rolled back since, in mode %s", (mode) => {
  it("is promoted, and the former primary gets what differs", async () => {
    const { scripted, swap } = await rolledBack(mode);
    expect(await scripted.do("the failover", () => swap.promote(false))).toBe(true);
    await scripted.do("the end", () => swap.checkTogether());
  });

  it("follows its primary again when an operator gives the rollback up", async () => {
    const { scripted, swap } = await rolledBack(mode);
    swap.setParted(false);
    await scripted.undoRollback();
    await scripted.checkEnd();
  });
});
