/**
 * Contestants side by side: the same loads on filled disks, in turns, in another order each round. All copies are on this
 * machine and share its processors.
 *
 * Pairs that take checkpoints take one after each load, so that each begins with empty overlays, and in some loads others
 * meanwhile. A comparison is the median over the rounds of the two figures' ratio within a round.
 */
import { checkpointEvery } from "./checkpoint-every.ts";
import { isReplicated, type Contestant, type ReplicatedContestant } from "./contestant.ts";
import { runLoad, type Load, type Workload } from "./fio.ts";
import { latencyPlot } from "./latency-plot.ts";
import { median, progress, rotated, settle, type Measured, type Row, type Setting, type Target } from "./measuring.ts";
import { AGENT_MEMORY_MAX_MIB, cpuSeconds, peakBytes } from "./process-figures.ts";
import { explained, namedWithLoss, Seat, stopAll } from "./seat.ts";

const MIB = 1024 * 1024;
const RAMP_SECONDS = 1;

export interface NamedWorkload extends Workload {
  readonly name: string;
  /** How often checkpoints are taken meanwhile: only those contestants that take any have this load. */
  readonly checkpointEveryMs?: number;
}

/** Small random writes, as many at a time as a busy guest has. */
export const BUSY_WRITES = {
  name: "randwrite 4k qd32",
  pattern: "randwrite",
  blockBytes: 4096,
  depth: 32,
} as const satisfies NamedWorkload;
export const SINGLE_WRITES = { ...BUSY_WRITES, name: "randwrite 4k qd1", depth: 1 } as const satisfies NamedWorkload;
export const LARGE_WRITES = {
  name: "write 1M qd4",
  pattern: "write",
  blockBytes: MIB,
  depth: 4,
} as const satisfies NamedWorkload;

/** What can be compared; undefined where there is none. */
const COMPARED = {
  "requests": (sample: Sample) => sample.requestsPerSecond,
  "checkpoints": (sample: Sample) => sample.checkpointsPerSecond,
  "the secondary's CPU for a request": ({ cpuUsPerRequest: { secondary } }: Sample) => secondary,
} as const;

export interface Comparison {
  /** The name of one. */
  readonly workload: string;
  readonly one: string;
  readonly other: string;
  /** Default: requests. */
  readonly figure?: keyof typeof COMPARED;
  /** How many times the other's. Default: it is for information. */
  readonly atLeast?: number;
}

interface Sample extends Load {
  /** undefined: none are taken beside this load. */
  readonly checkpointsPerSecond: number | undefined;
  /** CPU of all processes that serve, for each GiB that was moved. */
  readonly cpuSecondsPerGib: number;
  /** That of each process, by what it is, for each request. */
  readonly cpuUsPerRequest: Readonly<Record<string, number>>;
  /** The most memory that each ever had. */
  readonly peakMib: Readonly<Record<string, number>>;
}

/** Samples by their round, by workload and contestant. */
type Samples = ReadonlyMap<string, Map<number, Sample>>;

/** How one contestant is measured in one round. */
interface Turn {
  readonly directory: string;
  readonly seconds: number;
  readonly round: number;
}

/** Who is compared in what. */
export interface SideBySide {
  readonly bench: string;
  readonly workloads: readonly NamedWorkload[];
  /** Those that take checkpoints. */
  readonly pairs: readonly Seat<ReplicatedContestant>[];
  readonly others: readonly Seat<Contestant>[];
  readonly comparisons: readonly Comparison[];
  /** The names of those that are agents of ours, whose memory has a bound. */
  readonly agents: readonly string[];
}

export async function measureSideBySide(
  { place, rounds, seconds }: Setting,
  { bench, workloads, pairs, others, comparisons, agents }: SideBySide,
): Promise<Measured> {
  const seats = [...pairs, ...others];
  const seatsOf = ({ checkpointEveryMs }: NamedWorkload) => (checkpointEveryMs === undefined ? seats : pairs);
  const samples: Samples = new Map(
    workloads.flatMap((workload) => seats.map((seat) => [sampleKey(workload.name, seat.name), new Map()])),
  );
  try {
    for (const seat of seats) await seat.measure("start", () => Promise.resolve());
    for (let round = 1; round <= rounds; round += 1) {
      for (const workload of workloads) {
        for (const seat of rotated(seatsOf(workload), round)) {
          await settle(place, seat.contestant);
          const sample = await seat.measure(`${workload.name}, round ${round}`, (contestant) =>
            measure(contestant, workload, { directory: place.directory, seconds, round }),
          );
          if (sample !== undefined) samples.get(sampleKey(workload.name, seat.name))?.set(round, sample);
        }
      }
      progress(bench, place, round, rounds);
    }
  } finally {
    await stopAll(seats);
  }
  const memory = memoryPeaks(samples, workloads, seats);
  return {
    tables: [
      ...workloads.map((workload) => ({
        title: workload.name,
        rows: seatsOf(workload).map(({ name }) =>
          rowOf(name, workload, samples.get(sampleKey(workload.name, name)), rounds),
        ),
      })),
      { title: "memory", rows: memory.map(({ what, mib }) => ({ what, figures: { "peak MiB": mib } })) },
    ],
    targets: [
      ...comparisons.map((comparison) => targetOf(comparison, samples)),
      ...memory.flatMap(({ what, name, mib }): Target[] =>
        agents.includes(name)
          ? [{ what: `memory of ${what}`, value: mib, unit: "MiB", atMost: AGENT_MEMORY_MAX_MIB }]
          : [],
      ),
    ],
    plots: workloads.map((workload) =>
      latencyPlot(
        workload.name,
        seatsOf(workload).map(({ name }) => ({ name, loads: taken(samples.get(sampleKey(workload.name, name))) })),
      ),
    ),
  };
}

