/**
 * Our pair beside QEMU's and beside servers without replication: the same loads on filled disks of 1 GiB at most, in turns,
 * in another order each round. All copies are on this machine and share its processors.
 *
 * Pairs that take checkpoints take one after each load, so that each begins with empty overlays, and in the last load also
 * every 100 ms. A comparison is the median over the rounds of the two figures' ratio within a round.
 */
import { DURABILITIES, type AckPolicy, type Durability, type Mode } from "../../proto/words.ts";
import { BenchPair, pairName } from "./bench-pair.ts";
import { checkpointEvery } from "./checkpoint-every.ts";
import { isReplicated, type Contestant, type ReplicatedContestant } from "./contestant.ts";
import { runLoad, type Load, type Workload } from "./fio.ts";
import { latencyPlot } from "./latency-plot.ts";
import {
  diskBytesIn,
  median,
  progress,
  rotated,
  settle,
  type Measured,
  type Row,
  type Setting,
  type Target,
} from "./measuring.ts";
import { PLAIN_SERVERS, PlainServer } from "./plain-servers.ts";
import { AGENT_MEMORY_MAX_MIB, cpuSeconds, peakBytes } from "./process-figures.ts";
import { QEMU_PAIR, QemuPair } from "./qemu-pair.ts";
import { explained, namedWithLoss, Seat, stopAll } from "./seat.ts";

const MIB = 1024 * 1024;
/** Where there is room for those of all contestants at once. */
const DISK_BYTES_MAX = 1024 * MIB;
/** What guests of a pair without epochs wait for: that a write has arrived on the secondary, or is in its image. */
const MIRROR_ACKS = ["received", "applied"] as const satisfies readonly AckPolicy[];
/** Two of each of the pairs, and one of each of the servers. */
const COPIES = 2 * (5 + MIRROR_ACKS.length) + PLAIN_SERVERS.length;
const RAMP_SECONDS = 1;

interface NamedWorkload extends Workload {
  readonly name: string;
  /** How often checkpoints are taken meanwhile. */
  readonly checkpointEveryMs?: number;
}

const KIB = 1024;
const EVERY_100_MS = "randwrite 4k qd32, a checkpoint every 100 ms";
const WORKLOADS = [
  { name: "randwrite 4k qd1", pattern: "randwrite", blockBytes: 4 * KIB, depth: 1 },
  { name: "randwrite 4k qd32", pattern: "randwrite", blockBytes: 4 * KIB, depth: 32 },
  { name: "write 1M qd4", pattern: "write", blockBytes: MIB, depth: 4 },
  { name: "randread 4k qd32", pattern: "randread", blockBytes: 4 * KIB, depth: 32 },
  {
    name: EVERY_100_MS,
    pattern: "randwrite",
    blockBytes: 4 * KIB,
    depth: 32,
    checkpointEveryMs: 100,
  },
] as const satisfies readonly NamedWorkload[];
/** Before a contestant's first round, unmeasured: a server that runs for months is not judged by its first seconds. */
const WARM_UP = WORKLOADS[1];
type WorkloadName = (typeof WORKLOADS)[number]["name"];

