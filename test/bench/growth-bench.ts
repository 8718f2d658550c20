/**
 * How the cost of replication grows: with the number of disks, with the size of a disk, and with the depth of the queue.
 * All disks are empty files, so that large ones fit; the loads are random writes of 4 KiB.
 */
import { BenchPair, pairName, type PairOptions } from "./bench-pair.ts";
import { isReplicated, type Contestant } from "./contestant.ts";
import { runLoad } from "./fio.ts";
import {
  median,
  percentile,
  progress,
  rotated,
  type Measured,
  type Place,
  type Row,
  type Setting,
  type Target,
} from "./measuring.ts";
import { PlainServer } from "./plain-servers.ts";
import { AGENT_MEMORY_MAX_MIB, peakBytes } from "./process-figures.ts";
import { QEMU_PAIR, QemuPair } from "./qemu-pair.ts";
import { attempt, namedWithLoss, Seat, stopAll } from "./seat.ts";

const MIB = 1024 * 1024;
const GIB = 1024 * MIB;
const DISKS = [1, 4, 8] as const;
const SIZES_GIB = [1, 64, 1024, 16_384] as const;
const DEPTHS = [1, 2, 4, 8, 16, 32, 64, 128] as const;
const DEPTH_DEFAULT = 32;
const RAMP_SECONDS = 1;

export async function measureGrowth(setting: Setting): Promise<Measured> {
  const parts = [await measureDisks(setting), await measureSizes(setting), await measureDepths(setting)];
  return {
    tables: parts.flatMap(({ tables }) => tables),
    targets: parts.flatMap(({ targets }) => targets),
    plots: parts.flatMap(({ plots }) => plots),
  };
}

/** Disks of one VM, written all at once, with as many requests in flight in all. */
async function measureDisks({ place, rounds, seconds }: Setting): Promise<Measured> {
  const rates = new Map<number, number[]>(DISKS.map((count) => [count, []]));
  const memory = new Map<number, MemoryPeaks>();
  for (let round = 1; round <= rounds; round += 1) {
    for (const disks of rotated(DISKS, round)) {
      const options = { parent: place.directory, sizeBytes: GIB / disks, durability: "process", disks } as const;
      await attempt(`${disks} disks, round ${round}`, () =>
        withPair(options, async (pair) => {
          rates.get(disks)?.push(await writeRate(pair, place, { depth: DEPTH_DEFAULT / disks, seconds, round }));
          memory.set(disks, memoryPeaks(pair));
        }),
      );
    }
    progress("growth, disks", place, round, rounds);
  }
  const rateOf = (count: number): number => median(rates.get(count) ?? []);
  return {
    tables: [
      {
        title: `disks of one VM, ${DEPTH_DEFAULT} requests in flight in all`,
        rows: DISKS.map((count): Row => ({
          what: namedWithLoss(`${count}`, rates.get(count)?.length ?? 0, rounds),
          figures: { "IOPS of all": rateOf(count), ...(memory.get(count) ?? UNKNOWN_PEAKS) },
        })),
      },
    ],
    targets: [{ what: "8 disks beside 1, IOPS of all", value: rateOf(8) / rateOf(1), unit: "times" }],
    plots: [],
  };
}

/** Sparse disks of growing size: what it takes to start a pair, and to write anywhere on them. */
async function measureSizes({ place, rounds, seconds }: Setting): Promise<Measured> {
  const samples = SIZES_GIB.map((sizeGib) => ({
    sizeGib,
    startMs: [] as number[],
    rates: [] as number[],
    memory: [] as MemoryPeaks[],
  }));
  for (let round = 1; round <= rounds; round += 1) {
    for (const { sizeGib, startMs, rates, memory } of rotated(samples, round)) {
      const options = { parent: place.directory, sizeBytes: sizeGib * GIB, durability: "process" } as const;
      const startedMs = performance.now();
      await attempt(`a disk of ${sizeGib} GiB, round ${round}`, () =>
        withPair(options, async (pair) => {
          const startTookMs = performance.now() - startedMs;
          rates.push(await writeRate(pair, place, { depth: DEPTH_DEFAULT, seconds, round }));
          startMs.push(startTookMs);
          memory.push(memoryPeaks(pair));
        }),
      );
    }
    progress("growth, size", place, round, rounds);
  }
  const peak = (memory: readonly MemoryPeaks[], side: keyof MemoryPeaks) =>
    percentile(
      memory.map((peaks) => peaks[side]),
      1,
    );
  return {
    tables: [
      {
        title: "size of a sparse disk",
        rows: samples.map(({ sizeGib, startMs, rates, memory }): Row => ({
          what: namedWithLoss(`${sizeGib} GiB`, memory.length, rounds),
          figures: {
            "start to first checkpoint ms": median(startMs),
            "IOPS": median(rates),
            "primary MiB": peak(memory, "primary MiB"),
            "secondary MiB": peak(memory, "secondary MiB"),
          },
        })),
      },
    ],
    targets: samples.slice(-1).flatMap(({ sizeGib, memory }): Target[] =>
      (["primary MiB", "secondary MiB"] as const).map((side) => ({
        what: `memory of the ${side.replace(" MiB", "")} of a disk of ${sizeGib} GiB`,
        value: peak(memory, side),
        unit: "MiB",
        atMost: AGENT_MEMORY_MAX_MIB,
      })),
    ),
    plots: [
      {
        name: "size",
        title: "Memory of the agents, by the size of a sparse disk",
        x: { label: "GiB", scale: "log" },
        y: { label: "MiB", scale: "linear" },
        series: (["primary MiB", "secondary MiB"] as const).map((side) => ({
          name: side.replace(" MiB", ""),
          points: samples.map(({ sizeGib, memory }): [number, number] => [sizeGib, peak(memory, side)]),
        })),
      },
    ],
  };
}

