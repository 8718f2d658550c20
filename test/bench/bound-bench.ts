/**
 * Our pair and QEMU's beside a program that only moves what any pair has to move (`bare-pair.c`): how much of the time
 * that takes, and so how many times as fast as QEMU's any pair could be.
 */
import { BARE_PAIR, BarePair } from "./bare-pair.ts";
import { BenchPair, pairName } from "./bench-pair.ts";
import type { Contestant, ReplicatedContestant } from "./contestant.ts";
import { diskBytesIn, type Measured, type Setting } from "./measuring.ts";
import { QEMU_PAIR, QemuPair } from "./qemu-pair.ts";
import { BUSY_WRITES, LARGE_WRITES, measureSideBySide, SINGLE_WRITES, warmSeat } from "./side-by-side.ts";

const DISK_BYTES_MAX = 1024 ** 3;
/** Two of each of the pairs. */
const COPIES = 2 * 3;
const OURS = pairName("process");
const WORKLOADS = [SINGLE_WRITES, BUSY_WRITES, LARGE_WRITES];

export function measureBound(setting: Setting): Promise<Measured> {
  const { place, seconds } = setting;
  const parent = place.directory;
  const sizeBytes = diskBytesIn(place, COPIES, DISK_BYTES_MAX);
  const turn = { directory: parent, seconds };
  return measureSideBySide(setting, {
    bench: "bound",
    workloads: WORKLOADS,
    pairs: [
      warmSeat<ReplicatedContestant>(OURS, turn, () =>
        BenchPair.start({ parent, sizeBytes, durability: "process", mode: "colo", isFilled: true }),
      ),
      warmSeat<ReplicatedContestant>(QEMU_PAIR, turn, () => QemuPair.start(parent, sizeBytes)),
    ],
    others: [warmSeat<Contestant>(BARE_PAIR, turn, () => BarePair.start(parent, sizeBytes))],
    comparisons: WORKLOADS.flatMap(({ name: workload }) => [
      { workload, one: OURS, other: BARE_PAIR },
      { workload, one: BARE_PAIR, other: QEMU_PAIR },
    ]),
    agents: [OURS],
  });
}
