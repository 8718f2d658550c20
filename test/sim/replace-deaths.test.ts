import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import type { Durability } from "../../proto/words.ts";
import { MirrorScene } from "./mirror-scene.ts";
import { copyPath } from "./pair.ts";

/**
 * The host of a primary whose disk has a copy dies at each of its storage calls while another image takes the place of that
 * copy. Started again it has the old copy or the new one, and never none; what was begun is finished; and both images of the
 * disk hold everything.
 */
const WITHIN_MS = 60_000;
const CALLS_MIN = 30;
/** Of the guest, while the new copy is brought what it lacks. */
const WRITES = 4;

/** Lives until its `dyingCall`-th storage call, and once more. undefined when the copy was replaced before that. */
async function dieAt(dyingCall: number, durability: Durability): Promise<"replaced" | "begun" | "kept" | undefined> {
  const scene = new MirrorScene(dyingCall, durability, { hasCopy: true });
  const { world, host } = scene;
  await scene.start();
  host.disk.faults.crashAt(dyingCall, durability);
  let isAnswered = false;
  let isOver = false;
  const live = async (): Promise<void> => {
    isAnswered = await scene.replaceCopy();
    for (let count = 0; count < WRITES && host.alive; count += 1) await scene.write();
    await scene.untilSound();
    isOver = true;
  };
  world.schedule(0, () => void live());
  await world.run({ until: () => !host.alive || isOver, forMs: WITHIN_MS });
  if (host.alive) {
    scene.checkCopy(true);
    return undefined;
  }
  await scene.restart();
  const names = scene.copies.map(({ name }) => name);
  const [, b] = scene.copies;
  assert(b?.name === "b", "there is a copy whenever that is");
  const isReplaced = b.path !== copyPath({ name: "vda" });
  const found = isReplaced ? "replaced" : names.includes("b.new") ? "begun" : "kept";
  assert(!isAnswered || found !== "kept", "what was answered is forgotten");
  await scene.do("the end", async () => {
    await scene.untilSound();
    await scene.write();
  });
  scene.checkCopy(found !== "kept");
  return found;
}

describe("a copy that is replaced, while its host dies at every storage call", () => {
  it.each<Durability>(["process", "power"])("is the old one or the new one: %s", async (durability) => {
    const found = new Map<string, number>();
    for (let call = 1; ; call += 1) {
      const one = await dieAt(call, durability);
      if (one === undefined) break;
      found.set(one, (found.get(one) ?? 0) + 1);
    }
    expect([...found.keys()].sort()).toEqual(["begun", "kept", "replaced"]);
    expect(found.get("begun")).toBeGreaterThan(CALLS_MIN);
  });
});
