import { NbdGuest } from "../support/nbd-guest.ts";
import { DURABILITIES, type Durability } from "../../proto/words.ts";
import { BenchPair, pairName } from "./bench-pair.ts";
import type { FailoverContestant } from "./contestant.ts";
import { randomWrites } from "./fio.ts";
import { median, progress, rotated, settle, type Measured, type Row, type Setting } from "./measuring.ts";
import { QEMU_PAIR, QemuPair } from "./qemu-pair.ts";
import { attempt, namedWithLoss } from "./seat.ts";

const MIB = 1024 * 1024;
const DISK_BYTES = 1024 * MIB;
const HIDDEN_BYTES = DISK_BYTES;
const ACTIVE_BYTES = 256 * MIB;
const REQUEST_BYTES = 4096;
const FIRST_IO_MAX_MS = 50;

/** Each round has new pairs: a failover ends one. */
const STARTS: readonly (readonly [name: string, start: (parent: string) => Promise<FailoverContestant>])[] = [
  ...DURABILITIES.map(
    (durability) => [pairName(durability), (parent: string) => startOurs(parent, durability)] as const,
  ),
  [QEMU_PAIR, (parent) => QemuPair.start(parent, DISK_BYTES)],
];

/** Milliseconds since the failover was asked for. */
interface FailoverTimes {
  readonly answeredMs: number;
  readonly firstReadMs: number;
  readonly firstWriteMs: number;
  readonly mergedMs: number;
}

/**
 * A primary is killed after it has overwritten 1 GiB, and the secondary's guest 256 MiB, since the last checkpoint: how
 * long until the secondary, told to take over, has answered a read and a write, and until it has merged its overlays.
 */
export async function measureFailover({ place, rounds }: Setting): Promise<Measured> {
  const samples = new Map<string, FailoverTimes[]>(STARTS.map(([name]) => [name, []]));
  for (let round = 1; round <= rounds; round += 1) {
    for (const [name, start] of rotated(STARTS, round)) {
      const times = await attempt(`${name}: a failover, round ${round}`, async () => {
        const pair = await start(place.directory);
        try {
          const load = { directory: place.directory, blockBytes: 65_536, depth: 16, seed: round };
          await randomWrites({ ...load, uri: pair.uris[0] ?? "", bytes: HIDDEN_BYTES });
          await pair.idle();
          await randomWrites({ ...load, uri: pair.secondaryExport.uri, bytes: ACTIVE_BYTES });
          await settle(place, pair);
          return await measureOnce(pair);
        } finally {
          await pair.stop();
        }
      });
      if (times !== undefined) samples.get(name)?.push(times);
    }
    progress("failover", place, round, rounds);
  }
  const names = [...samples.keys()];
  const of = (name: string, figure: keyof FailoverTimes): number =>
    median((samples.get(name) ?? []).map((times) => times[figure]));
  return {
    tables: [
      {
        title: "after a failover with 1 GiB in the hidden disk and 256 MiB in the active disk",
        rows: names.map((name): Row => ({
          what: namedWithLoss(name, samples.get(name)?.length ?? 0, rounds),
          figures: {
            "answered ms": of(name, "answeredMs"),
            "first read ms": of(name, "firstReadMs"),
            "first write ms": of(name, "firstWriteMs"),
            "merged s": of(name, "mergedMs") / 1000,
          },
        })),
      },
    ],
    targets: names
      .filter((name) => name !== QEMU_PAIR)
      .map((name) => ({
        what: `${name}: first read and write after a failover`,
        value: of(name, "firstWriteMs"),
        unit: "ms",
        // With durability `power` its record's fsync comes on top.
        atMost: name === pairName("process") ? FIRST_IO_MAX_MS : undefined,
      })),
    plots: [],
  };
}

function startOurs(parent: string, durability: Durability): Promise<BenchPair> {
  return BenchPair.start({
    parent,
    sizeBytes: DISK_BYTES,
    durability,
    isFilled: true,
    secondaryExport: "read-write",
  });
}

async function measureOnce(pair: FailoverContestant): Promise<FailoverTimes> {
  const { socket, name } = pair.secondaryExport;
  const guest = await NbdGuest.connect(socket, name);
  try {
    await pair.killPrimary();
    const startedMs = performance.now();
    const sinceStart = (): number => performance.now() - startedMs;
    await pair.failover();
    const answeredMs = sinceStart();
    await guest.read(0, REQUEST_BYTES);
    const firstReadMs = sinceStart();
    await guest.write(DISK_BYTES - REQUEST_BYTES, Buffer.alloc(REQUEST_BYTES, 1));
    const firstWriteMs = sinceStart();
    await pair.merged();
    return { answeredMs, firstReadMs, firstWriteMs, mergedMs: sinceStart() };
  } finally {
    guest.close();
  }
}
