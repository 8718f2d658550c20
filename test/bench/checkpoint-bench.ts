import type { Durability } from "../../proto/words.ts";
import { BenchPair } from "./bench-pair.ts";
import { randomWrites } from "./fio.ts";
import { median, type Measured, type Place } from "./measuring.ts";

const MIB = 1024 * 1024;
const DISK_BYTES = 2 * 1024 * MIB;
/** QEMU's own pair takes 3 ms and 180 ms for these two: 60 times longer. Ours must not grow with what was written. */
const RATIO_MAX = 3;

const SIZES = [
  { name: "1 MiB", bytes: MIB, blockBytes: 4096 },
  { name: "1 GiB", bytes: 1024 * MIB, blockBytes: 65_536 },
] as const;

/**
 * How long a checkpoint takes in the agent, after a little and after much was written, in turns.
 *
 * On the disk with durability `process`, what was written is still on its way to the disk when the checkpoint's record is
 * fsynced, and the two compete: that row is for information only.
 */
export async function measureCheckpoints(place: Place, durability: Durability, rounds: number): Promise<Measured> {
  const pair = await BenchPair.start(place.directory, DISK_BYTES, durability);
  const samples = new Map<string, { prepareMs: number; commitMs: number }[]>(SIZES.map(({ name }) => [name, []]));
  try {
    for (let round = 1; round <= rounds; round += 1) {
      for (const [index, { name, bytes, blockBytes }] of SIZES.entries()) {
        const seed = round * SIZES.length + index;
        await randomWrites({ uri: pair.uri, directory: pair.directory, bytes, blockBytes, depth: 16, seed });
        await pair.idle();
        const { prepareMs, commitMs } = await pair.checkpoint();
        samples.get(name)?.push({ prepareMs, commitMs: commitMs ?? 0 });
      }
      process.stderr.write(`\rcheckpoint: ${place.name}, ${durability}: round ${round} of ${rounds}`);
    }
    process.stderr.write("\n");
  } finally {
    await pair.stop();
  }
  const rows = SIZES.map(({ name }) => {
    const taken = samples.get(name) ?? [];
    const totals = taken.map(({ prepareMs, commitMs }) => prepareMs + commitMs);
    return {
      what: `checkpoint after ${name}`,
      figures: {
        "prepare ms": median(taken.map(({ prepareMs }) => prepareMs)),
        "commit ms": median(taken.map(({ commitMs }) => commitMs)),
        "total ms": median(totals),
        "worst ms": Math.max(...totals),
      },
    };
  });
  const [small, large] = rows.map(({ figures }) => figures["total ms"]);
  const isJudged = place.name === "memory" || durability === "power";
  return {
    rows,
    ratios: [
      {
        what: "a checkpoint after 1 GiB, beside one after 1 MiB",
        ratio: (large ?? 0) / (small ?? 1),
        atMost: isJudged ? RATIO_MAX : undefined,
      },
    ],
  };
}