async function measureDepths({ place, rounds, seconds }: Setting): Promise<Measured> {
  const parent = place.directory;
  const options = { parent, sizeBytes: GIB, durability: "process", isFilled: true } as const;
  const seats: readonly Seat<Contestant>[] = [
    new Seat<Contestant>(pairName("process"), () => BenchPair.start(options)),
    new Seat<Contestant>(QEMU_PAIR, () => QemuPair.start(parent, GIB)),
    new Seat<Contestant>("qemu-nbd", () => PlainServer.start("qemu-nbd", parent, GIB)),
  ];
  const rates = new Map(seats.map(({ name }) => [name, new Map(DEPTHS.map((depth) => [depth, [] as number[]]))]));
  try {
    for (let round = 1; round <= rounds; round += 1) {
      for (const depth of DEPTHS) {
        for (const seat of rotated(seats, round)) {
          const rate = await seat.measure(`qd${depth}, round ${round}`, (contestant) =>
            writeRate(contestant, place, { depth, seconds, round }),
          );
          if (rate !== undefined) rates.get(seat.name)?.get(depth)?.push(rate);
        }
      }
      progress("growth, depth", place, round, rounds);
    }
  } finally {
    await stopAll(seats);
  }
  return {
    tables: [
      {
        title: "IOPS by the depth of the queue",
        rows: [...rates].map(([name, byDepth]): Row => ({
          what: namedWithLoss(name, takenIn(byDepth), rounds * DEPTHS.length, "loads"),
          figures: Object.fromEntries([...byDepth].map(([depth, taken]) => [`qd${depth}`, median(taken)])),
        })),
      },
    ],
    targets: [],
    plots: [
      {
        name: "depth",
        title: "Random writes of 4 KiB, by the depth of the queue",
        x: { label: "requests in flight", scale: "log" },
        y: { label: "IOPS", scale: "linear" },
        series: [...rates].map(([name, byDepth]) => ({
          name,
          points: [...byDepth].map(([depth, taken]): [number, number] => [depth, median(taken)]),
        })),
      },
    ],
  };
}

async function withPair(options: PairOptions, use: (pair: BenchPair) => Promise<void>): Promise<void> {
  const pair = await BenchPair.start(options);
  try {
    await use(pair);
  } finally {
    await pair.stop();
  }
}

function takenIn(byDepth: ReadonlyMap<number, readonly number[]>): number {
  return [...byDepth.values()].reduce((sum, taken) => sum + taken.length, 0);
}

/** Requests per second; the overlays are emptied afterwards. */
async function writeRate(
  contestant: Contestant,
  { directory }: Place,
  { depth, seconds, round }: { readonly depth: number; readonly seconds: number; readonly round: number },
): Promise<number> {
  const workload = { pattern: "randwrite", blockBytes: 4096, depth } as const;
  const common = { uris: contestant.uris, directory, workload, seed: round };
  const { requestsPerSecond } = await runLoad({ ...common, seconds, rampSeconds: RAMP_SECONDS });
  await contestant.idle();
  if (isReplicated(contestant)) await contestant.checkpoint();
  return requestsPerSecond;
}

type MemoryPeaks = Readonly<Record<"primary MiB" | "secondary MiB", number>>;
const UNKNOWN_PEAKS: MemoryPeaks = { "primary MiB": NaN, "secondary MiB": NaN };

function memoryPeaks({ processes }: BenchPair): MemoryPeaks {
  const of = (side: string): number => peakBytes(processes.get(side) ?? 0) / MIB;
  return { "primary MiB": of("primary"), "secondary MiB": of("secondary") };
}
