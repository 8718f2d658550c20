/**
 * What a guest's writes take while the agents do something else as well: checkpoints, a resync, the merge after a failover;
 * and how late the event loops of both agents came meanwhile to what was due. A job is held until the load is warm, and
 * goes then at the speed `dynamic`, as it does by default.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { DURABILITIES, type Durability } from "../../proto/words.ts";
import type { DelayFigures } from "../../shared/host/event-loop-delay.ts";
import { BenchPair, pairName } from "./bench-pair.ts";
import { checkpointEvery } from "./checkpoint-every.ts";
import { fill, randomWrites, runLoad, type Load, type RunningLoad, type Workload } from "./fio.ts";
import { latencyPlot } from "./latency-plot.ts";
import {
  median,
  progress,
  rotated,
  settle,
  type Measured,
  type Place,
  type Row,
  type Setting,
  type Target,
} from "./measuring.ts";
import { attempt, namedWithLoss, Seat, stopAll } from "./seat.ts";

const MIB = 1024 * 1024;
const DISK_BYTES = 1024 * MIB;
const RAMP_SECONDS = 1;
const CHECKPOINT_EVERY_MS = 100;
const DEPTHS = [1, 32] as const;

const ALONE = "nothing else";
const CONDITIONS = [ALONE, "a checkpoint every 100 ms", "a resync", "a merge"] as const;
type Condition = (typeof CONDITIONS)[number];
/** How many times longer than with nothing else the slowest thousandth of the requests may take. */
const P999_TIMES_MAX = 10;

interface Sample extends Load {
  /** By agent; a primary that was killed has none. */
  readonly delays: ReadonlyMap<string, DelayFigures>;
  /** The part of the measured time in which the job was at work. */
  readonly jobShare: number;
}

interface Turn {
  readonly place: Place;
  readonly depth: (typeof DEPTHS)[number];
  readonly seconds: number;
  readonly seed: number;
}

export async function measureStalls({ place, rounds, seconds }: Setting): Promise<Measured> {
  const samples = new Map<string, Sample[]>();
  for (const durability of DURABILITIES) {
    for (const condition of CONDITIONS) {
      for (const depth of DEPTHS) samples.set(keyOf(durability, condition, depth), []);
    }
  }
  const seats = new Map(DURABILITIES.map((durability) => [durability, seatFor(place, durability, seconds)]));
  try {
    for (let round = 1; round <= rounds; round += 1) {
      for (const condition of rotated(CONDITIONS, round)) {
        for (const depth of DEPTHS) {
          for (const [durability, seat] of seats) {
            const turn: Turn = { place, depth, seconds, seed: 2 * round };
            const what = `qd${depth} and ${condition}, round ${round}`;
            const sample =
              condition === "a merge"
                ? await attempt(`${seat.name}: ${what}`, () => besideMerge(durability, turn))
                : await seat.measure(what, (pair) => beside(condition, pair, turn));
            if (sample !== undefined) samples.get(keyOf(durability, condition, depth))?.push(sample);
          }
        }
      }
      progress("stall", place, round, rounds);
    }
  } finally {
    await stopAll([...seats.values()]);
  }
  const taken = (durability: Durability, condition: Condition, depth: number): readonly Sample[] =>
    samples.get(keyOf(durability, condition, depth)) ?? [];
  const ofAll = DEPTHS.flatMap((depth) => DURABILITIES.map((durability) => ({ depth, durability })));
  return {
    tables: ofAll.map(({ depth, durability }) => ({
      title: `${pairName(durability)}: ${workloadOf(depth).name}, beside`,
      rows: CONDITIONS.map((condition) => rowOf(condition, taken(durability, condition, depth), rounds)),
    })),
    targets: ofAll.flatMap(({ depth, durability }) =>
      CONDITIONS.slice(1).map((condition): Target => {
        const p999 = (of: Condition): number => median(taken(durability, of, depth).map(({ p999Us }) => p999Us));
        return {
          what: `${pairName(durability)}: p99.9 of ${workloadOf(depth).name}, beside ${condition} and beside ${ALONE}`,
          value: p999(condition) / p999(ALONE),
          unit: "times",
          // A disk's fsyncs hold up whoever writes to the same disk.
          atMost: place.name === "memory" && durability === "process" ? P999_TIMES_MAX : undefined,
        };
      }),
    ),
    plots: DEPTHS.map((depth) =>
      latencyPlot(
        `${workloadOf(depth).name} beside other work`,
        CONDITIONS.map((condition) => ({ name: condition, loads: taken("process", condition, depth) })),
      ),
    ),
  };
}

function seatFor(place: Place, durability: Durability, seconds: number): Seat<BenchPair> {
  return new Seat(pairName(durability), async () => {
    const pair = await startPair(place, durability);
    await beside(ALONE, pair, { place, depth: 32, seconds, seed: 1 });
    return pair;
  });
}

