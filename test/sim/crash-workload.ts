import assert from "node:assert/strict";
import type { Durability } from "../../proto/words.ts";
import { crashImages, crashUnits, fingerprint, survivalOf, type CrashImage } from "./crash-image.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import type { SeededRandom } from "./seeded-random.ts";
import { SimulatedCrash } from "./simulated-crash.ts";

/**
 * A few operations on a pair with two tiny disks, lived as often as it takes to lose the secondary at every moment of
 * the last of them, and of what goes on behind it. A *moment* is just before a change of the secondary's disk, or of
 * what its medium holds, and at the end: whatever was promised by then has to be kept by what is on the disk. The same
 * workload lives the same life up to the moment, so an image that was chosen for it in one life fits the next.
 */
export const CRASH_OPERATIONS = [
  "write",
  "part",
  "zero",
  "trim",
  "checkpoint",
  "commit",
  "withdraw",
  "view-write",
  "view-flush",
] as const;
export type CrashOperation = (typeof CRASH_OPERATIONS)[number];

/** One moment, and what is left then. */
export interface CrashCase {
  /** Changes of the secondary's disk that come before the moment, since the last operation began. */
  readonly changes: number;
  /** What the loss of power leaves; undefined: only the process is killed. */
  readonly image: CrashImage | undefined;
}

const CLUSTER_BYTES = 4096;
const DISKS = [
  { name: "vda", sizeBytes: 3 * CLUSTER_BYTES + 1536 },
  { name: "vdb", sizeBytes: 4 * CLUSTER_BYTES },
];
/** Between operations: none, less than an fsync behind the stream takes to come, or time for all to be done. */
const PAUSES_MS = [0, 2, 300];
/** What goes on behind the last operation has ended by then. */
const QUIET_MS = 300;
const PEER_TIMEOUT_MS = 1_000;
const WITHIN_MS = 60_000;

export class CrashWorkload {
  readonly operations: readonly CrashOperation[];
  readonly durability: Durability;
  readonly #seed: number;