const OURS = pairName("process");
const OURS_POWER = pairName("power");
const OURS_MC = pairName("process", "mc");
const OURS_MC_POWER = pairName("power", "mc");
const OURS_MIRRORS = MIRROR_ACKS.map((ack) => pairName("process", "mirror", "raw", ack));
/** What can be compared; undefined where there is none. */
const COMPARED = {
  "requests": (sample: Sample) => sample.requestsPerSecond,
  "checkpoints": (sample: Sample) => sample.checkpointsPerSecond,
  "the secondary's CPU for a request": ({ cpuUsPerRequest: { secondary } }: Sample) => secondary,
} as const;
const COMPARISONS: readonly {
  readonly workload: WorkloadName;
  readonly ours: string;
  readonly other: string;
  /** Default: requests. */
  readonly figure?: keyof typeof COMPARED;
  readonly atLeast?: number;
}[] = [
  { workload: "randwrite 4k qd1", ours: OURS, other: "QEMU COLO", atLeast: 2.5 },
  { workload: "randwrite 4k qd1", ours: OURS, other: "qemu-nbd" },
  { workload: "randwrite 4k qd32", ours: OURS, other: "QEMU COLO", atLeast: 8 },
  { workload: "randwrite 4k qd32", ours: OURS, other: "qemu-nbd", atLeast: 1.3 },
  { workload: "randwrite 4k qd32", ours: OURS_POWER, other: "QEMU COLO" },
  { workload: "write 1M qd4", ours: OURS, other: "QEMU COLO", atLeast: 2 },
  { workload: "write 1M qd4", ours: OURS, other: "qemu-nbd" },
  { workload: "randread 4k qd32", ours: OURS, other: "QEMU COLO" },
  { workload: "randread 4k qd32", ours: OURS, other: "qemu-nbd", atLeast: 1 },
  { workload: EVERY_100_MS, ours: OURS, other: "QEMU COLO" },
  { workload: "randwrite 4k qd32", ours: OURS_MC, other: OURS },
  { workload: EVERY_100_MS, ours: OURS_MC, other: OURS, atLeast: 1.2 },
  { workload: EVERY_100_MS, ours: OURS_MC, other: OURS, figure: "checkpoints" },
  { workload: EVERY_100_MS, ours: OURS_MC, other: OURS, figure: "the secondary's CPU for a request" },
  { workload: EVERY_100_MS, ours: OURS_MC_POWER, other: OURS_POWER },
  { workload: EVERY_100_MS, ours: OURS_MC_POWER, other: OURS_POWER, figure: "checkpoints" },
  ...OURS_MIRRORS.flatMap((ours) => [
    { workload: "randwrite 4k qd1", ours, other: "qemu-nbd" } as const,
    { workload: "randwrite 4k qd32", ours, other: "qemu-nbd" } as const,
  ]),
];

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

export async function measurePeers({ place, rounds, seconds }: Setting): Promise<Measured> {
  const { pairs, others } = seatsIn(place.directory, diskBytesIn(place, COPIES, DISK_BYTES_MAX), seconds);
  const seats = [...pairs, ...others];
  const samples: Samples = new Map(
    WORKLOADS.flatMap((workload) => seats.map((seat) => [sampleKey(workload.name, seat.name), new Map()])),
  );
  try {
    for (const seat of seats) await seat.measure("start", () => Promise.resolve());
    for (let round = 1; round <= rounds; round += 1) {
      for (const workload of WORKLOADS) {
        for (const seat of rotated("checkpointEveryMs" in workload ? pairs : seats, round)) {
          await settle(place, seat.contestant);
          const sample = await seat.measure(`${workload.name}, round ${round}`, (contestant) =>
            measure(contestant, workload, { directory: place.directory, seconds, round }),
          );
          if (sample !== undefined) samples.get(sampleKey(workload.name, seat.name))?.set(round, sample);
        }
      }
      progress("peers", place, round, rounds);
    }
  } finally {
    await stopAll(seats);
  }
  const names = (workload: NamedWorkload): string[] =>
    (workload.checkpointEveryMs === undefined ? seats : pairs).map(({ name }) => name);
  const memory = memoryPeaks(samples, seats);
  return {
    tables: [
      ...WORKLOADS.map((workload) => ({
        title: workload.name,
        rows: names(workload).map((name) => rowOf(name, workload, samples.get(sampleKey(workload.name, name)), rounds)),
      })),
      { title: "memory", rows: memory.map(({ what, mib }) => ({ what, figures: { "peak MiB": mib } })) },
    ],
    targets: [
      ...COMPARISONS.map((comparison) => targetOf(comparison, samples)),
      ...memory.flatMap(({ what, mib, isOurs }): Target[] =>
        isOurs ? [{ what: `memory of ${what}`, value: mib, unit: "MiB", atMost: AGENT_MEMORY_MAX_MIB }] : [],
      ),
    ],
    plots: WORKLOADS.map((workload) =>
      latencyPlot(
        workload.name,
        names(workload).map((name) => ({ name, loads: taken(samples.get(sampleKey(workload.name, name))) })),
      ),
    ),
  };
}

