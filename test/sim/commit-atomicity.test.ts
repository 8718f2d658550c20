import { describe, expect, it } from "vitest";
import type { Durability } from "../../proto/words.ts";
import { Calls } from "./calls.ts";
import type { DiskModel } from "./disk-model.ts";
import { ModelWrite } from "./disk-model.ts";
import { PairModel } from "./pair-model.ts";
import { imagePath, makePair, type Pair, type PairDisk, type PairOptions } from "./pair.ts";
import type { SeededRandom } from "./seeded-random.ts";
import { SimWorld } from "./world.ts";

/**
 * All disks of a VM commit together: a checkpoint over two disks is prepared and committed, and the secondary dies at
 * each of its storage calls on the way, and at each of those that free what the commit has dropped. Whenever that is,
 * both disks show the same checkpoint afterwards, and the one that was answered; and the pair comes together again.
 */
const DISKS: readonly PairDisk[] = [
  { name: "vda", sizeBytes: 10 * 4096 + 1536 },
  { name: "vdb", sizeBytes: 16 * 4096 },
];
const SEEDS = [1, 2, 3];
const WRITES = 6;
const TIMEOUT_MS = 60_000;
const COMMAND = { timeoutMs: TIMEOUT_MS } as const;

const OPTIONS: Omit<PairOptions, "durability"> = {
  disks: DISKS,
  clusterBytes: 4096,
  ack: "async",
  access: "read-write",
  windowBytes: 1024 * 1024,
  peerTimeoutMs: 5_000,
  createImages: false,
  checkpointEveryMs: undefined,
};

/** One pair with a checkpoint behind it, whose secondary dies at a certain storage call of the next. */
class Checkpointed {
  readonly world: SimWorld;
  readonly pair: Pair;
  readonly model: PairModel;
  readonly #calls: Calls;
  readonly #random: SeededRandom;

  constructor(seed: number, durability: Durability) {
    this.world = new SimWorld(seed);
    this.#random = this.world.random;
    this.#calls = new Calls(this.world);
    const contents = DISKS.map(({ sizeBytes }) => this.#bytes(sizeBytes));
    this.model = new PairModel(DISKS, contents, () => undefined);
    const observer = this.model;
    this.pair = makePair(
      this.world,
      { ...OPTIONS, durability },
      { primary: contents, secondary: contents.map((content) => Buffer.alloc(content.length)) },
      observer,
    );
    this.model.watch(this.pair.primary);
  }

  /** Lets something happen in the world, and waits for its end. */
  async do<T>(what: string, work: () => Promise<T>): Promise<T> {
    return this.world.runFor(
      what,
      new Promise<T>((resolve, reject) => {
        this.world.schedule(0, () => void work().then(resolve, reject));
      }),
    );
  }

  async start(): Promise<void> {
    await this.do("the start", async () => {
      await this.pair.secondary.start();
      await this.pair.primary.start();
      await this.#wait("committed");
      await this.#writeSome();
    });
    // The second epoch has generations, and the secondary's VM an active disk: a commit has something to drop.
    await this.do("a checkpoint", () => this.checkpoint());
    await this.do("writes", () => this.#writeSome());
  }

  /** False when the secondary died before it was answered. */
  async checkpoint(): Promise<boolean> {
    const { agent } = this.pair.primary;
    if (agent === undefined) return false;
    const signal = new AbortController().signal;
    const outcome = await this.#calls.make(this.pair.primary, "checkpoint", TIMEOUT_MS, () =>
      agent.checkpoint({ prepare: false, ...COMMAND }, signal),
    );
    return outcome.kind === "done";
  }

  /** After a start of the secondary: every disk shows the checkpoint that its record names. Returns its epoch. */
  async checkView(): Promise<number> {
    const { agent } = this.pair.secondary;
    const epoch = agent?.status().epoch;
    if (epoch === undefined) throw new Error("the secondary does not run");
    this.model.observeSecondary(epoch);
    for (const [index, disk] of DISKS.entries()) {
      const content = Buffer.alloc(disk.sizeBytes);
      await this.pair.secondary.device(disk)?.read(content, 0);
      this.model.view[index]?.check(content, 0, `${disk.name} at epoch ${epoch.committed}`);
    }
    return epoch.committed;
  }

  /** The pair comes together again, and the next checkpoint makes both copies equal. */
  async checkRecovery(): Promise<void> {
    // Until the primary has noticed the loss of power, it waits for the dead session.
    let taken = false;
    for (let attempt = 0; attempt < 3 && !taken; attempt += 1) {
      await this.#wait("synced");
      taken = await this.checkpoint();
    }
    expect(taken).toBe(true);
    for (const disk of DISKS) {
      const [primary, secondary] = [this.pair.primary, this.pair.secondary].map(({ host }) =>
        host.disk.readFile(imagePath(disk)),
      );
      expect(secondary?.equals(primary ?? Buffer.alloc(0))).toBe(true);
    }
  }

  async #wait(condition: "committed" | "synced"): Promise<void> {
    await this.pair.primary.agent?.wait({ condition, ...COMMAND }, new AbortController().signal);
  }

