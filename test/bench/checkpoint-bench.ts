import { BenchPair } from "./bench-pair.ts";
import { stopAll, type CheckpointTimes, type ReplicatedContestant } from "./contestant.ts";
import { randomWrites } from "./fio.ts";
import {
  median,
  percentile,
  progress,
  rotated,
  type Measured,
  type Row,
  type Setting,
  type Target,
} from "./measuring.ts";
import { QemuPair } from "./qemu-pair.ts";

const MIB = 1024 * 1024;
const DISK_BYTES = 1024 * MIB;
const DIRTY_MIB = [1, 256, 1024] as const;
/** A checkpoint of ours must not grow with what was written. */
const GROWTH_MAX = 3;
const P99_MAX_MS = 2;

const STARTS: readonly ((parent: string) => Promise<ReplicatedContestant>)[] = [
  (parent) => BenchPair.start({ parent, sizeBytes: DISK_BYTES, durability: "process", isFilled: true }),
  (parent) => BenchPair.start({ parent, sizeBytes: DISK_BYTES, durability: "power", isFilled: true }),
  (parent) => QemuPair.start(parent, DISK_BYTES),
];

/** The times taken, by contestant and MiB. */
type Samples = Map<string, Map<number, CheckpointTimes[]>>;

/**
 * How long a checkpoint takes after little and after much was overwritten, and all of it has arrived: ours in the agent,
 * QEMU's from the command to its answer.
 *
 * On the disk with durability `process`, what was written is still on its way to the disk when the checkpoint's record is
 * fsynced, and the two compete: those figures are for information only.
 */
export async function measureCheckpoints({ place, rounds }: Setting): Promise<Measured> {
  const pairs: ReplicatedContestant[] = [];
  const samples: Samples = new Map();
  try {
    for (const start of STARTS) pairs.push(await start(place.directory));
    for (const { name } of pairs) samples.set(name, new Map(DIRTY_MIB.map((mib) => [mib, []])));
    // Round 0 is not counted: it warms the processes up.
    for (let round = 0; round <= rounds; round += 1) {
      for (const [index, mib] of DIRTY_MIB.entries()) {
        for (const pair of rotated(pairs, round)) {
          await randomWrites({
            uri: pair.uris[0] ?? "",
            directory: place.directory,
            bytes: mib * MIB,
            blockBytes: mib === 1 ? 4096 : 65_536,
            depth: 16,
            seed: round * DIRTY_MIB.length + index + 1,
          });
          await pair.idle();
          const times = await pair.checkpoint();
          if (round > 0) samples.get(pair.name)?.get(mib)?.push(times);
        }
      }
      if (round > 0) progress("checkpoint", place, round, rounds);
    }
  } finally {
    await stopAll(pairs);
  }
  return {
    tables: DIRTY_MIB.map((mib) => ({
      title: `checkpoint after ${mib} MiB`,
      rows: [...samples].map(([name, bySize]): Row => ({ what: name, figures: figuresOf(bySize.get(mib) ?? []) })),
    })),
    targets: targetsOf(samples, place.name === "memory"),
    plots: [
      {
        name: "checkpoint",
        title: "A checkpoint after so much was overwritten, median",
        x: { label: "MiB overwritten", scale: "log" },
        y: { label: "ms", scale: "log" },
        series: [...samples].map(([name, bySize]) => ({
          name,
          points: [...bySize].map(([mib, taken]): [number, number] => [mib, median(totals(taken))]),
        })),
      },
    ],
  };
}

function figuresOf(taken: readonly CheckpointTimes[]): Row["figures"] {
  return {
    "prepare ms": median(taken.map(({ prepareMs }) => prepareMs)),
    "commit ms": median(taken.map(({ commitMs }) => commitMs)),
    "total ms": median(totals(taken)),
    "p99 ms": percentile(totals(taken), 0.99),
    "worst ms": Math.max(...totals(taken)),
  };
}

function targetsOf(samples: Samples, isInMemory: boolean): Target[] {
  const [small, , large] = DIRTY_MIB;
  const targets: Target[] = [];
  for (const [name, bySize] of samples) {
    const [after1, after1024] = [small, large].map((mib) => totals(bySize.get(mib) ?? []));
    if (after1 === undefined || after1024 === undefined) continue;
    const isOurs = name.startsWith("Colobus");
    const isJudged = isOurs && (isInMemory || name !== "Colobus");
    targets.push({
      what: `${name}: a checkpoint after ${large} MiB beside one after ${small} MiB`,
      value: median(after1024) / median(after1),
      unit: "times",
      atMost: isJudged ? GROWTH_MAX : undefined,
    });
    if (!isOurs) continue;
    targets.push({
      what: `${name}: a checkpoint after ${large} MiB, p99`,
      value: percentile(after1024, 0.99),
      unit: "ms",
      // On a disk, or with durability `power`, an fsync comes on top.
      atMost: isInMemory && name === "Colobus" ? P99_MAX_MS : undefined,
    });
  }
  return targets;
}

function totals(taken: readonly CheckpointTimes[]): number[] {
  return taken.map(({ prepareMs, commitMs }) => prepareMs + commitMs);
}
