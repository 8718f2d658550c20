import type { Durability, Mode } from "../../proto/words.ts";
import { BenchPair, pairName } from "./bench-pair.ts";
import type { ReplicatedContestant } from "./contestant.ts";
import { writeOnce, type Load, type Workload } from "./fio.ts";
import { median, progress, rotated, settle, type Measured, type Row, type Setting, type Target } from "./measuring.ts";
import { QEMU_PAIR, QemuPair } from "./qemu-pair.ts";
import { namedWithLoss, Seat, stopAll } from "./seat.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const DISK_BYTES = 1024 * MIB;

interface NamedWorkload extends Workload {
  readonly pattern: "write";
  readonly name: string;
  /** What is left out after each block. */
  readonly skipBytes: number;
}

const WORKLOADS: readonly NamedWorkload[] = [
  { name: "write 4k qd32, every 64 KiB", pattern: "write", blockBytes: 4 * KIB, depth: 32, skipBytes: 60 * KIB },
  { name: "write 1M qd4", pattern: "write", blockBytes: MIB, depth: 4, skipBytes: 0 },
];
const PASSES = ["first write", "rewrite"] as const;
type Pass = (typeof PASSES)[number];

const SHARED = pairName("process", "shared");
const SHARED_QCOW2 = pairName("process", "shared", "qcow2");
const OTHERS = [pairName("process"), QEMU_PAIR];

/** The loads by their round; by workload, pass and contestant. */
type Samples = ReadonlyMap<string, Map<number, Load>>;

/**
 * What it costs to overwrite a block for the first time since the last checkpoint, and again: in mode `shared`, in `colo`,
 * and in QEMU's pair, which has no such mode; in mode `shared` also on a qcow2 image, behind the agents' qemu-nbd. After a checkpoint the same blocks are written twice, in the same order. QEMU
 * keeps originals of 64 KiB, ours are smaller: the small writes lie so far apart that in each first one an original is kept.
 */
export async function measureSharedDisks({ place, rounds }: Setting): Promise<Measured> {
  const parent = place.directory;
  const seats = seatsIn(parent);
  const samples: Samples = new Map(
    WORKLOADS.flatMap(({ name }) =>
      PASSES.flatMap((pass) => seats.map((seat) => [sampleKey(name, pass, seat.name), new Map()])),
    ),
  );
  try {
    // Round 0 is not counted: it warms the processes up.
    for (let round = 0; round <= rounds; round += 1) {
      for (const workload of WORKLOADS) {
        for (const seat of rotated(seats, round)) {
          await settle(place, seat.contestant);
          await seat.measure(`${workload.name}, round ${round}`, async (pair) => {
            await pair.checkpoint();
            for (const pass of PASSES) {
              const [uri = ""] = pair.uris;
              const load = await writeOnce({ uri, directory: parent, workload, diskBytes: DISK_BYTES });
              await pair.idle();
              if (round > 0) samples.get(sampleKey(workload.name, pass, seat.name))?.set(round, load);
            }
          });
        }
      }
      if (round > 0) progress("shared", place, round, rounds);
    }
  } finally {
    await stopAll(seats);
  }
  return {
    tables: WORKLOADS.flatMap(({ name }) =>
      PASSES.map((pass) => ({
        title: `${name}, ${pass}`,
        rows: seats.map((seat) => rowOf(seat.name, samples.get(sampleKey(name, pass, seat.name)), rounds)),
      })),
    ),
    targets: WORKLOADS.flatMap(({ name }) => {
      const beside = (one: string, other: string): Target[] =>
        PASSES.map((pass) =>
          ratioOf(
            `${name}, ${pass}: ${one} beside ${other}`,
            samples.get(sampleKey(name, pass, one)),
            samples.get(sampleKey(name, pass, other)),
          ),
        );
      const firstBesideRewrite = (one: string): Target =>
        ratioOf(
          `${name}: ${one}, first write beside rewrite`,
          samples.get(sampleKey(name, "first write", one)),
          samples.get(sampleKey(name, "rewrite", one)),
        );
      return [
        ...OTHERS.flatMap((other) => beside(SHARED, other)),
        firstBesideRewrite(SHARED),
        ...[SHARED, QEMU_PAIR].flatMap((other) => beside(SHARED_QCOW2, other)),
        firstBesideRewrite(SHARED_QCOW2),
      ];
    }),
    plots: [],
  };
}

function seatsIn(parent: string): readonly Seat<ReplicatedContestant>[] {
  const ours = (mode: Mode, durability: Durability, format: "raw" | "qcow2" = "raw"): Seat<ReplicatedContestant> =>
    new Seat(pairName(durability, mode, format), () =>
      BenchPair.start({ parent, sizeBytes: DISK_BYTES, durability, mode, format, isFilled: true }),
    );
  return [
    ours("shared", "process"),
    ours("shared", "power"),
    ours("shared", "process", "qcow2"),
    ours("shared", "power", "qcow2"),
    ours("colo", "process"),
    new Seat<ReplicatedContestant>(QEMU_PAIR, () => QemuPair.start(parent, DISK_BYTES)),
  ];
}

function rowOf(name: string, byRound: ReadonlyMap<number, Load> | undefined, rounds: number): Row {
  const loads = [...(byRound?.values() ?? [])];
  const of = (figure: (load: Load) => number): number | null => (loads.length === 0 ? null : median(loads.map(figure)));
  return {
    what: namedWithLoss(name, loads.length, rounds),
    figures: {
      "IOPS": of((load) => load.requestsPerSecond),
      "MB/s": of((load) => load.bytesPerSecond / 1e6),
      "mean µs": of((load) => load.meanUs),
      "p50 µs": of((load) => load.p50Us),
      "p99 µs": of((load) => load.p99Us),
      "p99.9 µs": of((load) => load.p999Us),
    },
  };
}

/** The median of the ratios within a round; of those rounds in which neither failed. */
function ratioOf(
  what: string,
  ours: ReadonlyMap<number, Load> | undefined,
  others: ReadonlyMap<number, Load> | undefined,
): Target {
  const ratios = [...(ours ?? [])].flatMap(([round, { requestsPerSecond }]) => {
    const beside = others?.get(round);
    return beside === undefined ? [] : [requestsPerSecond / beside.requestsPerSecond];
  });
  return { what, value: median(ratios), unit: "times" };
}

function sampleKey(workload: string, pass: Pass, contestant: string): string {
  return `${workload} / ${pass} / ${contestant}`;
}
