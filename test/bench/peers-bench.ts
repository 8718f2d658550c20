/**
 * Our pair beside QEMU's and beside servers without replication (`side-by-side.ts`), on disks of 1 GiB at most.
 */
import { DURABILITIES, type AckPolicy, type Durability, type Mode } from "../../proto/words.ts";
import { BenchPair, pairName } from "./bench-pair.ts";
import type { Contestant, ReplicatedContestant } from "./contestant.ts";
import { diskBytesIn, type Measured, type Setting } from "./measuring.ts";
import { PLAIN_SERVERS, PlainServer } from "./plain-servers.ts";
import { QEMU_PAIR, QemuPair } from "./qemu-pair.ts";
import type { Seat } from "./seat.ts";
import {
  BUSY_WRITES,
  LARGE_WRITES,
  measureSideBySide,
  SINGLE_WRITES,
  warmSeat,
  type Comparison,
  type NamedWorkload,
  type SideBySide,
} from "./side-by-side.ts";

/** Where there is room for those of all contestants at once. */
const DISK_BYTES_MAX = 1024 ** 3;
/** What guests of a pair without epochs wait for: that a write has arrived on the secondary, or is in its image. */
const MIRROR_ACKS = ["received", "applied"] as const satisfies readonly AckPolicy[];
/** Two of each of the pairs, and one of each of the servers. */
const COPIES = 2 * (5 + MIRROR_ACKS.length) + PLAIN_SERVERS.length;

const SINGLE = SINGLE_WRITES.name;
const BUSY = BUSY_WRITES.name;
const LARGE = LARGE_WRITES.name;
const READS = "randread 4k qd32";
const EVERY_100_MS = `${BUSY}, a checkpoint every 100 ms`;
const WORKLOADS: readonly NamedWorkload[] = [
  SINGLE_WRITES,
  BUSY_WRITES,
  LARGE_WRITES,
  { ...BUSY_WRITES, name: READS, pattern: "randread" },
  { ...BUSY_WRITES, name: EVERY_100_MS, checkpointEveryMs: 100 },
];

const OURS = pairName("process");
const OURS_POWER = pairName("power");
const OURS_MC = pairName("process", "mc");
const OURS_MC_POWER = pairName("power", "mc");
const OURS_MIRRORS = MIRROR_ACKS.map((ack) => pairName("process", "mirror", "raw", ack));
const COMPARISONS: readonly Comparison[] = [
  { workload: SINGLE, one: OURS, other: QEMU_PAIR, atLeast: 2.5 },
  { workload: SINGLE, one: OURS, other: "qemu-nbd" },
  { workload: BUSY, one: OURS, other: QEMU_PAIR, atLeast: 8 },
  { workload: BUSY, one: OURS, other: "qemu-nbd", atLeast: 1.3 },
  { workload: BUSY, one: OURS_POWER, other: QEMU_PAIR },
  { workload: LARGE, one: OURS, other: QEMU_PAIR, atLeast: 2 },
  { workload: LARGE, one: OURS, other: "qemu-nbd" },
  { workload: READS, one: OURS, other: QEMU_PAIR },
  { workload: READS, one: OURS, other: "qemu-nbd", atLeast: 1 },
  { workload: EVERY_100_MS, one: OURS, other: QEMU_PAIR },
  { workload: BUSY, one: OURS_MC, other: OURS },
  { workload: EVERY_100_MS, one: OURS_MC, other: OURS, atLeast: 1.2 },
  { workload: EVERY_100_MS, one: OURS_MC, other: OURS, figure: "checkpoints" },
  { workload: EVERY_100_MS, one: OURS_MC, other: OURS, figure: "the secondary's CPU for a request" },
  { workload: EVERY_100_MS, one: OURS_MC_POWER, other: OURS_POWER },
  { workload: EVERY_100_MS, one: OURS_MC_POWER, other: OURS_POWER, figure: "checkpoints" },
  ...OURS_MIRRORS.flatMap((one) => [
    { workload: SINGLE, one, other: "qemu-nbd" },
    { workload: BUSY, one, other: "qemu-nbd" },
  ]),
];

export function measurePeers(setting: Setting): Promise<Measured> {
  const sizeBytes = diskBytesIn(setting.place, COPIES, DISK_BYTES_MAX);
  return measureSideBySide(setting, {
    bench: "peers",
    workloads: WORKLOADS,
    comparisons: COMPARISONS,
    agents: [OURS, OURS_POWER, OURS_MC, OURS_MC_POWER, ...OURS_MIRRORS],
    ...seatsIn(setting, sizeBytes),
  });
}

function seatsIn({ place, seconds }: Setting, sizeBytes: number): Pick<SideBySide, "pairs" | "others"> {
  const parent = place.directory;
  const seat = <T extends Contestant>(name: string, start: () => Promise<T>): Seat<T> =>
    warmSeat(name, { directory: parent, seconds }, start);
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
