/**
 * kill -9 of the secondary at random moments, under writes to two disks, during barriers, commits and resyncs: after each
 * one both disks show the same committed checkpoint, byte for byte.
 */
import { describe, expect, it } from "vitest";
import { ColobusError } from "../../proto/errors.ts";
import { SeededRandom } from "../sim/seeded-random.ts";
import { AgentPair, MIB } from "../support/agent-pair.ts";
import { firstDifference, NbdClient, readDisk } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";

const DISKS = ["vda", "vdb"] as const;
/** Half of each disk is written between checkpoints only, so that its content at each is known exactly … */
const STAMPED_BYTES = 2 * MIB;
/** … and the other half all the time. */
const NOISE_BLOCKS = 256;
const NOISE_BLOCK_BYTES = 4096;
const SIZE = STAMPED_BYTES + NOISE_BLOCKS * NOISE_BLOCK_BYTES;
const KILLS = 10;

/** What the two disks hold at a barrier. */
interface Snapshot {
  readonly name: number;
  readonly stamped: readonly Buffer[];
  /** Writes of noise that had been answered when the barrier was asked for, and that had been begun when it stood. */
  readonly noiseAtLeast: number;
  noiseAtMost: number;
}

/** Writes a counter to one block after the other, always to the first disk and then to the second. */
class Noise {
  readonly #clients: readonly NbdClient[];
  begun = 0;
  answered = 0;
  #stopped = false;
  #paused: Promise<void> | undefined;
  #idle: (() => void) | undefined;
  readonly ended: Promise<void>;

  constructor(clients: readonly NbdClient[]) {
    this.#clients = clients;
    this.ended = this.#run();
    this.ended.catch(() => undefined); // awaited by the test at its end
  }

  /** Resolves when no write is under way, and none will begin until `work` is done. */
  async whilePaused(work: () => Promise<void>): Promise<void> {
    let resume = (): void => undefined;
    const idle = new Promise<void>((resolve) => {
      this.#idle = resolve;
    });
    this.#paused = new Promise((resolve) => {
      resume = resolve;
    });
    await Promise.race([idle, this.ended]);
    await work();
    this.#paused = undefined;
    resume();
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.ended;
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      if (this.#paused !== undefined) {
        this.#idle?.();
        await this.#paused;
      }
      this.begun += 1;
      const pattern = Buffer.alloc(8);
      pattern.writeBigUInt64BE(BigInt(this.begun));
      for (const client of this.#clients) {
        await client.write({ offset: noiseOffset(this.begun), length: NOISE_BLOCK_BYTES }, pattern);
      }
      this.answered = this.begun;
      await new Promise((resolve) => {
        setTimeout(resolve, 1); // leaves the processor to the agents
      });
    }
  }
}

function noiseOffset(count: number): number {
  return STAMPED_BYTES + (count % NOISE_BLOCKS) * NOISE_BLOCK_BYTES;
}

/** How many writes of noise a disk shows. Throws where it does not show exactly the first so many. */
function countNoise(disk: Buffer): number {
  const at = (offset: number): number => Number(disk.readBigUInt64BE(offset));
  let count = 0;
  for (let block = 0; block < NOISE_BLOCKS; block += 1) {
    count = Math.max(count, at(STAMPED_BYTES + block * NOISE_BLOCK_BYTES));
  }
  const expected = Buffer.alloc(SIZE);
  for (let number = Math.max(1, count - NOISE_BLOCKS + 1); number <= count; number += 1) {
    const pattern = Buffer.alloc(8);
    pattern.writeBigUInt64BE(BigInt(number));
    expected.fill(pattern, noiseOffset(number), noiseOffset(number) + NOISE_BLOCK_BYTES);
  }
  const difference = firstDifference(disk.subarray(STAMPED_BYTES), expected.subarray(STAMPED_BYTES));
  if (difference !== undefined) throw new Error(`the noise is not what ${count} writes leave: ${difference}`);
  return count;
}

