/**
 * Our pair beside QEMU's and beside servers without replication: the same loads on filled disks of 1 GiB, in turns, in
 * another order each round. All copies are on this machine and share its processors.
 *
 * Both pairs take a checkpoint after each load, so that each begins with empty overlays, and in the last load also every
 * 100 ms. A comparison is the median over the rounds of the two figures' ratio within a round.
 */
import { BenchPair } from "./bench-pair.ts";
import { isReplicated, stopAll, type Contestant, type ReplicatedContestant } from "./contestant.ts";
import { startLoad, type Load, type RunningLoad, type Workload } from "./fio.ts";
import { median, progress, rotated, settle, type Measured, type Row, type Setting, type Target } from "./measuring.ts";
import { PLAIN_SERVERS, PlainServer } from "./plain-servers.ts";
import type { Plot } from "./plot.ts";
import { cpuSeconds, peakBytes } from "./process-figures.ts";
import { QemuPair } from "./qemu-pair.ts";

const MIB = 1024 * 1024;
const DISK_BYTES = 1024 * MIB;
const RAMP_SECONDS = 1;

interface NamedWorkload extends Workload {
  readonly name: string;
  /** How often checkpoints are taken meanwhile. */
  readonly checkpointEveryMs?: number;
}

const KIB = 1024;
const WORKLOADS = [
  { name: "randwrite 4k qd1", pattern: "randwrite", blockBytes: 4 * KIB, depth: 1 },
  { name: "randwrite 4k qd32", pattern: "randwrite", blockBytes: 4 * KIB, depth: 32 },
  { name: "write 1M qd4", pattern: "write", blockBytes: MIB, depth: 4 },
  { name: "randread 4k qd32", pattern: "randread", blockBytes: 4 * KIB, depth: 32 },
  {
    name: "randwrite 4k qd32, a checkpoint every 100 ms",
    pattern: "randwrite",
    blockBytes: 4 * KIB,
    depth: 32,
    checkpointEveryMs: 100,
  },
] as const satisfies readonly NamedWorkload[];
/** Before the first round, unmeasured: a server that runs for months is not judged by its first seconds. */
const WARM_UP = WORKLOADS[1];
type WorkloadName = (typeof WORKLOADS)[number]["name"];

const OURS = "Colobus";
const OURS_POWER = "Colobus, power";
const COMPARISONS: readonly {
  readonly workload: WorkloadName;
  readonly ours: typeof OURS | typeof OURS_POWER;
  readonly other: string;
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
  { workload: "randwrite 4k qd32, a checkpoint every 100 ms", ours: OURS, other: "QEMU COLO" },
];

interface Sample extends Load {
  /** CPU of all processes that serve, for each GiB that was moved. */
  readonly cpuSecondsPerGib: number;
}

/** A sample of each round, by workload and contestant. */
type Samples = Map<string, Sample[]>;

export async function measurePeers({ place, rounds, seconds }: Setting): Promise<Measured> {
  const contestants: Contestant[] = [];
  const samples: Samples = new Map();
  try {
    for (const start of STARTS) contestants.push(await start(place.directory));
    for (const contestant of contestants) {
      await measure(contestant, WARM_UP, { directory: place.directory, seconds, round: 0 });
    }
    for (let round = 1; round <= rounds; round += 1) {
      for (const workload of WORKLOADS) {
        for (const contestant of rotated(contestants, round)) {
          if ("checkpointEveryMs" in workload && !isReplicated(contestant)) continue;
          await settle(place);
          const sample = await measure(contestant, workload, { directory: place.directory, seconds, round });
          const key = sampleKey(workload.name, contestant.name);
          samples.set(key, [...(samples.get(key) ?? []), sample]);
        }
      }
      progress("peers", place, round, rounds);
    }
    return {
      tables: [
        ...WORKLOADS.map(({ name }) => ({ title: name, rows: rowsOf(name, contestants, samples) })),
        { title: "memory", rows: contestants.flatMap(memoryRows) },
      ],
      targets: COMPARISONS.map(({ workload, ours, other, atLeast }): Target => {
        const rate = (name: string) => rates(samples.get(sampleKey(workload, name)) ?? []);
        const others = rate(other);
        const ratios = rate(ours).map((ourRate, index) => ourRate / (others[index] ?? 0));
        return { what: `${workload}: ${ours} beside ${other}`, value: median(ratios), unit: "times", atLeast };
      }),
      plots: WORKLOADS.map(({ name }) => latencyPlot(name, contestants, samples)),
    };
  } finally {
    await stopAll(contestants);
  }
}