function seatsIn(
  parent: string,
  sizeBytes: number,
  seconds: number,
): { readonly pairs: readonly Seat<ReplicatedContestant>[]; readonly others: readonly Seat<Contestant>[] } {
  const seat = <T extends Contestant>(name: string, start: () => Promise<T>): Seat<T> =>
    new Seat(name, async () => {
      const contestant = await start();
      try {
        await measure(contestant, WARM_UP, { directory: parent, seconds, round: 0 });
        return contestant;
      } catch (error) {
        const reason = await explained(error, contestant);
        await contestant.stop();
        throw reason;
      }
    });
  const ours = (durability: Durability, mode: Mode) =>
    seat<ReplicatedContestant>(pairName(durability, mode), () =>
      BenchPair.start({ parent, sizeBytes, durability, mode, isFilled: true }),
    );
  return {
    pairs: [
      ...DURABILITIES.flatMap((durability) => [ours(durability, "colo"), ours(durability, "mc")]),
      seat<ReplicatedContestant>(QEMU_PAIR, () => QemuPair.start(parent, sizeBytes)),
    ],
    others: [
      ...MIRROR_ACKS.map((ack, index) =>
        seat<Contestant>(OURS_MIRRORS[index] ?? "", async () =>
          withoutCheckpoints(
            await BenchPair.start({ parent, sizeBytes, durability: "process", mode: "mirror", ack, isFilled: true }),
          ),
        ),
      ),
      ...PLAIN_SERVERS.map((name) => seat<Contestant>(name, () => PlainServer.start(name, parent, sizeBytes))),
    ],
  };
}

/** A pair that takes none: there is nothing to be done after a load but to wait until everything is on both sides. */
function withoutCheckpoints(pair: BenchPair): Contestant {
  const { name, directory, uris, processes } = pair;
  return {
    name,
    directory,
    uris,
    processes,
    idle: () => pair.idle(),
    explain: () => pair.explain(),
    stop: () => pair.stop(),
  };
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
function targetOf(
  { workload, ours, other, figure = "requests", atLeast }: (typeof COMPARISONS)[number],
  samples: Samples,
): Target {
  const others = samples.get(sampleKey(workload, other));
  const figureOf = COMPARED[figure];
  const ratios = [...(samples.get(sampleKey(workload, ours)) ?? [])].flatMap(([round, sample]) => {
    const beside = others?.get(round);
    const [one, two] = [figureOf(sample), beside === undefined ? undefined : figureOf(beside)];
    return one === undefined || two === undefined ? [] : [one / two];
  });
  const what = figure === "requests" ? workload : `${workload}, ${figure}`;
  return { what: `${what}: ${ours} beside ${other}`, value: median(ratios), unit: "times", atLeast };
}

/** Of each process, over all rounds. */
function memoryPeaks(
  samples: Samples,
  seats: readonly Seat<Contestant>[],
): { readonly what: string; readonly mib: number; readonly isOurs: boolean }[] {
  return seats.flatMap(({ name }) => {
    const peaks = new Map<string, number>();
    for (const { peakMib } of WORKLOADS.flatMap((workload) => taken(samples.get(sampleKey(workload.name, name))))) {
      for (const [process, mib] of Object.entries(peakMib)) peaks.set(process, Math.max(mib, peaks.get(process) ?? 0));
    }
    const isOurs = [OURS, OURS_POWER, OURS_MC, OURS_MC_POWER, ...OURS_MIRRORS].includes(name);
    return [...peaks].map(([process, mib]) => ({ what: `${name}: ${process}`, mib, isOurs }));
  });
}

function taken(byRound: ReadonlyMap<number, Sample> | undefined): Sample[] {
  return [...(byRound?.values() ?? [])];
}

function sampleKey(workload: string, contestant: string): string {
  return `${workload} / ${contestant}`;
}
