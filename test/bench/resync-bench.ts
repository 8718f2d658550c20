import { execFile } from "node:child_process";
import { truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { DURABILITIES, type Durability } from "../../proto/words.ts";
import { BenchPair, freePort } from "./bench-pair.ts";
import { fill } from "./fio.ts";
import { makeDirectory, removeDirectory } from "./leftovers.ts";
import { median, progress, type Measured, type Place, type Row, type Setting, type Target } from "./measuring.ts";
import { attempt, namedWithLoss } from "./seat.ts";

const MIB = 1024 * 1024;
const BYTES = 1024 * MIB;

const run = promisify(execFile);

const WAYS = ["plain copy", "first sync", "resync beside a checkpoint"] as const;
type Way = (typeof WAYS)[number];

/** MiB/s of each round. */
type Rates = ReadonlyMap<Way, number[]>;

/**
 * How fast a sync moves 1 GiB of random data, beside nbdcopy, which writes the same data over loopback into a file that
 * nbdkit serves. A resync keeps the originals of the checkpoint as well, so it writes everything twice. The aim is 0.8 of
 * a plain copy over the same link; loopback is faster than any of those, so the ratios are for information.
 */
export async function measureResync({ place, rounds }: Setting): Promise<Measured> {
  const byDurability = DURABILITIES.map((durability) => ({
    durability,
    rates: new Map<Way, number[]>(WAYS.map((way) => [way, []])),
  }));
  for (let round = 1; round <= rounds; round += 1) {
    for (const { durability, rates } of byDurability) {
      await attempt(`a sync, durability ${durability}, round ${round}`, () =>
        measureOnce(place, durability, round, rates),
      );
    }
    progress("resync", place, round, rounds);
  }
  return {
    tables: byDurability.map(({ durability, rates }) => ({
      title: `1 GiB, durability ${durability}`,
      rows: WAYS.map((way): Row => {
        const taken = rates.get(way) ?? [];
        return { what: namedWithLoss(way, taken.length, rounds), figures: { "MiB/s": median(taken) } };
      }),
    })),
    targets: byDurability.flatMap(({ durability, rates }) => {
      const [plain, ...syncs] = WAYS;
      const plainRate = median(rates.get(plain) ?? []);
      return syncs.map((way): Target => {
        const what = `${way} beside a ${plain}, durability ${durability}`;
        return { what, value: median(rates.get(way) ?? []) / plainRate, unit: "times" };
      });
    }),
    plots: [],
  };
}

async function measureOnce(place: Place, durability: Durability, round: number, rates: Rates): Promise<void> {
  const take = (way: Way, ms: number): void => void rates.get(way)?.push(BYTES / MIB / (ms / 1000));
  const pair = await BenchPair.create({ parent: place.directory, sizeBytes: BYTES, durability });
  try {
    await pair.startPrimary();
    await fill({ uri: pair.uri, directory: pair.directory, seed: 2 * round });
    await pair.startSecondary();
    take("first sync", await untilSynced(pair));
    await pair.checkpoint();
    await pair.stopSecondary();
    await fill({ uri: pair.uri, directory: pair.directory, seed: 2 * round + 1 });
    take("plain copy", await plainCopy(pair.image, place.directory, durability));
    await pair.startSecondary();
    take("resync beside a checkpoint", await untilSynced(pair));
  } finally {
    await pair.stop();
  }
}

/** Milliseconds from the beginning of the sync until everything is stable on the secondary. */
async function untilSynced(pair: BenchPair): Promise<number> {
  await pair.idle();
  const endMs = Date.now();
  const [job] = (await pair.status()).jobs.slice(-1);
  if (job === undefined) throw new Error("there was no sync");
  return endMs - Date.parse(job.startedAt);
}

/** Milliseconds of nbdcopy into a new file; with durability `power` until that is fsynced. */
async function plainCopy(image: string, parent: string, durability: Durability): Promise<number> {
  const directory = makeDirectory(parent);
  try {
    const copy = join(directory, "copy.img");
    writeFileSync(copy, "");
    truncateSync(copy, BYTES);
    const flush = durability === "power" ? "--flush" : "";
    const command = `nbdcopy ${flush} '${image}' "$uri"`;
    const startedMs = performance.now();
    await run("nbdkit", ["-i", "127.0.0.1", "-p", String(await freePort()), "file", copy, "--run", command]);
    return performance.now() - startedMs;
  } finally {
    removeDirectory(directory);
  }
}