const STARTS: readonly ((directory: string) => Promise<Contestant>)[] = [
  (parent) => BenchPair.start({ parent, sizeBytes: DISK_BYTES, durability: "process", isFilled: true }),
  (parent) => BenchPair.start({ parent, sizeBytes: DISK_BYTES, durability: "power", isFilled: true }),
  (parent) => QemuPair.start(parent, DISK_BYTES),
  ...PLAIN_SERVERS.map((name) => (parent: string) => PlainServer.start(name, parent, DISK_BYTES)),
];

async function measure(
  contestant: Contestant,
  workload: NamedWorkload,
  { directory, seconds, round }: { readonly directory: string; readonly seconds: number; readonly round: number },
): Promise<Sample> {
  const pids = [...contestant.processes.values()];
  const cpuBefore = cpuSeconds(pids);
  const common = { uris: contestant.uris, directory, workload, seed: round };
  const running = startLoad({ ...common, seconds, rampSeconds: RAMP_SECONDS });
  if (workload.checkpointEveryMs !== undefined && isReplicated(contestant)) {
    await checkpointEvery(contestant, workload.checkpointEveryMs, running);
  }
  const measured = await running.finished;
  await contestant.idle();
  // fio does not tell what it moved in the first seconds: as much as in the others.
  const gib = (measured.bytesPerSecond * (seconds + RAMP_SECONDS)) / (1024 * MIB);
  const cpuSecondsPerGib = (cpuSeconds(pids) - cpuBefore) / gib;
  if (isReplicated(contestant)) await contestant.checkpoint();
  return { ...measured, cpuSecondsPerGib };
}

/** Takes a checkpoint every `everyMs` until the load has finished; one that takes longer delays the next. */
async function checkpointEvery(contestant: ReplicatedContestant, everyMs: number, running: RunningLoad): Promise<void> {
  const ended = running.finished.then(
    () => true,
    () => true, // the caller awaits it too
  );
  for (;;) {
    const nextMs = performance.now() + everyMs;
    await contestant.checkpoint(running);
    if (await Promise.race([ended, sleepUntil(nextMs)])) return;
  }
}

function sleepUntil(ms: number): Promise<false> {
  return new Promise((resolve) => {
    setTimeout(() => resolve(false), Math.max(0, ms - performance.now()));
  });
}

function rowsOf(workload: WorkloadName, contestants: readonly Contestant[], samples: Samples): Row[] {
  return contestants.flatMap(({ name }) => {
    const taken = samples.get(sampleKey(workload, name));
    if (taken === undefined) return [];
    const of = (figure: Exclude<keyof Sample, "latencies">): number => median(taken.map((sample) => sample[figure]));
    return {
      what: name,
      figures: {
        "IOPS": of("requestsPerSecond"),
        "MB/s": of("bytesPerSecond") / 1e6,
        "mean µs": of("meanUs"),
        "p50 µs": of("p50Us"),
        "p99 µs": of("p99Us"),
        "p99.9 µs": of("p999Us"),
        "CPU s/GiB": of("cpuSecondsPerGib"),
      },
    };
  });
}

function memoryRows({ name, processes }: Contestant): Row[] {
  return [...processes].map(([process, pid]) => ({
    what: `${name}: ${process}`,
    figures: { "peak MiB": peakBytes(pid) / MIB },
  }));
}

/** The share of requests that took longer than each latency, all rounds together. */
function latencyPlot(workload: WorkloadName, contestants: readonly Contestant[], samples: Samples): Plot {
  return {
    name: `latency ${workload}`,
    title: `${workload}: share of requests that took longer`,
    x: { label: "latency, µs", scale: "log" },
    y: { label: "share of requests", scale: "log" },
    series: contestants.flatMap(({ name }) => {
      const taken = samples.get(sampleKey(workload, name));
      return taken === undefined ? [] : { name, points: slowerThan(taken.flatMap(({ latencies }) => latencies)) };
    }),
  };
}

const SHARE_MIN = 0.0001;

function slowerThan(latencies: readonly (readonly [us: number, count: number])[]): [number, number][] {
  const counts = new Map<number, number>();
  for (const [us, count] of latencies) counts.set(us, (counts.get(us) ?? 0) + count);
  const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
  let slower = total;
  return [...counts]
    .sort(([left], [right]) => left - right)
    .map(([us, count]): [number, number] => {
      slower -= count;
      return [us, slower / total];
    })
    .filter(([, share]) => share >= SHARE_MIN);
}

function rates(samples: readonly Sample[]): number[] {
  return samples.map(({ requestsPerSecond }) => requestsPerSecond);
}

function sampleKey(workload: string, contestant: string): string {
  return `${workload} / ${contestant}`;
}
