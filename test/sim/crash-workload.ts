import assert from "node:assert/strict";
import type { Durability } from "../../proto/words.ts";
import { crashImages, crashUnits, fingerprint, survivalOf, type CrashImage } from "./crash-image.ts";
import type { CrashScene, CrashStage } from "./crash-scene.ts";
import { SeededRandom } from "./seeded-random.ts";
import { SimulatedCrash } from "./simulated-crash.ts";

/**
 * A few operations on a pair with two tiny disks, lived as often as it takes to lose one side at every moment of the
 * last of them, and of what goes on behind it. A *moment* is just before a change of that side's disk, or of what its
 * medium holds, and at the end: whatever was promised by then has to be kept by what is on the disk. The same workload
 * lives the same life up to the moment, so an image that was chosen for it in one life fits the next.
 */

/** One moment, and what is left then. */
export interface CrashCase {
  /** Changes of the disk that come before the moment, since the last operation began. */
  readonly changes: number;
  /** What the loss of power leaves; undefined: only the process is killed. */
  readonly image: CrashImage | undefined;
  /** The side dies a second time before that change which it makes since its new start, or at the end of what it does. */
  readonly again?: number | undefined;
}

/** Between operations: none, less than an fsync behind the stream takes to come, or time for all to be done. */
const PAUSES_MS = [0, 2, 300];
/** What goes on behind the last operation has ended by then. */
const QUIET_MS = 300;
const WITHIN_MS = 120_000;

export class CrashWorkload {
  readonly stage: CrashStage;
  readonly operations: readonly string[];
  readonly durability: Durability;
  readonly #seed: number;

  constructor(stage: CrashStage, operations: readonly string[], durability: Durability) {
    this.stage = stage;
    this.operations = operations;
    this.durability = durability;
    this.#seed = operations.reduce(
      (number, operation) => number * stage.operations.length + stage.operations.indexOf(operation) + 1,
      0,
    );
  }

  /** Lives the workload in peace, and checks its end. Returns every case: with durability `process` one for each moment. */
  async cases(random: SeededRandom): Promise<CrashCase[]> {
    const cases: CrashCase[] = [];
    const scene = this.#makeScene();
    await this.#live(scene, (changes) => {
      if (this.durability === "process") cases.push({ changes, image: undefined });
      else {
        const units = crashUnits(scene.host.disk);
        for (const image of crashImages(units, random)) cases.push({ changes, image });
      }
    });
    await scene.checkEnd();
    return cases;
  }

  /** Leaves out the cases in which the disk is left, and everything was promised, as in one before. */
  async distinct(cases: readonly CrashCase[]): Promise<CrashCase[]> {
    const found = new Map<string, CrashCase>();
    const scene = this.#makeScene();
    await this.#live(scene, (changes) => {
      const promises = scene.describePromises();
      for (const candidate of cases) {
        if (candidate.changes !== changes) continue;
        const disk = scene.host.disk.fork();
        if (candidate.image !== undefined) disk.crash("power", survivalOf(disk, candidate.image));
        const key = `${fingerprint(disk)} ${promises}`;
        if (!found.has(key)) found.set(key, candidate);
      }
    });
    return [...found.values()];
  }

  /** Lives up to the moment, has the side die of it, starts it again, and checks all that was promised. */
  async crashAt({ changes, image, again }: CrashCase): Promise<void> {
    const scene = this.#makeScene();
    let isDead = false;
    await this.#live(
      scene,
      (moment) => {
        if (moment !== changes) return;
        isDead = true;
        this.#die(scene, image);
        throw new SimulatedCrash(scene.host.name);
      },
      () => isDead,
    );
    assert(isDead, `there is no moment ${changes}`);
    if (again !== undefined) await this.#dieAgain(scene, again);
    await scene.recover();
  }

  #makeScene(): CrashScene {
    return this.stage.set(this.#seed, this.durability);
  }

  #die(scene: CrashScene, image: CrashImage | undefined): void {
    const { host } = scene;
    const kind = this.durability;
    host.disk.beforeChange = undefined;
    host.crash(kind, image === undefined ? undefined : survivalOf(host.disk, image));
    scene.died(kind);
  }

  /** Starts the side and has it die before its `again`th change, or when it has done everything, in a way that is drawn. */
  async #dieAgain(scene: CrashScene, again: number): Promise<void> {
    const { world, host } = scene;
    let changes = 0;
    let isDead = false;
    let hasEnded = false;
    const die = (): void => {
      const images = crashImages(crashUnits(host.disk), new SeededRandom(again));
      isDead = true;
      this.#die(scene, this.durability === "process" ? undefined : images[again % images.length]);
    };
    host.restart();
    host.disk.beforeChange = () => {
      changes += 1;
      if (changes <= again) return;
      die();
      throw new SimulatedCrash(host.name);
    };
    world.schedule(0, () => {
      scene.goOn().then(
        () => {
          hasEnded = true;
        },
        (error: unknown) => world.fail("what follows from the first death", error),
      );
    });
    await world.run({ until: () => isDead || hasEnded, forMs: WITHIN_MS });
    assert(isDead || hasEnded, "what follows from the first death does not end");
    if (!isDead) {
      world.schedule(0, die);
      await world.run({ until: () => isDead });
    }
  }

  /** Lives until all has ended, or `isDead`: `atMoment` ends it by throwing SimulatedCrash. */
  async #live(
    scene: CrashScene,
    atMoment: (changes: number) => void,
    isDead: () => boolean = () => false,
  ): Promise<void> {
    const { world, host } = scene;
    const pauses = world.random.fork("pauses");
    await scene.start();
    let changes = 0;
    for (const [index, operation] of this.operations.entries()) {
      const isLast = index === this.operations.length - 1;
      if (isLast) {
        host.disk.beforeChange = () => {
          changes += 1;
          atMoment(changes - 1);
        };
      }
      let hasEnded = false;
      world.schedule(0, () => {
        scene.perform(operation).then(
          () => {
            hasEnded = true;
          },
          (error: unknown) => {
            // The other side's part of it may well fail then.
            if (!isDead()) world.fail(operation, error);
          },
        );
      });
      await world.run({ until: () => hasEnded || isDead(), forMs: WITHIN_MS });
      if (isDead()) return;
      assert(hasEnded, `"${operation}" does not end`);
      await world.run({ until: isDead, forMs: isLast ? QUIET_MS : pauses.pick(PAUSES_MS) });
      if (isDead()) return;
    }
    host.disk.beforeChange = undefined;
    world.schedule(0, () => atMoment(changes));
    await world.run({ forMs: 1 });
  }
}
