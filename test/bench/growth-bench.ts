/**
 * How the cost of replication grows: with the number of disks, with the size of a disk, and with the depth of the queue.
 * All disks are empty files, so that large ones fit; the loads are random writes of 4 KiB.
 */
import { BenchPair } from "./bench-pair.ts";
import { isReplicated, stopAll, type Contestant } from "./contestant.ts";
import { startLoad } from "./fio.ts";
import {
  median,
  progress,
  rotated,
  type Measured,
  type Place,
  type Row,
  type Setting,
  type Target,
} from "./measuring.ts";
import { PlainServer } from "./plain-servers.ts";
import { peakBytes } from "./process-figures.ts";
import { QemuPair } from "./qemu-pair.ts";

const MIB = 1024 * 1024;
const GIB = 1024 * MIB;
const DISKS = [1, 4, 8] as const;
const SIZES_GIB = [1, 64, 1024, 16_384] as const;
const DEPTHS = [1, 2, 4, 8, 16, 32, 64, 128] as const;
const DEPTH_DEFAULT = 32;
const RAMP_SECONDS = 1;
/** 256 MiB and the default window. */
const AGENT_MEMORY_MAX_MIB = 256 + 64;

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
      const pair = await BenchPair.start({
        parent: place.directory,
        sizeBytes: GIB / disks,
        durability: "process",
        disks,
      });
      try {
        rates.get(disks)?.push(await writeRate(pair, place, { depth: DEPTH_DEFAULT / disks, seconds, round }));
        memory.set(disks, memoryPeaks(pair));
      } finally {
        await pair.stop();
      }
    }
    progress("growth, disks", place, round, rounds);
  }
  const rateOf = (count: number): number => median(rates.get(count) ?? []);
  return {
    tables: [
      {
        title: `disks of one VM, ${DEPTH_DEFAULT} requests in flight in all`,
        rows: DISKS.map((count): Row => ({
          what: `${count}`,
          figures: { "IOPS of all": rateOf(count), ...memory.get(count) },
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
      const startedMs = performance.now();
      const options = { parent: place.directory, sizeBytes: sizeGib * GIB, durability: "process" } as const;
      const pair = await BenchPair.start(options);
      try {
        startMs.push(performance.now() - startedMs);
        rates.push(await writeRate(pair, place, { depth: DEPTH_DEFAULT, seconds, round }));
        memory.push(memoryPeaks(pair));
      } finally {
        await pair.stop();
      }
    }
    progress("growth, size", place, round, rounds);
  }
  const peak = (memory: readonly MemoryPeaks[], side: keyof MemoryPeaks) =>
    Math.max(...memory.map((peaks) => peaks[side]));
  return {
    tables: [
      {
        title: "size of a sparse disk",
        rows: samples.map(({ sizeGib, startMs, rates, memory }): Row => ({
          what: `${sizeGib} GiB`,
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
  const contestants: Contestant[] = [];
  const rates = new Map<string, Map<number, number[]>>();
  try {
    contestants.push(
      await BenchPair.start({ parent: place.directory, sizeBytes: GIB, durability: "process", isFilled: true }),
    );
    contestants.push(await QemuPair.start(place.directory, GIB));
    contestants.push(await PlainServer.start("qemu-nbd", place.directory, GIB));
    for (const { name } of contestants) rates.set(name, new Map(DEPTHS.map((depth) => [depth, []])));
    for (let round = 1; round <= rounds; round += 1) {
      for (const depth of DEPTHS) {
        for (const contestant of rotated(contestants, round)) {
          const rate = await writeRate(contestant, place, { depth, seconds, round });
          rates.get(contestant.name)?.get(depth)?.push(rate);
        }
      }
      progress("growth, depth", place, round, rounds);
    }
  } finally {
    await stopAll(contestants);
  }
  return {
    tables: [
      {
        title: "IOPS by the depth of the queue",
        rows: [...rates].map(([name, byDepth]): Row => ({
          what: name,
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

/** Requests per second; the overlays are emptied afterwards. */
async function writeRate(
  contestant: Contestant,
  { directory }: Place,
  { depth, seconds, round }: { readonly depth: number; readonly seconds: number; readonly round: number },
): Promise<number> {
  const workload = { pattern: "randwrite", blockBytes: 4096, depth } as const;
  const common = { uris: contestant.uris, directory, workload, seed: round };
  const { requestsPerSecond } = await startLoad({ ...common, seconds, rampSeconds: RAMP_SECONDS }).finished;
  await contestant.idle();
  if (isReplicated(contestant)) await contestant.checkpoint();
  return requestsPerSecond;
}

type MemoryPeaks = Readonly<Record<"primary MiB" | "secondary MiB", number>>;

function memoryPeaks({ processes }: BenchPair): MemoryPeaks {
  const of = (side: string): number => peakBytes(processes.get(side) ?? 0) / MIB;
  return { "primary MiB": of("primary"), "secondary MiB": of("secondary") };
}
