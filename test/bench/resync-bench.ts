import { execFile } from "node:child_process";
import { truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { DURABILITIES, type Durability } from "../../proto/words.ts";
import { BenchPair, freePort } from "./bench-pair.ts";
import { fill } from "./fio.ts";
import { makeDirectory, removeDirectory } from "./leftovers.ts";
import { LOOPBACK, removeLinks, tryMakeLink, type NetworkLink } from "./links.ts";
import { median, progress, type Measured, type Place, type Row, type Setting, type Target } from "./measuring.ts";
import { attempt, namedWithLoss } from "./seat.ts";

const MIB = 1024 * 1024;
/** Gigabit Ethernet, and what newer hosts have at home. */
const LINKS_MBITS = [1000, 2500];

const run = promisify(execFile);

const WAYS = ["plain copy", "first sync", "resync beside a checkpoint"] as const;
type Way = (typeof WAYS)[number];

/** MiB/s of each round. */
type Rates = ReadonlyMap<Way, number[]>;

/** What is measured, and over what. */
interface Course {
  readonly link: NetworkLink;
  readonly durability: Durability;
  readonly bytes: number;
  /** Of a plain copy's rate. */
  readonly atLeast?: number;
}

/**
 * How fast a sync moves random data, beside nbdcopy, which writes the same data over the same link into a file that
 * nbdkit serves. A resync keeps the originals of the checkpoint as well, so it writes everything twice. Loopback takes
 * whatever the processors can copy; the aim is for links, which are slower.
 */
export async function measureResync({ place, rounds }: Setting): Promise<Measured> {
  const courses = [...coursesOver(LOOPBACK, { bytes: 1024 * MIB })];
  for (const mbits of LINKS_MBITS) {
    const link = tryMakeLink(mbits);
    if (link !== undefined) courses.push(...coursesOver(link, { bytes: 512 * MIB, atLeast: 0.8 }));
  }
  const measured = courses.map((course) => ({ course, rates: new Map<Way, number[]>(WAYS.map((way) => [way, []])) }));
  for (let round = 1; round <= rounds; round += 1) {
    for (const { course, rates } of measured) {
      await attempt(`a sync, ${describe(course)}, round ${round}`, () => measureOnce(place, course, round, rates));
    }
    progress("resync", place, round, rounds);
  }
  removeLinks();
  return {
    tables: measured.map(({ course, rates }) => ({
      title: `${course.bytes / MIB} MiB, ${describe(course)}`,
      rows: WAYS.map((way): Row => {
        const taken = rates.get(way) ?? [];
        return { what: namedWithLoss(way, taken.length, rounds), figures: { "MiB/s": median(taken) } };
      }),
    })),
    targets: measured.flatMap(({ course, rates }) => {
      const [plain, ...syncs] = WAYS;
      const plainRate = median(rates.get(plain) ?? []);
      return syncs.map((way): Target => {
        const what = `${way} beside a ${plain}, ${describe(course)}`;
        return { what, value: median(rates.get(way) ?? []) / plainRate, unit: "times", atLeast: course.atLeast };
      });
    }),
    plots: [],
  };
}

function coursesOver(link: NetworkLink, options: Pick<Course, "bytes" | "atLeast">): Course[] {
  return DURABILITIES.map((durability) => ({ link, durability, ...options }));
}

function describe({ link, durability }: Course): string {
  return `${link.name}, durability ${durability}`;
}

async function measureOnce(place: Place, course: Course, round: number, rates: Rates): Promise<void> {
  const { link, durability, bytes } = course;
  const take = (way: Way, ms: number): void => void rates.get(way)?.push(bytes / MIB / (ms / 1000));
  const pair = await BenchPair.create({ parent: place.directory, sizeBytes: bytes, durability, link });
  try {
    await pair.startPrimary();
    await fill({ uri: pair.uri, directory: pair.directory, seed: 2 * round });
    await pair.startSecondary();
    take("first sync", await untilSynced(pair));
    await pair.checkpoint();
    await pair.stopSecondary();
    await fill({ uri: pair.uri, directory: pair.directory, seed: 2 * round + 1 });
    take("plain copy", await plainCopy(pair.image, place.directory, course));
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
async function plainCopy(image: string, parent: string, { link, durability, bytes }: Course): Promise<number> {
  const directory = makeDirectory(parent);
  try {
    const copy = join(directory, "copy.img");
    writeFileSync(copy, "");
    truncateSync(copy, bytes);
    const flush = durability === "power" ? "--flush" : "";
    const nbdcopy = `nbdcopy ${flush} '${image}' "$uri"`;
    const server = ["nbdkit", "-i", "127.0.0.1", "-p", String(await freePort()), "file", copy, "--run", nbdcopy];
    const [program = "", ...args] = [...link.launcher, ...server];
    const startedMs = performance.now();
    await run(program, args);
    return performance.now() - startedMs;
  } finally {
    removeDirectory(directory);
  }
}