  /** The guest writes to both disks, and the secondary's VM to its view of both. */
  async #writeSome(): Promise<void> {
    for (let count = 0; count < WRITES; count += 1) {
      const index = count % DISKS.length;
      await this.#write(this.pair.primary, index, this.model.guest[index]);
      if (count < DISKS.length) await this.#write(this.pair.secondary, index, undefined);
    }
  }

  async #write(member: Pair["primary"], index: number, model: DiskModel | undefined): Promise<void> {
    const disk = DISKS[index];
    const device = disk === undefined ? undefined : member.device(disk);
    if (disk === undefined || device === undefined) return;
    const length = 1 + this.#random.below(3 * 4096);
    const offset = this.#random.below(disk.sizeBytes - length);
    const write = new ModelWrite(offset, length, this.#bytes(length));
    if (member === this.pair.secondary) {
      this.model.observeCommitted(member.agent?.status().epoch.committed ?? 0);
      model = this.model.view[index];
    }
    model?.begin(write);
    await device.write(write.data ?? Buffer.alloc(0), offset, { fua: member === this.pair.secondary });
    write.settled = true;
    if (member === this.pair.secondary) model?.flushed(new Set([write]));
  }

  #bytes(length: number): Buffer {
    const bytes = Buffer.alloc(length);
    this.#random.fill(bytes);
    return bytes;
  }
}

/** Lives until the secondary dies at its `dyingCall`-th storage call after the start; false when it outlived that. */
async function dieAt(seed: number, dyingCall: number, durability: Durability): Promise<boolean> {
  const life = new Checkpointed(seed, durability);
  const { world, pair, model } = life;
  await life.start();
  const before = model.committed;
  const { host } = pair.secondary;
  host.disk.faults.crashAt(dyingCall, durability);
  let answered = false;
  world.schedule(0, () => {
    void life.checkpoint().then((done) => {
      answered = done;
    });
  });
  // An answered checkpoint leaves generations to be freed behind it: death may come there too.
  await world.run({ until: () => !host.alive || answered, forMs: TIMEOUT_MS });
  if (host.alive) await world.run({ until: () => !host.alive, forMs: 50 });
  if (host.alive) return false;
  host.disk.faults.clear();
  const died = answered;
  host.restart();
  await life.do("the start after the crash", () => pair.secondary.start());
  const committed = await life.do("the view", () => life.checkView());
  const after = before + 1;
  expect(committed).toBe(died ? after : committed === after ? after : before);
  await life.do("the recovery", () => life.checkRecovery());
  return true;
}

describe("a checkpoint of two disks, whose secondary dies at every storage call", () => {
  it.each<Durability>(["process", "power"])("is committed on both disks, or on none: %s", async (durability) => {
    let deaths = 0;
    for (const seed of SEEDS) {
      for (let call = 1; await dieAt(seed, call, durability); call += 1) deaths += 1;
    }
    console.log(deaths);
    expect(deaths).toBeGreaterThan(SEEDS.length * 30);
  });
});