function startPair({ directory }: Place, durability: Durability): Promise<BenchPair> {
  return BenchPair.start({ parent: directory, sizeBytes: DISK_BYTES, durability, isFilled: true, isProbed: true });
}

/** The pair's overlays are empty afterwards. */
async function beside(condition: Condition, pair: BenchPair, turn: Turn): Promise<Sample> {
  const job = condition === "a resync" ? await beginResync(pair, turn) : undefined;
  await settle(turn.place, pair);
  const sample = await load(pair, pair.uri, turn, async (running) => {
    if (job !== undefined) await pair.resumeJob("a", job);
    if (condition === "a checkpoint every 100 ms") await checkpointEvery(pair, CHECKPOINT_EVERY_MS, running);
  });
  const jobShare = job === undefined ? 0 : await shareOf(pair, "a", job, turn);
  await pair.idle();
  await pair.checkpoint();
  return { ...sample, jobShare };
}

/** Gives the secondary the whole disk to catch up with, beside its checkpoint, and holds it at the beginning. */
async function beginResync(pair: BenchPair, { place, seed }: Turn): Promise<string> {
  await pair.stopSecondary();
  await fill({ uri: pair.uri, directory: place.directory, seed });
  await pair.startSecondary();
  return pair.pauseJob("a");
}

/** Of a new pair: a failover ends one. */
async function besideMerge(durability: Durability, turn: Turn): Promise<Sample> {
  const { place, seed } = turn;
  const pair = await startPair(place, durability);
  try {
    await randomWrites({
      uri: pair.uri,
      directory: place.directory,
      bytes: DISK_BYTES,
      blockBytes: 65_536,
      depth: 16,
      seed,
    });
    await pair.idle();
    await settle(place, pair);
    await pair.killPrimary();
    await pair.failover();
    const job = await pair.pauseJob("b");
    const sample = await load(pair, pair.secondaryExport.uri, turn, () => pair.resumeJob("b", job));
    return { ...sample, jobShare: await shareOf(pair, "b", job, turn) };
  } finally {
    await pair.stop();
  }
}

/** Measures a load; `begin` begins what is to go on beside it, when the load is warm. */
async function load(
  pair: BenchPair,
  uri: string,
  { place, depth, seconds, seed }: Turn,
  begin: (running: RunningLoad) => Promise<void>,
): Promise<Omit<Sample, "jobShare">> {
  const options = { uris: [uri], directory: place.directory, workload: workloadOf(depth), seconds, seed };
  const measured = await runLoad({ ...options, rampSeconds: RAMP_SECONDS }, async (running) => {
    await sleep(RAMP_SECONDS * 1000);
    pair.beginDelays();
    await begin(running);
  });
  return { ...measured, delays: await pair.endDelays() };
}

/** How much of the last `seconds` the job has taken. */
async function shareOf(pair: BenchPair, side: "a" | "b", id: string, { seconds }: Turn): Promise<number> {
  const nowMs = Date.now();
  const job = (await pair.status(side)).jobs.find((one) => one.id === id);
  const endedMs = job === undefined || job.endedAt === null ? nowMs : Date.parse(job.endedAt);
  return Math.max(0, 1 - (nowMs - endedMs) / (seconds * 1000));
}

function rowOf(condition: Condition, samples: readonly Sample[], rounds: number): Row {
  const of = (figure: (sample: Sample) => number): number => median(samples.map(figure));
  const delay = (agent: string, figure: "p99Ms" | "maxMs"): number =>
    median(samples.flatMap(({ delays }) => delays.get(agent)?.[figure] ?? []));
  const hasJob = condition === "a resync" || condition === "a merge";
  return {
    what: namedWithLoss(condition, samples.length, rounds),
    figures: {
      "IOPS": of((sample) => sample.requestsPerSecond),
      "p50 µs": of((sample) => sample.p50Us),
      "p99 µs": of((sample) => sample.p99Us),
      "p99.9 µs": of((sample) => sample.p999Us),
      "worst ms": of((sample) => sample.maxUs / 1000),
      "primary's loop p99 ms": delay("primary", "p99Ms"),
      "primary's loop worst ms": delay("primary", "maxMs"),
      "secondary's loop p99 ms": delay("secondary", "p99Ms"),
      "secondary's loop worst ms": delay("secondary", "maxMs"),
      "of the time %": hasJob ? of((sample) => sample.jobShare * 100) : null,
    },
  };
}

function workloadOf(depth: number): Workload & { readonly name: string } {
  return { name: `randwrite 4k qd${depth}`, pattern: "randwrite", blockBytes: 4096, depth };
}

function keyOf(durability: Durability, condition: Condition, depth: number): string {
  return `${durability} / ${condition} / ${depth}`;
}