class Torture {
  readonly #random: SeededRandom;
  readonly #pair: AgentPair;
  readonly #clients: readonly NbdClient[];
  readonly #noise: Noise;
  readonly #stamped = DISKS.map(() => Buffer.alloc(STAMPED_BYTES));
  #stamp = 0;
  #committed: Snapshot;
  /** The snapshot whose commit has been asked for, and not been answered. */
  #inFlight: Snapshot | undefined;
  readonly #prepared = new Map<number, Snapshot>();
  readonly counts = { committed: 0, inFlightCommitted: 0, duringResync: 0 };

  private constructor(random: SeededRandom, pair: AgentPair, clients: readonly NbdClient[], noise: Noise) {
    this.#random = random;
    this.#pair = pair;
    this.#clients = clients;
    this.#noise = noise;
    this.#committed = {
      name: 0,
      stamped: this.#stamped.map((disk) => Buffer.from(disk)),
      noiseAtLeast: 0,
      noiseAtMost: 0,
    };
  }

  static async start(durability: string, seed: number): Promise<Torture> {
    const pair = await AgentPair.protected({ disks: { vda: SIZE, vdb: SIZE }, flags: ["--durability", durability] });
    const connect = (): Promise<NbdClient[]> =>
      Promise.all(DISKS.map((disk) => NbdClient.connect(pair.primary.uri(disk))));
    const noise = new Noise(await connect());
    return new Torture(new SeededRandom(seed), pair, await connect(), noise);
  }

  /** One life of the secondary: checkpoints until it is killed; then it is started again, and looked at. */
  async live(): Promise<void> {
    const { secondary, primary } = this.#pair;
    if (this.#random.chance(0.25)) {
      await secondary.until("connected", ({ peers }) => peers[0]?.connection === "Connected");
      await this.#killSoon(10);
      this.counts.duringResync += 1;
    } else {
      await primary.until("in sync", ({ peers }) => peers[0]?.replication === "Established");
      await this.#commitLeftover();
      for (let rounds = this.#random.below(3); rounds > 0; rounds -= 1) await this.#round();
      const step = this.#random.pick(["write", "prepare", "commit", "commit"] as const);
      let killing: Promise<void> | undefined;
      await this.#round((reached) => {
        if (reached === step) killing = this.#killSoon(6);
      }).catch(ignoreLoss);
      await (killing ?? secondary.crash());
    }
    await secondary.start();
    await this.#check();
  }

  async #killSoon(withinMs: number): Promise<void> {
    const delayMs = this.#random.within([0, withinMs]);
    await new Promise((resolve) => {
      setTimeout(resolve, delayMs);
    });
    await this.#pair.secondary.crash();
  }

  /** In the end everything is equal. */
  async finish(): Promise<void> {
    const { primary, secondary } = this.#pair;
    await this.#pair.untilProtected();
    await this.#noise.stop();
    await this.#pair.checkpoint();
    for (const disk of DISKS) {
      const [shown, original] = await Promise.all([readDisk(secondary.uri(disk)), readDisk(primary.uri(disk))]);
      expect(firstDifference(shown, original)).toBeUndefined();
      expect(firstDifference(this.#pair.image("b", disk), original)).toBeUndefined();
      const stamped = this.#stamped[DISKS.indexOf(disk)]!;
      expect(firstDifference(original.subarray(0, STAMPED_BYTES), stamped)).toBeUndefined();
    }
  }

  /** Writes, and takes a checkpoint in one of the ways there are; `reached` is called before each step. */
  async #round(reached: (step: "write" | "prepare" | "commit") => void = () => undefined): Promise<void> {
    const { control } = this.#pair.primary;
    const request = { timeoutMs: 30_000 };
    reached("write");
    await this.#writeStamp();
    const snapshot = this.#takeSnapshot();
    reached("prepare");
    if (this.#random.chance(0.3)) {
      this.#inFlight = snapshot;
      await control.checkpoint({ prepare: false, ...request });
      snapshot.noiseAtMost = this.#noise.begun;
      this.#setCommitted(snapshot);
      return;
    }
    const { epoch } = await control.checkpoint({ prepare: true, ...request });
    snapshot.noiseAtMost = this.#noise.begun;
    this.#prepared.set(epoch, snapshot);
    if (this.#random.chance(0.15)) return; // stays prepared
    if (this.#random.chance(0.15)) {
      this.#prepared.delete(epoch);
      await control.discard({ epoch, ...request });
      return;
    }
    this.#inFlight = snapshot;
    reached("commit");
    // The next epoch is written while this one is being committed.
    const committing = control.commit({ epoch, ...request });
    const outcome = await Promise.allSettled([committing, this.#writeStamp()]);
    for (const settled of outcome) if (settled.status === "rejected") throw settled.reason;
    this.#setCommitted(snapshot);
  }

  /** A checkpoint that was prepared before the kill can be committed after it. */
  async #commitLeftover(): Promise<void> {
    const [leftover] = [...this.#prepared].filter(([, snapshot]) => snapshot.name > this.#committed.name);
    this.#prepared.clear();
    if (leftover === undefined) return;
    const [epoch, snapshot] = leftover;
    expect((await this.#pair.secondary.status()).epoch.prepared).toContain(epoch);
    await this.#pair.primary.control.commit({ epoch, timeoutMs: 30_000 });
    this.#setCommitted(snapshot);
    await this.#check();
  }

  async #writeStamp(): Promise<void> {
    this.#stamp += 1;
    const pattern = Buffer.alloc(4);
    pattern.writeUInt32BE(this.#stamp);
    for (let write = 0; write < 6; write += 1) {
      const length = 4 * (1 + this.#random.below(6000));
      const offset = this.#random.below(STAMPED_BYTES - length);
      for (const [index, client] of this.#clients.entries()) {
        await client.write({ offset, length }, pattern);
        this.#stamped[index]!.fill(pattern, offset, offset + length);
      }
    }
  }

  #takeSnapshot(): Snapshot {
    return {
      name: this.#stamp,
      stamped: this.#stamped.map((disk) => Buffer.from(disk)),
      noiseAtLeast: this.#noise.answered,
      noiseAtMost: Infinity,
    };
  }

  #setCommitted(snapshot: Snapshot): void {
    this.counts.committed += 1;
    this.#committed = snapshot;
    this.#inFlight = undefined;
  }

  /** Both disks show the checkpoint that was committed last, or the one whose commit was under way. */
  async #check(): Promise<void> {
    const { secondary } = this.#pair;
    const shown: Buffer[] = [];
    for (const disk of DISKS) shown.push(await readDisk(secondary.uri(disk)));
    const candidates = this.#inFlight === undefined ? [this.#committed] : [this.#inFlight, this.#committed];
    const differences: string[] = [];
    const found = candidates.find(({ name, stamped }) =>
      stamped.every((expected, index) => {
        const difference = firstDifference(shown[index]!.subarray(0, STAMPED_BYTES), expected);
        if (difference !== undefined) differences.push(`not ${name} on ${DISKS[index]}: ${difference}`);
        return difference === undefined;
      }),
    );
    if (found === undefined) throw new Error(`the disks show no checkpoint: ${differences.join("; ")}`);
    const [first, second] = shown.map(countNoise);
    // A barrier may stand between the two writes of one count, and nowhere else.
    expect([0, 1]).toContain(first! - second!);
    expect(second).toBeGreaterThanOrEqual(found.noiseAtLeast);
    expect(first).toBeLessThanOrEqual(found.noiseAtMost);
    if (found === this.#inFlight) this.counts.inFlightCommitted += 1;
    this.#committed = found;
    this.#inFlight = undefined;
  }
}

/** The failures that a request may see whose secondary is killed. */
function ignoreLoss(error: unknown): void {
  const allowed = ["no-peer", "outcome-unknown", "timed-out", "epoch-unknown"];
  if (!(error instanceof ColobusError) || !allowed.includes(error.code)) throw error;
}

describe.runIf(requirePeers("nbdcopy", "python3:nbd"))("kill -9 of the secondary", () => {
  it.each([
    ["process", 101],
    ["power", 202],
  ])("never loses or mixes a committed checkpoint of two disks (durability %s)", async (durability, seed) => {
    const torture = await Torture.start(durability, seed);
    for (let kill = 0; kill < KILLS; kill += 1) await torture.live();
    await torture.finish();
    console.log(`${KILLS} kills with durability ${durability}: ${JSON.stringify(torture.counts)}`);
    expect(torture.counts.committed).toBeGreaterThan(KILLS / 4);
  });
});
