import { describe, expect, it } from "vitest";
import { makePair, type Pair, type PairOptions } from "./pair.ts";
import { SimWorld } from "./world.ts";

/**
 * Images on devices that have to write every zero: what guests trim, and the holes of a sync, take as long as data would,
 * and everything else goes on meanwhile.
 */
const MIB = 1024 * 1024;
const GIB = 1024 * MIB;
/** A GiB takes a second, and a session is given up sooner than that. */
const WRITTEN_PER_MS = MIB;
const PEER_TIMEOUT_MS = 500;
const SLOW = { zeroBytesPerMs: 100 * 1024 };
const PLAIN = { fua: false } as const;
const DISK = { name: "vda", sizeBytes: 1.5 * GIB };

interface Scene {
  readonly world: SimWorld;
  readonly pair: Pair;
  /** Sessions that have ended. */
  readonly lost: unknown[];
}

function scene(options: Partial<PairOptions>): Scene {
  const world = new SimWorld(1);
  const lost: unknown[] = [];
  const pair = makePair(
    world,
    {
      disks: [DISK],
      clusterBytes: 65_536,
      durability: "process",
      ack: "applied",
      access: "read-only",
      windowBytes: 64 * MIB,
      peerTimeoutMs: PEER_TIMEOUT_MS,
      createImages: false,
      checkpointEveryMs: undefined,
      retain: 0,
      overlayLimitBytes: undefined,
      storage: { zeroBytesPerMs: WRITTEN_PER_MS },
      ...options,
    },
    { primary: [], secondary: [] },
    {
      requested: () => undefined,
      happened: (_, event) => {
        if (event.type === "peer-disconnected") lost.push(event);
      },
    },
  );
  return { world, pair, lost };
}

function replication({ pair }: Scene): string | undefined {
  return pair.primary.agent?.status().peers[0]?.replication;
}

async function start({ world, pair }: Scene): Promise<void> {
  await world.do("the start", async () => {
    await pair.secondary.start();
    await pair.primary.start();
  });
}

describe("a device that writes its zeroes", () => {
  it("serves other requests, and keeps its session, while gigabytes are trimmed", async () => {
    const made = scene({ disks: [DISK] });
    const { world, pair, lost } = made;
    await start(made);
    await world.runUntil("the first sync", () => replication(made) === "Established");
    const device = pair.primary.device(DISK);
    let isTrimmed = false;
    let answered = 0;
    await world.do("a trim, and requests beside it", async () => {
      const trim = Promise.resolve(device?.zero(0, GIB, { fua: false, mayUnmap: true })).then(() => {
        isTrimmed = true;
      });
      while (!isTrimmed) {
        await device?.read(Buffer.alloc(4096), GIB);
        if (!isTrimmed) answered += 1;
        await world.sleep(10);
      }
      await trim;
    });
    expect(answered).toBeGreaterThan(50);
    expect(lost).toEqual([]);
    expect(replication(made)).toBe("Established");
  });

  it("gets all holes of a large disk in one session", async () => {
    const made = scene({ disks: [{ ...DISK, sizeBytes: 4 * GIB }], primaryStorage: {}, ack: "async" });
    const { world, pair, lost } = made;
    await start(made);
    await world.runUntil("the first sync", () => replication(made) === "Established");
    await world.do("the checkpoint", async () => {
      await pair.primary.agent?.wait({ condition: "committed", timeoutMs: 60_000 }, new AbortController().signal);
    });
    expect(lost).toEqual([]);
  });

  it.each(["applied", "received", "async"] as const)(
    "has a guest wait for few of a sync's holes (ack %s)",
    async (ack) => {
      const made = scene({
        disks: [{ ...DISK, sizeBytes: 4 * GIB }],
        primaryStorage: {},
        storage: SLOW,
        peerTimeoutMs: 5_000,
        windowBytes: 16 * MIB,
        ack,
      });
      const { world, pair, lost } = made;
      await start(made);
      await world.runUntil("a sync", () => replication(made) === "SyncSource");
      const device = pair.primary.device(DISK);
      const waits: number[] = [];
      await world.do("writes beside the sync, more than the window has", async () => {
        for (let written = 0; written < 24; written += 1) {
          const beganMs = world.nowMs;
          await device?.write(Buffer.alloc(MIB, 1), written * MIB, PLAIN);
          waits.push(world.nowMs - beganMs);
          await world.sleep(10);
        }
      });
      expect(replication(made)).toBe("SyncSource");
      expect(lost).toEqual([]);
      // Four of 64 MiB, and what was begun.
      expect(Math.max(...waits)).toBeLessThan(3_500);
    },
  );
});