/**
 * A seat for who `start` gives. It serves a load before the first one that is measured: a server that runs for months is
 * not judged by its first seconds.
 */
export function warmSeat<T extends Contestant>(
  name: string,
  { directory, seconds }: Omit<Turn, "round">,
  start: () => Promise<T>,
): Seat<T> {
  return new Seat(name, async () => {
    const contestant = await start();
    try {
      await measure(contestant, BUSY_WRITES, { directory, seconds, round: 0 });
      return contestant;
    } catch (error) {
      const reason = await explained(error, contestant);
      await contestant.stop();
      throw reason;
    }
  });
}

async function measure(
  contestant: Contestant,
  workload: NamedWorkload,
  { directory, seconds, round }: Turn,
): Promise<Sample> {
  const processes = [...contestant.processes];
  const cpuOf = (): number[] => processes.map(([, pid]) => cpuSeconds([pid]));
  const cpuBefore = cpuOf();
  const options = { uris: contestant.uris, directory, workload, seconds, rampSeconds: RAMP_SECONDS, seed: round };
  const { checkpointEveryMs } = workload;
  let checkpointsPerSecond: number | undefined;
  const measured =
    checkpointEveryMs !== undefined && isReplicated(contestant)
      ? await runLoad(options, async (running) => {
          const startedMs = performance.now();
          const taken = await checkpointEvery(contestant, checkpointEveryMs, running);
          checkpointsPerSecond = (taken * 1000) / (performance.now() - startedMs);
        })
      : await runLoad(options);
  await contestant.idle();
  const cpu = cpuOf().map((after, index) => after - (cpuBefore[index] ?? 0));
  // fio does not tell what it moved in the first seconds: as much as in the others.
  const requests = measured.requestsPerSecond * (seconds + RAMP_SECONDS);
  const gib = (measured.bytesPerSecond * (seconds + RAMP_SECONDS)) / (1024 * MIB);
  if (isReplicated(contestant)) await contestant.checkpoint();
  return {
    ...measured,
    checkpointsPerSecond,
    cpuSecondsPerGib: cpu.reduce((sum, used) => sum + used, 0) / gib,
    cpuUsPerRequest: Object.fromEntries(
      processes.map(([process], index) => [process, ((cpu[index] ?? 0) * 1e6) / requests]),
    ),
    peakMib: Object.fromEntries(processes.map(([process, pid]) => [process, peakBytes(pid) / MIB])),
  };
}

/** The CPU of a server without replication stands where that of a primary does. */
function rowOf(
  name: string,
  workload: NamedWorkload,
  byRound: ReadonlyMap<number, Sample> | undefined,
  rounds: number,
): Row {
  const samples = taken(byRound);
  const of = (figure: (sample: Sample) => number | undefined): number | null => {
    const figures = samples.map(figure).filter((value) => value !== undefined);
    return figures.length === 0 ? null : median(figures);
  };
  return {
    what: namedWithLoss(name, samples.length, rounds),
    figures: {
      "IOPS": of((sample) => sample.requestsPerSecond),
      "MB/s": of((sample) => sample.bytesPerSecond / 1e6),
      "mean µs": of((sample) => sample.meanUs),
      "p50 µs": of((sample) => sample.p50Us),
      "p99 µs": of((sample) => sample.p99Us),
      "p99.9 µs": of((sample) => sample.p999Us),
      "primary's CPU µs": of(({ cpuUsPerRequest: { primary, server } }) => primary ?? server),
      "secondary's CPU µs": of(({ cpuUsPerRequest: { secondary } }) => secondary),
      "CPU s/GiB": of((sample) => sample.cpuSecondsPerGib),
      ...(workload.checkpointEveryMs === undefined
        ? {}
        : { "checkpoints/s": of((sample) => sample.checkpointsPerSecond) }),
    },
  };
}

/** The median of the ratios within a round; of those rounds in which neither failed. */
function targetOf({ workload, one, other, figure = "requests", atLeast }: Comparison, samples: Samples): Target {
  const others = samples.get(sampleKey(workload, other));
  const figureOf = COMPARED[figure];
  const ratios = [...(samples.get(sampleKey(workload, one)) ?? [])].flatMap(([round, sample]) => {
    const beside = others?.get(round);
    const [mine, theirs] = [figureOf(sample), beside === undefined ? undefined : figureOf(beside)];
    return mine === undefined || theirs === undefined ? [] : [mine / theirs];
  });
  const what = figure === "requests" ? workload : `${workload}, ${figure}`;
  return { what: `${what}: ${one} beside ${other}`, value: median(ratios), unit: "times", atLeast };
}

/** Of each process, over all rounds. */
function memoryPeaks(
  samples: Samples,
  workloads: readonly NamedWorkload[],
  seats: readonly Seat<Contestant>[],
): { readonly what: string; readonly name: string; readonly mib: number }[] {
  return seats.flatMap(({ name }) => {
    const peaks = new Map<string, number>();
    for (const { peakMib } of workloads.flatMap((workload) => taken(samples.get(sampleKey(workload.name, name))))) {
      for (const [process, mib] of Object.entries(peakMib)) peaks.set(process, Math.max(mib, peaks.get(process) ?? 0));
    }
    return [...peaks].map(([process, mib]) => ({ what: `${name}: ${process}`, name, mib }));
  });
}

function taken(byRound: ReadonlyMap<number, Sample> | undefined): Sample[] {
  return [...(byRound?.values() ?? [])];
}

function sampleKey(workload: string, contestant: string): string {
  return `${workload} / ${contestant}`;
}
