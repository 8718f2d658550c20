import { DURABILITIES } from "../../proto/words.ts";
import { BenchPair, pairName } from "./bench-pair.ts";
import type { CheckpointTimes, ReplicatedContestant } from "./contestant.ts";
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
import { QEMU_PAIR, QemuPair } from "./qemu-pair.ts";
import { namedWithLoss, Seat, stopAll } from "./seat.ts";

const MIB = 1024 * 1024;
const DISK_BYTES = 1024 * MIB;
const DIRTY_MIB = [1, 256, 1024] as const;
/** How many are taken in each round: what is cheap often enough for a p99. */
const PER_ROUND: Readonly<Record<(typeof DIRTY_MIB)[number], number>> = { 1: 20, 256: 3, 1024: 2 };
/** A checkpoint of ours must not grow with what was written. */
const GROWTH_MAX = 3;
const P99_MAX_MS = 2;

/** The times taken, by contestant and MiB. */
type Samples = Map<string, Map<number, CheckpointTimes[]>>;

/**
 * How long a checkpoint takes after little and after much was overwritten, and all of it has arrived, so that the queue is
 * idle: ours as the agent measures it, from the barrier to the commit's answer (`prepareMs` and `commitMs`); QEMU's from
 * the command to its answer.
 *
 * On the disk with durability `process`, what was written is still on its way to the disk when the checkpoint's record is
 * fsynced, and the two compete: those figures are for information only.
 */
export async function measureCheckpoints({ place, rounds }: Setting): Promise<Measured> {
  const parent = place.directory;
  const seats: readonly Seat<ReplicatedContestant>[] = [
    ...DURABILITIES.map(
      (durability) =>
        new Seat<ReplicatedContestant>(pairName(durability), () =>
          BenchPair.start({ parent, sizeBytes: DISK_BYTES, durability, isFilled: true }),
        ),
    ),
    new Seat<ReplicatedContestant>(QEMU_PAIR, () => QemuPair.start(parent, DISK_BYTES)),
  ];
  const samples: Samples = new Map(seats.map(({ name }) => [name, new Map(DIRTY_MIB.map((mib) => [mib, []]))]));
  try {
    // Round 0 is not counted: it warms the processes up.
    for (let round = 0; round <= rounds; round += 1) {
      for (const mib of DIRTY_MIB) {
        for (const seat of rotated(seats, round)) {
          const taken = round === 0 ? [] : samples.get(seat.name)?.get(mib);
          await seat.measure(`a checkpoint after ${mib} MiB, round ${round}`, async (pair) => {
            for (let count = 0; count < PER_ROUND[mib]; count += 1) {
              const times = await checkpointAfter(pair, mib, { parent, seed: 1 + round * 1000 + count });
              taken?.push(times);
            }
          });
        }
      }
      if (round > 0) progress("checkpoint", place, round, rounds);
    }
  } finally {
    await stopAll(seats);
  }
  return {
    tables: DIRTY_MIB.map((mib) => ({
      title: `checkpoint after ${mib} MiB, ${rounds * PER_ROUND[mib]} of them`,
      rows: [...samples].map(([name, bySize]): Row => {
        const taken = bySize.get(mib) ?? [];
        return {
          what: namedWithLoss(name, taken.length, rounds * PER_ROUND[mib], "checkpoints"),
          figures: figuresOf(taken),
        };
      }),
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

async function checkpointAfter(
  pair: ReplicatedContestant,
  mib: number,
  { parent, seed }: { readonly parent: string; readonly seed: number },
): Promise<CheckpointTimes> {
  await randomWrites({
    uri: pair.uris[0] ?? "",
    directory: parent,
    bytes: mib * MIB,
    blockBytes: mib === 1 ? 4096 : 65_536,
    depth: 16,
    seed,
  });
  await pair.idle();
  return pair.checkpoint();
}

function figuresOf(taken: readonly CheckpointTimes[]): Row["figures"] {
  return {
    "prepare ms": median(taken.map(({ prepareMs }) => prepareMs)),
    "commit ms": median(taken.map(({ commitMs }) => commitMs)),
    "total ms": median(totals(taken)),
    "p99 ms": percentile(totals(taken), 0.99),
    "worst ms": percentile(totals(taken), 1),
  };
}

function targetsOf(samples: Samples, isInMemory: boolean): Target[] {
  const [small, , large] = DIRTY_MIB;
  return [...samples].flatMap(([name, bySize]): Target[] => {
    const after = (mib: number): number[] => totals(bySize.get(mib) ?? []);
    const isOurs = name !== QEMU_PAIR;
    const isProcess = name === pairName("process");
    const growth: Target = {
      what: `${name}: a checkpoint after ${large} MiB beside one after ${small} MiB`,
      value: median(after(large)) / median(after(small)),
      unit: "times",
      atMost: isOurs && (isInMemory || !isProcess) ? GROWTH_MAX : undefined,
    };
    if (!isOurs) return [growth];
    const worst = DIRTY_MIB.map((mib): Target => ({
      what: `${name}: a checkpoint after ${mib} MiB, p99`,
      value: percentile(after(mib), 0.99),
      unit: "ms",
      // On a disk, or with durability `power`, an fsync comes on top.
      atMost: isInMemory && isProcess ? P99_MAX_MS : undefined,
    }));
    return [growth, ...worst];
  });
}

function totals(taken: readonly CheckpointTimes[]): number[] {
  return taken.map(({ prepareMs, commitMs }) => prepareMs + commitMs);
}
