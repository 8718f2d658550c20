import { describe, expect, it } from "vitest";
import type { Durability } from "../../proto/words.ts";
import { MirrorScene } from "./mirror-scene.ts";

/**
 * Another program changes the target of a mirror while the agent is cleanly stopped, and the next process, which finds that
 * out, dies at each of its storage calls. The one behind it believes nothing of what the target had.
 */
const CALLS_MIN = 10;
const LIFE_MS = 2_000;

/** A mirror that has everything, whose agent was stopped in good order. */
async function stopped(seed: number, durability: Durability, { isPaused = false } = {}): Promise<MirrorScene> {
  const scene = new MirrorScene(seed, durability);
  await scene.start();
  await scene.do("a mirror", async () => {
    await scene.begin("background");
    await scene.untilReady();
    if (isPaused) await scene.pause();
  });
  await scene.stop();
  return scene;
}

async function expectWhole(scene: MirrorScene): Promise<void> {
  await scene.do("the end", () => scene.end("complete"));
  expect(scene.mirror).toMatchObject({ outcome: "pivoted" });
  await scene.checkEnd("pivoted");
}

/** False when the storage call never came. */
async function dieAt(dyingCall: number, durability: Durability): Promise<boolean> {
  const scene = await stopped(dyingCall, durability);
  scene.changeTarget();
  await scene.startDyingAt(dyingCall);
  await scene.world.run({ until: () => !scene.host.alive, forMs: LIFE_MS });
  const hasDied = !scene.host.alive;
  if (hasDied) await scene.restart();
  else scene.host.disk.faults.clear();
  await expectWhole(scene);
  return hasDied;
}

describe.each<Durability>(["process", "power"])("a mirror whose agent was cleanly stopped (%s)", (durability) => {
  it("copies everything to a target that was changed meanwhile, wherever the agent dies", async () => {
    let call = 1;
    while (await dieAt(call, durability)) call += 1;
    expect(call).toBeGreaterThan(CALLS_MIN);
  });

  it("does so too where it was paused, and another process had done nothing with the target", async () => {
    const scene = await stopped(1, durability, { isPaused: true });
    await scene.restart();
    await scene.stop();
    scene.changeTarget();
    await scene.restart();
    await scene.do("resume", () => scene.resume());
    await expectWhole(scene);
  });

  it("copies nothing again to one that was not", async () => {
    const scene = await stopped(1, durability);
    await scene.restart();
    const { doneBytes } = await scene.do("the end", async () => {
      await scene.untilReady();
      return scene.mirror?.progress ?? { doneBytes: undefined };
    });
    expect(doneBytes).toBe(0);
    await expectWhole(scene);
  });
});
