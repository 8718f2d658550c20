import type { Durability } from "../../proto/words.ts";
import { bufferFailoverStage, failoverStage } from "./crash-failover.ts";
import { mirrorPrimaryStage, primaryStage } from "./crash-primary.ts";
import { mirrorStage } from "./crash-mirror.ts";
import { rejoinStage } from "./crash-rejoin.ts";
import type { CrashStage } from "./crash-scene.ts";
import { bufferStage, secondaryStage } from "./crash-secondary.ts";
import { CrashWorkload, type CrashCase } from "./crash-workload.ts";
import { SeededRandom } from "./seeded-random.ts";

/** Sequences of three operations that are drawn, where not all are lived. */
const LONG_SEQUENCES = 60;
/** For fewer images a sequence is not worth the lives that it takes to find them: fewer sequences are looked at then. */
const IMAGES_IN_SEQUENCE_MIN = 4;
/** Images are drawn before it is known which come to the same: so many times as many as are wanted. */
const SURPLUS = 3;
/** How often the side dies a second time, and within how many changes of its disk since its new start. */
const AGAIN_PROBABILITY = 0.25;
const AGAIN_WITHIN_CHANGES = 60;

export const CRASH_STAGES: readonly CrashStage[] = [
  secondaryStage,
  primaryStage,
  failoverStage,
  rejoinStage,
  bufferStage,
  bufferFailoverStage,
  mirrorStage,
  mirrorPrimaryStage,
];

export interface CrashTotals {
  /** Images on which the side that died was started. */
  readonly looked: number;
  /** Of those, images after which it died a second time. */
  readonly again: number;
  /** Of so many choices of what survives; different choices may leave the same image. */
  readonly choices: number;
  readonly sequences: number;
}

/**
 * Looks at about `count` crash images of all sequences of one and two operations, as far as that is enough for them, and
 * of some of three; Infinity: at every image of every sequence. An error names the image, and the command that looks at it again.
 */
export async function lookAtImages(stage: CrashStage, durability: Durability, count: number): Promise<CrashTotals> {
  const random = new SeededRandom(durability === "power" ? 1 : 2);
  const isExhaustive = count === Number.POSITIVE_INFINITY;
  const long = isExhaustive ? sequences(stage, 3) : draw(sequences(stage, 3), LONG_SEQUENCES, random);
  const single = sequences(stage, 1);
  const longer = [...sequences(stage, 2), ...long];
  const all = [...single, ...(isExhaustive ? longer : draw(longer, longer.length, random))];
  const totals = { looked: 0, again: 0, choices: 0, sequences: 0 };
  for (const [index, operations] of all.entries()) {
    if (totals.looked >= count) break;
    const share = Math.max(IMAGES_IN_SEQUENCE_MIN, Math.ceil((count - totals.looked) / (all.length - index)));
    const workload = new CrashWorkload(stage, operations, durability);
    const cases = await liveInPeace(workload, random.fork(operations.join()));
    const distinct = await workload.distinct(isExhaustive ? cases : draw(cases, share * SURPLUS, random));
    totals.choices += cases.length;
    totals.sequences += 1;
    for (const found of distinct.slice(0, share)) {
      const again = random.chance(AGAIN_PROBABILITY) ? random.below(AGAIN_WITHIN_CHANGES) : undefined;
      await look(workload, { ...found, again });
      totals.looked += 1;
      if (again !== undefined) totals.again += 1;
    }
  }
  return totals;
}

/** Looks at the one image that an error named, or lives the workload in peace where it named no image. */
export async function lookAtNamedImage(name: string): Promise<void> {
  const [stageName, durability, operations, changes, image, again] = name.split(" ");
  const stage = CRASH_STAGES.find((one) => one.name === stageName);
  if (stage === undefined) throw new Error(`there is no stage ${stageName}`);
  const workload = new CrashWorkload(stage, (operations ?? "").split(","), durability as Durability);
  if (changes === undefined) await liveInPeace(workload, new SeededRandom(1));
  else
    await look(workload, {
      changes: Number(changes),
      image: image === undefined || image === "-" ? undefined : parseImage(image),
      again: again === undefined ? undefined : Number(again),
    });
}

/** The workload without a crash must end well too. Returns its cases. */
async function liveInPeace(workload: CrashWorkload, random: SeededRandom): Promise<CrashCase[]> {
  try {
    return await workload.cases(random);
  } catch (error) {
    throw replayable(workload, [], error);
  }
}

async function look(workload: CrashWorkload, found: CrashCase): Promise<void> {
  try {
    await workload.crashAt(found);
  } catch (error) {
    const { changes, image, again } = found;
    const left = image === undefined ? "-" : image.length === 0 ? "none" : image.join();
    throw replayable(workload, [changes, left, ...(again === undefined ? [] : [again])], error);
  }
}

function replayable(workload: CrashWorkload, moment: readonly (string | number)[], error: unknown): Error {
  const { stage, durability, operations } = workload;
  const name = [stage.name, durability, operations.join(), ...moment].join(" ");
  const message = error instanceof Error ? error.message : String(error);
  return new Error(`${message}\n  replay: npx tsx test/sim/run-crash-image.ts '${name}'`, { cause: error });
}

function parseImage(text: string): number[] {
  return text === "none" ? [] : text.split(",").map(Number);
}

/** Every sequence of `length` operations. */
function sequences(stage: CrashStage, length: number): string[][] {
  if (length === 0) return [[]];
  return sequences(stage, length - 1).flatMap((head) => stage.operations.map((last) => [...head, last]));
}

function draw<T>(from: readonly T[], count: number, random: SeededRandom): T[] {
  const left = [...from];
  const drawn: T[] = [];
  while (drawn.length < count && left.length > 0) drawn.push(...left.splice(random.below(left.length), 1));
  return drawn;
}
