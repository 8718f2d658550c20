import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { present } from "../support/present.ts";
import { untilApplied } from "./buffered-bytes.ts";
import { livesToLive } from "./life-groups.ts";
import { makePair, type Pair, type PairOptions } from "./pair.ts";
import { SimWorld } from "./world.ts";

/**
 * What is written to an image behind a server that dies, from memory that is used again for the next piece: jobs that make
 * copies, and buffers that are applied. The server's successor is to get what the first one was given.
 */
const LIVES = livesToLive("COLOBUS_SERVED_LIVES", { inCi: 30, here: 8 });
const MIB = 1024 * 1024;
const CLUSTER_BYTES = 4096;
const DISK = { name: "vda", sizeBytes: 4 * MIB };
/** Whole chunks of memory, one after the other, while servers die. */
const SPEED = 10 * MIB;
const SERVER_LIFE_MAX_MS = 400;
const TARGET = "/images/target.img";
const REQUEST = { timeoutMs: 300_000 } as const;
const LIMIT_MS = 600_000;
const ROUNDS = 4;

/** A pair whose servers die often, and what its disk holds. */
class ServedScene {
  readonly world: SimWorld;
  readonly pair: Pair;
  readonly content: Buffer;

  constructor(seed: number, options: Partial<PairOptions>) {
    this.world = new SimWorld(seed);
    this.content = this.world.random.bytes(DISK.sizeBytes);
    this.pair = makePair(
      this.world,
      {
        disks: [DISK],
        clusterBytes: CLUSTER_BYTES,
        durability: "power",
        ack: "async",
        access: "read-only",
        windowBytes: 8 * MIB,
        peerTimeoutMs: 5_000,
        createImages: false,
        checkpointEveryMs: undefined,
        retain: 0,
        overlayLimitBytes: undefined,
        servesImages: { lifeMaxMs: SERVER_LIFE_MAX_MS },
        ...options,
      },
      { primary: [Buffer.from(this.content)], secondary: [Buffer.from(this.content)] },
      { requested: () => undefined, happened: () => undefined },
    );
  }

  do(what: string, work: () => Promise<void>): Promise<void> {
    return this.world.do(what, work, LIMIT_MS);
  }

  async start(): Promise<void> {
    const { primary, secondary } = this.pair;
    await this.do("the start", async () => {
      await secondary.start();
      await primary.start();
      await present(primary.agent).wait({ condition: "committed", ...REQUEST }, new AbortController().signal);
    });
  }

  async until(isReached: () => boolean): Promise<void> {
    while (!isReached()) await this.world.sleep(5);
  }

  /** Small writes beside each other over the whole disk, from the end on, and a checkpoint behind them. */
  async rewrite(): Promise<void> {
    const { agent } = this.pair.primary;
    const device = present(this.pair.primary.device(DISK));
    this.world.random.bytes(DISK.sizeBytes).copy(this.content);
    for (let at = DISK.sizeBytes - CLUSTER_BYTES; at >= 0; at -= CLUSTER_BYTES) {
      await device.write(Buffer.from(this.content.subarray(at, at + CLUSTER_BYTES)), at, { fua: false });
    }
    for (;;) {
      try {
        await present(agent).checkpoint({ prepare: false, ...REQUEST }, new AbortController().signal);
        return;
      } catch {
        await this.world.sleep(500); // the session was lost, and comes back
      }
    }
  }

  assertHeld(path: string): void {
    const found = present(this.pair.primary.host.disk.readFile(path));
    for (let at = 0; at < DISK.sizeBytes; at += CLUSTER_BYTES) {
      const end = at + CLUSTER_BYTES;
      assert(found.subarray(at, end).equals(this.content.subarray(at, end)), `${path} differs at ${at}`);
    }
  }
}

async function everySeed(live: (seed: number) => Promise<void>): Promise<void> {
  for (let seed = 1; seed <= LIVES; seed += 1) {
    try {
      await live(seed);
    } catch (error) {
      throw new Error(`seed ${seed}`, { cause: error });
    }
  }
  expect(LIVES).toBeGreaterThan(0);
}

describe("a mirror to a server that dies", () => {
  it("has what the disk holds when it pivots", async () => {
    await everySeed(async (seed) => {
      const scene = new ServedScene(seed, {});
      await scene.start();
      const agent = present(scene.pair.primary.agent);
      const mirror = () => agent.jobs().findLast(({ type }) => type === "mirror");
      await scene.do("the mirror", async () => {
        await agent.mirror(
          {
            disk: DISK.name,
            target: TARGET,
            sync: "full",
            copyMode: "background",
            speed: SPEED,
            granularityBytes: CLUSTER_BYTES,
            unmap: true,
            onSourceError: "report",
            onTargetError: "report",
            create: true,
            ...REQUEST,
          },
          new AbortController().signal,
        );
        await scene.until(() => mirror()?.state === "ready");
        await agent.job(present(mirror()).id, "complete", { force: false });
        await scene.until(() => mirror()?.state === "concluded");
      });
      expect(mirror()).toMatchObject({ outcome: "pivoted", error: null });
      scene.assertHeld(TARGET);
    });
  });
});

describe("committed buffers on servers that die", () => {
  it("are the checkpoint when they are applied", async () => {
    await everySeed(async (seed) => {
      const scene = new ServedScene(seed, { mode: "mc", durability: "process", bufferMemoryBytes: 16 * MIB });
      await scene.start();
      const { secondary } = scene.pair;
      for (let round = 0; round < ROUNDS; round += 1) {
        await scene.do("writes", () => scene.rewrite());
        await scene.do("the buffers", () => untilApplied(scene.world, [secondary], LIMIT_MS));
        await scene.do("a look at the checkpoint", async () => {
          await scene.world.sleep(2 * SERVER_LIFE_MAX_MS);
          const found = Buffer.alloc(DISK.sizeBytes);
          await present(secondary.device(DISK)).read(found, 0);
          assert(found.equals(scene.content), "the checkpoint is another one");
        });
      }
    });
  });
});
