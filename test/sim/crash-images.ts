import type { Durability } from "../../proto/words.ts";
import { CRASH_OPERATIONS, CrashWorkload, type CrashCase, type CrashOperation } from "./crash-workload.ts";
import { SeededRandom } from "./seeded-random.ts";

/** Sequences of three operations that are drawn, where not all are lived. */
const LONG_SEQUENCES = 60;
/** Images are drawn before it is known which come to the same: so many times as many as are wanted. */
const SURPLUS = 3;

export interface CrashTotals {
  /** Images on which a secondary was started. */
  readonly looked: number;
  /** Of so many choices of what survives; different choices may leave the same image. */
  readonly choices: number;
  readonly sequences: number;
}

/**
 * Looks at about `count` crash images of all sequences of one and two operations, and of some of three; Infinity: at
 * every image of every sequence. An error names the image, and the command that looks at it again.
 */
export async function lookAtImages(durability: Durability, count: number): Promise<CrashTotals> {
  const random = new SeededRandom(durability === "power" ? 1 : 2);
  const isExhaustive = count === Number.POSITIVE_INFINITY;
  const long = isExhaustive ? sequences(3) : draw(sequences(3), LONG_SEQUENCES, random);
  const all = [...sequences(1), ...sequences(2), ...long];
  let choices = 0;
  let looked = 0;
  for (const [index, operations] of all.entries()) {
    const workload = new CrashWorkload(operations, durability);
    const cases = await workload.cases(random.fork(operations.join()));
    const share = Math.ceil((count - looked) / (all.length - index));
    const distinct = await workload.distinct(isExhaustive ? cases : draw(cases, share * SURPLUS, random));
    choices += cases.length;
    for (const found of distinct.slice(0, share)) {
      await look(workload, found);
      looked += 1;
    }
  }
  return { looked, choices, sequences: all.length };
}

/** Looks at the one image that an error named. */
export async function lookAtNamedImage(name: string): Promise<void> {
  const [durability, operations, changes, image] = name.split(" ");
  const workload = new CrashWorkload((operations ?? "").split(",") as CrashOperation[], durability as Durability);
  const kept = image === undefined || image === "-" ? undefined : image.split(",").map(Number);
  await look(workload, { changes: Number(changes), image: kept });
}

async function look(workload: CrashWorkload, found: CrashCase): Promise<void> {
  try {
    await workload.crashAt(found);
  } catch (error) {
    const { durability, operations } = workload;
    const name = `${durability} ${operations.join()} ${found.changes} ${found.image?.join() ?? "-"}`;
    const message = error instanceof Error ? error.message : String(error);
    throw new Error(`${message}\n  replay: npx tsx test/sim/run-crash-image.ts '${name}'`, { cause: error });
  }
}

/** Every sequence of `length` operations. */
function sequences(length: number): CrashOperation[][] {
  if (length === 0) return [[]];
  return sequences(length - 1).flatMap((head) => CRASH_OPERATIONS.map((last) => [...head, last]));
}

function draw<T>(from: readonly T[], count: number, random: SeededRandom): T[] {
  const left = [...from];
  const drawn: T[] = [];
  while (drawn.length < count && left.length > 0) drawn.push(...left.splice(random.below(left.length), 1));
  return drawn;
}
