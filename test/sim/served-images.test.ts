import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import type { Durability } from "../../proto/words.ts";
import { livesToLive } from "./life-groups.ts";
import { makePair, type Pair, type PairMember } from "./pair.ts";
import { SeededRandom } from "./seeded-random.ts";
import { SimWorld } from "./world.ts";

/**
 * Pairs whose images lie behind NBD servers that die and take unflushed writes along, while the agents are killed, lose
 * their power, or lose each other. What a guest was answered is there, and each checkpoint is what it was.
 */
const LIVES = livesToLive("COLOBUS_SERVED_LIVES", { inCi: 30, here: 10 });
const ROUNDS = 6;
const DISK = { name: "vda", sizeBytes: 512 * 1024 };
/** Writes of one round lie apart, each in a slot of its own. */
const SLOTS = 32;
const SLOT_BYTES = DISK.sizeBytes / SLOTS;
const REQUEST = { timeoutMs: 300_000 } as const;
const LIMIT_MS = 600_000;

class ServedPair {
  readonly world: SimWorld;
  readonly pair: Pair;
  readonly #random: SeededRandom;
  /** What the guest's disk holds, and the last checkpoint. */
  readonly content = Buffer.alloc(DISK.sizeBytes);
  committed = Buffer.alloc(0);

  constructor(seed: number, durability: Durability) {
    this.world = new SimWorld(seed);
    this.#random = new SeededRandom(seed).fork("served");
    this.pair = makePair(
      this.world,
      {
        disks: [DISK],
        clusterBytes: 4096,
        durability,
        ack: this.#random.pick(["async", "applied"]),
        access: "read-only",
        windowBytes: 1024 * 1024,
        peerTimeoutMs: 5_000,
        createImages: this.#random.chance(0.5),
        checkpointEveryMs: undefined,
        retain: 0,
        overlayLimitBytes: undefined,
        servesImages: true,
      },
      { primary: [this.content], secondary: [Buffer.alloc(DISK.sizeBytes)] },
      { requested: () => undefined, happened: () => undefined },
    );
  }

  async live(): Promise<void> {
    const { primary, secondary } = this.pair;
    await this.#do("the start", async () => {
      await secondary.start();
      await primary.start();
    });
    for (let round = 0; round < ROUNDS; round += 1) {
      await this.#do("writes", () => this.#write());
      await this.#do("a look at the disk", () => this.#check(primary, this.content));
      await this.#do("a fault", () => this.#fault());
      await this.#do("a checkpoint", () => this.#checkpoint());
      await this.#do("writes behind the checkpoint", () => this.#write());
      await this.#do("a look at the checkpoint", () => this.#check(secondary, this.committed));
    }
    await this.#failOver();
  }

  #do(what: string, work: () => Promise<void>): Promise<void> {
    return this.world.do(what, work, LIMIT_MS);
  }

  async #write(): Promise<void> {
    const device = this.pair.primary.device(DISK);
    assert(device !== undefined);
    const work: Promise<void>[] = [];
    for (let slot = 0; slot < SLOTS; slot += 1) {
      if (this.#random.chance(0.4)) continue;
      const length = 1 + this.#random.below(SLOT_BYTES - 512);
      const offset = slot * SLOT_BYTES + this.#random.below(SLOT_BYTES - length);
      const fua = this.#random.chance(0.1);
      if (this.#random.chance(0.25)) {
        this.content.fill(0, offset, offset + length);
        work.push(device.zero(offset, length, { fua, mayUnmap: this.#random.chance(0.5) }) ?? Promise.resolve());
      } else {
        const bytes = Buffer.alloc(length, 1 + this.#random.below(255));
        bytes.copy(this.content, offset);
        work.push(device.write(bytes, offset, { fua }) ?? Promise.resolve());
      }
      if (this.#random.chance(0.3)) await this.world.sleep(this.#random.fraction() * 300);
    }
    await Promise.all(work);
    if (this.#random.chance(0.5)) await device.flush();
  }

  async #check(member: PairMember, expected: Buffer): Promise<void> {
    const device = member.device(DISK);
    assert(device !== undefined);
    const found = Buffer.alloc(DISK.sizeBytes);
    await device.read(found, 0);
    assert(found.equals(expected), `${member.name} holds something else`);
    let at = 0;
    while (at < DISK.sizeBytes) {
      for (const { length, zero } of await device.extents(at, DISK.sizeBytes - at, 16)) {
        assert(!zero || expected.subarray(at, at + length).every((byte) => byte === 0), "a hole is none");
        at += length;
      }
    }
  }

  async #fault(): Promise<void> {
    const { primary, secondary } = this.pair;
    const kind = this.#random.pick(["none", "primary", "secondary", "partition"]);
    if (kind === "partition") {
      this.world.network.partition("a", "b", true);
      await this.#write();
      await this.world.sleep(this.#random.fraction() * 12_000);
      this.world.network.partition("a", "b", false);
      return;
    }
    if (kind === "none") return;
    const member = kind === "primary" ? primary : secondary;
    if (kind === "primary") await primary.device(DISK)?.flush();
    member.host.crash(this.#random.pick(["process", "power"]));
    await this.world.sleep(this.#random.fraction() * 8_000);
    member.host.restart();
    assert(await member.start());
    if (kind === "primary") await this.#check(primary, this.content);
  }

  async #checkpoint(): Promise<void> {
    for (;;) {
      const { agent } = this.pair.primary;
      assert(agent !== undefined);
      const asked = Buffer.from(this.content);
      try {
        await agent.wait({ condition: "synced", ...REQUEST }, new AbortController().signal);
        await agent.checkpoint({ prepare: false, ...REQUEST }, new AbortController().signal);
        this.committed = asked;
        return;
      } catch {
        // Without a session there is no checkpoint; the two come together again.
        await this.world.sleep(500);
      }
    }
  }

  async #failOver(): Promise<void> {
    const { primary, secondary } = this.pair;
    primary.host.crash("power");
    await this.#do("the failover", async () => {
      const { agent } = secondary;
      assert(agent !== undefined);
      await agent.failover(
        { force: true, dryRun: false, discardActive: false, ...REQUEST },
        new AbortController().signal,
      );
      await this.#check(secondary, this.committed);
      await agent.wait({ condition: "merged", ...REQUEST }, new AbortController().signal);
      await this.#check(secondary, this.committed);
      await secondary.device(DISK)?.flush();
    });
    secondary.host.crash("power");
    secondary.host.restart();
    await this.#do("the last look", async () => {
      assert(await secondary.start());
      const { agent } = secondary;
      await agent?.startAlone({ force: false });
      await this.#check(secondary, this.committed);
    });
  }
}

describe("a pair on images behind servers that die", () => {
  it.each<Durability>(["power", "process"])(
    "keeps what it has answered, and every checkpoint (%s)",
    async (durability) => {
      for (let seed = 1; seed <= LIVES; seed += 1) {
        try {
          await new ServedPair(seed, durability).live();
        } catch (error) {
          throw new Error(`seed ${seed}`, { cause: error });
        }
      }
      expect(LIVES).toBeGreaterThan(0);
    },
  );
});