  constructor(operations: readonly CrashOperation[], durability: Durability) {
    this.operations = operations;
    this.durability = durability;
    this.#seed = operations.reduce(
      (number, operation) => number * CRASH_OPERATIONS.length + CRASH_OPERATIONS.indexOf(operation) + 1,
      0,
    );
  }

  /** Lives the workload in peace, and checks its end. Returns every case: with durability `process` one for each moment. */
  async cases(random: SeededRandom): Promise<CrashCase[]> {
    const cases: CrashCase[] = [];
    const scripted = this.#makePair();
    await this.#live(scripted, (changes) => {
      if (this.durability === "process") cases.push({ changes, image: undefined });
      else {
        const units = crashUnits(scripted.pair.secondary.host.disk);
        for (const image of crashImages(units, random)) cases.push({ changes, image });
      }
    });
    await scripted.checkEnd();
    return cases;
  }

  /** Leaves out the cases in which the disk is left, and everything was promised, as in one before. */
  async distinct(cases: readonly CrashCase[]): Promise<CrashCase[]> {
    const found = new Map<string, CrashCase>();
    const scripted = this.#makePair();
    await this.#live(scripted, (changes) => {
      const promises = describePromises(scripted);
      for (const candidate of cases) {
        if (candidate.changes !== changes) continue;
        const disk = scripted.pair.secondary.host.disk.fork();
        if (candidate.image !== undefined) disk.crash("power", survivalOf(disk, candidate.image));
        const key = `${fingerprint(disk)} ${promises}`;
        if (!found.has(key)) found.set(key, candidate);
      }
    });
    return [...found.values()];
  }

  /** Lives up to the moment, has the secondary die of it, starts it again, and checks all that was promised. */
  async crashAt({ changes, image }: CrashCase): Promise<void> {
    const scripted = this.#makePair();
    const { host } = scripted.pair.secondary;
    const kind = image === undefined ? "process" : "power";
    await this.#live(scripted, (moment) => {
      if (moment !== changes) return;
      host.disk.beforeChange = undefined;
      host.crash(kind, image === undefined ? undefined : survivalOf(host.disk, image));
      scripted.model.secondaryDied(kind);
      throw new SimulatedCrash("the secondary");
    });
    assert(!host.alive, `there is no moment ${changes}`);
    await scripted.restartSecondary();
    await scripted.checkPrepared();
    await scripted.checkRecovery();
  }

  #makePair(): ScriptedPair {
    const options = { disks: DISKS, clusterBytes: CLUSTER_BYTES, peerTimeoutMs: PEER_TIMEOUT_MS };
    return new ScriptedPair(this.#seed, this.durability, options);
  }

  /** Lives until all has ended, or the secondary is dead: `atMoment` ends it by throwing SimulatedCrash. */
  async #live(scripted: ScriptedPair, atMoment: (changes: number) => void): Promise<void> {
    const { world, pair } = scripted;
    const { host } = pair.secondary;
    const pauses = world.random.fork("pauses");
    await scripted.start();
    let changes = 0;
    for (const [index, operation] of this.operations.entries()) {
      const isLast = index === this.operations.length - 1;
      if (isLast) {
        host.disk.beforeChange = () => {
          changes += 1;
          atMoment(changes - 1);
        };
      }
      let ended = false;
      world.schedule(0, () => {
        perform(scripted, operation).then(
          () => {
            ended = true;
          },
          (error: unknown) => world.fail(operation, error),
        );
      });
      await world.run({ until: () => ended || !host.alive, forMs: WITHIN_MS });
      if (!host.alive) return;
      await world.run({ until: () => !host.alive, forMs: isLast ? QUIET_MS : pauses.pick(PAUSES_MS) });
      if (!host.alive) return;
    }
    host.disk.beforeChange = undefined;
    world.schedule(0, () => atMoment(changes));
    await world.run({ forMs: 1 });
  }
}

/** All that the secondary is bound to, and what the primary believes of it. */
function describePromises({ pair, model }: ScriptedPair): string {
  const status = pair.primary.agent?.status();
  return JSON.stringify([model.describePromises(), status?.peers[0]?.lagBytes, status?.disks]);
}

/** The ranges overlap each other across clusters and operations, and begin and end within clusters and at their edges. */
async function perform(scripted: ScriptedPair, operation: CrashOperation): Promise<void> {
  switch (operation) {
    case "write":
      await Promise.all([0, 1].map((disk) => scripted.guestWrite(disk, CLUSTER_BYTES, CLUSTER_BYTES, "bytes")));
      break;
    case "part":
      await scripted.guestWrite(0, CLUSTER_BYTES + 1024, CLUSTER_BYTES, "bytes");
      break;
    case "zero":
      await scripted.guestWrite(1, CLUSTER_BYTES + 512, 2 * CLUSTER_BYTES, "zero");
      break;
    case "trim":
      await scripted.guestWrite(0, CLUSTER_BYTES, 2 * CLUSTER_BYTES, "discard");
      break;
    case "checkpoint":
      await scripted.checkpoint();
      break;
    case "commit":
    case "withdraw": {
      const epoch = await scripted.prepare();
      // The guest goes on, over what the checkpoint holds: both epochs have an original of the cluster then.
      await scripted.guestWrite(0, CLUSTER_BYTES + 2048, 1024, "bytes");
      if (epoch !== undefined) await scripted.decide(operation === "commit" ? "commit" : "discard", epoch);
      break;
    }
    case "view-write":
      await scripted.viewWrite(0, CLUSTER_BYTES + 100, 300);
      await scripted.viewWrite(1, 2 * CLUSTER_BYTES, CLUSTER_BYTES);
      break;
    case "view-flush":
      await Promise.all([0, 1].map((disk) => scripted.flushView(disk)));
      break;
  }
}
