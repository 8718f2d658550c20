import { describe, expect, it } from "vitest";
import { STATE_RETRY_MS } from "../../proto/limits.ts";
import type { CopyMode, Durability, JobOutcome } from "../../proto/words.ts";
import { MirrorScene } from "./mirror-scene.ts";

/**
 * The host of a primary that mirrors its disk dies at each of its storage calls, from the start of the mirror to its end.
 * Started again it has the old image or the new one, and the mirror goes on, or is over. Whatever it says to have come to
 * is true, and the guest and the secondary notice nothing.
 */
const WITHIN_MS = 60_000;
/** What a mirror of this disk takes at least. */
const CALLS_MIN = 30;
/** What a pause and some writes take. */
const PAUSE_CALLS_MIN = 3;

interface Ended {
  readonly scene: MirrorScene;
  readonly outcome: JobOutcome | undefined;
}

/** Lives until its `dyingCall`-th storage call, and once more. undefined when the mirror was over before that. */
async function dieAt(
  dyingCall: number,
  { durability, copyMode, how, hasCopy = false }: Omit<Case, "expected">,
): Promise<Ended | undefined> {
  const scene = new MirrorScene(dyingCall, durability, { hasCopy });
  const { world } = scene;
  await scene.start();
  scene.host.disk.faults.crashAt(dyingCall, durability);
  let isOver = false;
  world.schedule(0, () => void scene.run(copyMode, how).then(() => (isOver = true)));
  await world.run({ until: () => !scene.host.alive || isOver, forMs: WITHIN_MS });
  if (scene.host.alive) return undefined;
  await scene.restart();
  const outcome = scene.mirror?.outcome ?? undefined;
  if (outcome === undefined) {
    await scene.do("the mirror", () => (scene.mirror === undefined ? scene.run(copyMode, how) : scene.end(how)));
  }
  return { scene, outcome };
}

/** Lives until the `dyingCall`-th storage call behind the pause; false when there is none. */
async function dieWhilePaused(dyingCall: number, durability: Durability): Promise<boolean> {
  const scene = new MirrorScene(dyingCall, durability);
  const { world } = scene;
  await scene.start();
  await scene.do("the mirror", () => scene.begin("background"));
  scene.host.disk.faults.crashAt(dyingCall, durability);
  let isPaused = false;
  let isOver = false;
  const live = async (): Promise<void> => {
    isPaused = await scene.pause();
    for (let count = 0; count < 3; count += 1) await scene.write();
    isOver = true;
  };
  world.schedule(0, () => void live());
  await world.run({ until: () => !scene.host.alive || isOver, forMs: WITHIN_MS });
  if (scene.host.alive) return false;
  await scene.restart();
  if (isPaused) expect(scene.mirror).toMatchObject({ state: "paused", error: null });
  await scene.do("a write", () => scene.write());
  if (scene.mirror?.state === "paused") await scene.do("resume", () => scene.resume());
  await scene.do("the end", () => scene.end("complete"));
  expect(scene.mirror).toMatchObject({ outcome: "pivoted" });
  await scene.checkEnd("pivoted");
  return true;
}

interface Case {
  readonly durability: Durability;
  readonly copyMode: CopyMode;
  readonly how: "complete" | "cancel";
  readonly expected: JobOutcome;
  /** The disk has a copy beside its image. */
  readonly hasCopy?: boolean;
}

describe("a mirror, whose host dies at every storage call", () => {
  it.each<Case>([
    { durability: "process", copyMode: "background", how: "complete", expected: "pivoted" },
    { durability: "power", copyMode: "background", how: "complete", expected: "pivoted" },
    { durability: "power", copyMode: "write-blocking", how: "complete", expected: "pivoted" },
    { durability: "power", copyMode: "background", how: "cancel", expected: "completed" },
    { durability: "process", copyMode: "background", how: "complete", expected: "pivoted", hasCopy: true },
    { durability: "power", copyMode: "background", how: "complete", expected: "pivoted", hasCopy: true },
  ])(
    "goes on, or is over as it says: $durability, $copyMode, $how, with a copy $hasCopy",
    async ({ expected, ...one }) => {
      let deaths = 0;
      let ends = 0;
      for (;;) {
        const ended = await dieAt(deaths + 1, one);
        if (ended === undefined) break;
        deaths += 1;
        if (ended.outcome !== undefined) {
          ends += 1;
          expect(ended.outcome).toBe(expected);
        }
        expect(ended.scene.mirror).toMatchObject({ outcome: expected, error: null });
        await ended.scene.checkEnd(expected);
      }
      expect(deaths).toBeGreaterThan(CALLS_MIN);
      expect(ends).toBeGreaterThan(0);
    },
  );

  it.each<Durability>(["process", "power"])("stays paused once that was answered: %s", async (durability) => {
    let deaths = 0;
    while (await dieWhilePaused(deaths + 1, durability)) deaths += 1;
    expect(deaths).toBeGreaterThan(PAUSE_CALLS_MIN);
  });

  it.each<Durability>(["process", "power"])(
    "copies what was written after its beginning was refused, should it go on after all: %s",
    async (durability) => {
      let goesOn = 0;
      for (let seed = 1; seed <= 5; seed += 1) {
        const scene = new MirrorScene(seed, durability);
        await scene.start();
        const { faults } = scene.host.disk;
        const mend = faults.inject({ op: "sync", kind: "state", error: "io-error", times: Infinity });
        await scene.do("a mirror that cannot be recorded", async () => {
          const isBegun = await scene.begin("background", "none");
          expect(isBegun).toBe(false);
          for (let count = 0; count < 3; count += 1) await scene.write();
        });
        scene.host.crash("process");
        mend();
        await scene.restart();
        if (scene.mirror === undefined) continue;
        goesOn += 1;
        await scene.do("the end", () => scene.end("complete"));
        await scene.checkEnd("pivoted");
      }
      expect(goesOn).toBeGreaterThan(0);
    },
  );

  it.each<Durability>(["process", "power"])(
    "is refused at once where its bitmap cannot be removed, which is done as soon as that works: %s",
    async (durability) => {
      const scene = new MirrorScene(1, durability);
      await scene.start();
      const { disk } = scene.host;
      const bitmaps = (): string[] => disk.paths().filter((path) => /\/mirrors\/.*journal$/.test(path));
      let isRefused = false;
      disk.faults.intercept = ({ op, path, kind }) => {
        const isOfState = op === "sync" && kind === "state";
        isRefused ||= isOfState;
        const isOfBitmap = ["remove", "sync", "syncDirectory"].includes(op) && path.includes("/mirrors/");
        return isOfState || (isRefused && isOfBitmap) ? { error: "io-error" } : undefined;
      };
      await scene.do("a mirror that cannot be recorded", async () => {
        expect(await scene.begin("background", "none")).toBe(false);
        for (let count = 0; count < 3; count += 1) expect(await scene.write()).toBe(true);
      });
      expect(bitmaps()).toHaveLength(1);
      disk.faults.intercept = undefined;
      const begun = await scene.do("another mirror", () => scene.begin("background", "full", "/images/another.img"));
      expect(begun).toBe(true);
      await scene.world.run({ forMs: 2 * STATE_RETRY_MS });
      expect(bitmaps()).toHaveLength(1);
      expect(bitmaps()[0]).toContain("/mirrors/1/");
    },
  );
});
