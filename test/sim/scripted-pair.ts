import assert from "node:assert/strict";
import type { Durability } from "../../proto/words.ts";
import type { BlockDevice } from "../../shared/block/block-device.ts";
import { bufferedBytes, checkpointsUntilApplied } from "./buffered-bytes.ts";
import { Calls, type Outcome } from "./calls.ts";
import { readRecord } from "./crash-remains.ts";
import { ModelWrite, type DiskModel } from "./disk-model.ts";
import { MirrorStream } from "./mirror-stream.ts";
import { PairModel } from "./pair-model.ts";
import { imagePath, makePair, type Pair, type PairDisk, type PairMember, type PairOptions } from "./pair.ts";
import type { SeededRandom } from "./seeded-random.ts";
import { SimWorld } from "./world.ts";

/**
 * A small pair of two disks for tests that say step by step what happens, mostly a death at a certain storage call; the
 * model of whole lives checks what both disks show.
 */
const DISKS: readonly PairDisk[] = [
  { name: "vda", sizeBytes: 10 * 4096 + 1536 },
  { name: "vdb", sizeBytes: 16 * 4096 },
];
const WRITES = 6;
const TIMEOUT_MS = 60_000;
const COMMAND = { timeoutMs: TIMEOUT_MS } as const;
/** A dead session is found out by the first checkpoint at the latest. */
const ATTEMPTS_MAX = 3;

const OPTIONS: Omit<PairOptions, "durability"> = {
  disks: DISKS,
  clusterBytes: 4096,
  ack: "async",
  access: "read-write",
  windowBytes: 1024 * 1024,
  peerTimeoutMs: 5_000,
  createImages: false,
  checkpointEveryMs: undefined,
  retain: 0,
  overlayLimitBytes: undefined,
};

export class ScriptedPair {
  readonly world: SimWorld;
  readonly pair: Pair;
  readonly model: PairModel;
  readonly disks: readonly PairDisk[];
  readonly options: Omit<PairOptions, "durability">;
  readonly calls: Calls;
  readonly #random: SeededRandom;
  /** Something that `do` was given is under way: the world runs already. */
  #isInWorld = false;

  constructor(
    seed: number,
    durability: Durability,
    options: Partial<PairOptions> | ((world: SimWorld) => Partial<PairOptions>) = {},
  ) {
    this.world = new SimWorld(seed);
    this.#random = this.world.random;
    this.calls = new Calls(this.world);
    this.options = { ...OPTIONS, ...(typeof options === "function" ? options(this.world) : options) };
    this.disks = this.options.disks;
    const contents = this.disks.map(({ sizeBytes }) => this.#random.bytes(sizeBytes));
    const stream = this.options.mode === "mirror" ? new MirrorStream({ ack: this.options.ack, durability }) : undefined;
    this.model = new PairModel(this.disks, contents, () => undefined, stream);
    this.pair = makePair(
      this.world,
      { ...this.options, durability },
      {
        primary: contents,
        secondary: this.options.assumeInSync === true ? contents : contents.map(({ length }) => Buffer.alloc(length)),
      },
      this.model,
    );
    this.model.watch(this.pair.primary);
  }

  /** Lets something happen in the world, and waits for its end. */
  async do<T>(what: string, work: () => Promise<T>): Promise<T> {
    this.#isInWorld = true;
    try {
      return await this.world.do(what, work);
    } finally {
      this.#isInWorld = false;
    }
  }

  /** Lets time pass until the condition holds; fails, naming `what`, when it takes implausibly long. */
  async until(what: string, condition: () => boolean): Promise<void> {
    if (this.#isInWorld) {
      while (!condition()) await this.world.sleep(1);
    } else await this.world.runUntil(what, condition, TIMEOUT_MS);
  }

  /** Starts both agents, and returns when the first checkpoint is committed. */
  async start(): Promise<void> {
    await this.do("the start", async () => {
      await this.pair.secondary.start();
      await this.pair.primary.start();
      await this.wait("committed");
    });
  }

  /** What a commit drops: originals that a closed epoch has saved, and what the secondary's VM has written. */
  async fillOverlays(): Promise<void> {
    await this.do("writes", () => this.#writeSome());
    await this.do("a checkpoint", () => this.checkpoint());
    await this.do("later writes", () => this.#writeSome());
  }

  /** The secondary starts again after its death: its view is there at once. Returns the committed epoch. */
  async restartSecondary(): Promise<number> {
    const { secondary } = this.pair;
    secondary.host.disk.faults.clear();
    secondary.host.restart();
    assert(await this.do("the start of the secondary", () => secondary.start()));
    return this.do("the view", () => this.lookAtView());
  }

  /** False when the secondary died before it was answered. */
  async checkpoint(): Promise<boolean> {
    return (await this.checkpointOutcome()).kind === "done";
  }

  async checkpointOutcome(): Promise<Outcome<unknown>> {
    const { agent } = this.pair.primary;
    if (agent === undefined) return { kind: "lost" };
    const signal = new AbortController().signal;
    return this.calls.make(this.pair.primary, "checkpoint", TIMEOUT_MS, () =>
      agent.checkpoint({ prepare: false, ...COMMAND }, signal),
    );
  }

  /** The two swap their roles. What the disks hold is not followed any further. */
  async switchOver(): Promise<void> {
    const { agent } = this.pair.primary;
    await this.do("the switchover", async () =>
      agent?.switchover({ closeClients: false, ...COMMAND }, new AbortController().signal),
    );
  }

  /** A client opens the committed checkpoint of one disk, reads all of it, and leaves. */
  async readKept(index: number): Promise<Outcome<unknown>> {
    const { secondary } = this.pair;
    const exports = secondary.agent?.exports;
    const kept = exports?.find(`${this.disks[index]?.name}@committed`);
    if (exports === undefined || kept === undefined) return { kind: "lost" };
    exports.opened(kept);
    const content = Buffer.alloc(kept.sizeBytes);
    const outcome = await this.calls.make(secondary, "read of a kept checkpoint", TIMEOUT_MS, () =>
      kept.device.read(content, 0),
    );
    exports.closed(kept);
    return outcome;
  }

  /** The epoch of a checkpoint that is prepared; undefined when the secondary died before it was answered. */
  async prepare(): Promise<number | undefined> {
    const { agent } = this.pair.primary;
    if (agent === undefined) return undefined;
    const signal = new AbortController().signal;
    const outcome = await this.calls.make(this.pair.primary, "prepare", TIMEOUT_MS, () =>
      agent.checkpoint({ prepare: true, ...COMMAND }, signal),
    );
    return outcome.kind === "done" ? outcome.value.epoch : undefined;
  }

  /** Commits or withdraws a prepared checkpoint. False when the secondary died before it was answered. */
  async decide(decision: "commit" | "discard", epoch: number): Promise<boolean> {
    const outcome = await this.decisionOutcome(decision, epoch);
    return outcome.kind === "done";
  }

  /** What becomes of a commit or discard. */
  async decisionOutcome(decision: "commit" | "discard", epoch: number): Promise<Outcome<unknown>> {
    const { agent } = this.pair.primary;
    if (agent === undefined) return { kind: "lost" };
    const signal = new AbortController().signal;
    const request = { epoch, ...COMMAND };
    const outcome = await this.calls.make<unknown>(this.pair.primary, decision, TIMEOUT_MS, () =>
      decision === "commit" ? agent.commit(request, signal) : agent.discard(request, signal),
    );
    if (outcome.kind === "done" && decision === "discard") this.model.discardAnswered(epoch);
    return outcome;
  }

  /** The guest reads from one disk. */
  async guestRead(index: number, offset: number, length: number): Promise<Outcome<unknown>> {
    const content = Buffer.alloc(length);
    const device = this.#device(this.pair.primary, index);
    const outcome = await this.calls.make(this.pair.primary, "guest's read", TIMEOUT_MS, () =>
      device?.read(content, offset),
    );
    if (outcome.kind === "done") this.model.guest[index]?.check(content, offset, "the guest's read");
    return outcome;
  }

  /** The guest writes new bytes, or zeroes, to one disk. */
  async guestWrite(
    index: number,
    offset: number,
    length: number,
    kind: "bytes" | "zero" | "discard",
    { by = this.pair.primary, fua = false }: { readonly by?: PairMember; readonly fua?: boolean } = {},
  ): Promise<Outcome<unknown>> {
    const device = this.#device(by, index);
    const write = new ModelWrite(offset, length, kind === "bytes" ? this.#random.bytes(length) : undefined);
    this.model.guest[index]?.begin(write);
    const outcome = await this.calls.make(by, `guest's ${kind}`, TIMEOUT_MS, () =>
      write.data === undefined
        ? device?.zero(offset, length, { fua, mayUnmap: kind === "discard" })
        : device?.write(write.data, offset, { fua }),
    );
    write.settled = outcome.kind === "done";
    if (write.settled && by === this.pair.primary && this.#isEstablished) this.model.acknowledged(index, write);
    if (write.settled && fua) this.model.guest[index]?.flushed(new Set([write]));
    return outcome;
  }

  get #isEstablished(): boolean {
    return this.pair.primary.agent?.status().peers[0]?.replication === "Established";
  }

  async guestFlush(index: number, by: PairMember = this.pair.primary): Promise<Outcome<unknown>> {
    const device = this.#device(by, index);
    const covered = this.model.guest[index]?.beginFlush();
    const outcome = await this.calls.make(by, "guest's flush", TIMEOUT_MS, () => device?.flush());
    if (outcome.kind === "done" && covered !== undefined) this.model.guest[index]?.flushed(covered);
    return outcome;
  }

  /** The secondary's VM writes new bytes to its view of one disk. */
  async viewWrite(index: number, offset: number, length: number): Promise<Outcome<unknown>> {
    const device = this.#device(this.pair.secondary, index);
    const epoch = this.pair.secondary.agent?.status().epoch;
    if (epoch === undefined) return { kind: "lost" };
    const write = new ModelWrite(offset, length, this.#random.bytes(length));
    this.model.observeCommitted(epoch.committed);
    this.model.view[index]?.begin(write);
    const outcome = await this.calls.make(this.pair.secondary, "write of the view", TIMEOUT_MS, () =>
      device?.write(write.data ?? Buffer.alloc(0), offset, { fua: false }),
    );
    write.settled = outcome.kind === "done";
    return outcome;
  }

  async flushView(index: number): Promise<Outcome<unknown>> {
    const device = this.#device(this.pair.secondary, index);
    const covered = this.model.view[index]?.beginFlush();
    const outcome = await this.calls.make(this.pair.secondary, "flush of the view", TIMEOUT_MS, () => device?.flush());
    if (outcome.kind === "done" && covered !== undefined) this.model.view[index]?.flushed(covered);
    return outcome;
  }

  #device(member: PairMember, index: number): BlockDevice | undefined {
    const disk = this.disks[index];
    assert(disk !== undefined);
    return member.device(disk);
  }

  /** Every disk of the secondary shows the checkpoint that the record names. Returns its epoch. */
  async lookAtView(): Promise<number> {
    const { agent } = this.pair.secondary;
    const epoch = agent?.status().epoch;
    assert(epoch !== undefined, "the secondary does not run");
    this.model.observeSecondary(epoch);
    const contents: Buffer[] = [];
    for (const [index, disk] of this.disks.entries()) {
      if (epoch.committed === 0) break;
      const content = Buffer.alloc(disk.sizeBytes);
      await this.pair.secondary.device(disk)?.read(content, 0);
      this.model.view[index]?.check(content, 0, `${disk.name} at epoch ${epoch.committed}`);
      contents.push(content);
    }
    if (contents.length > 0) this.model.checkMoment(contents);
    return epoch.committed;
  }

  /** Nothing has gone wrong: the view shows what it has to, and so do the copies after the next checkpoint. */
  async checkEnd(): Promise<void> {
    await this.do("the view", () => this.lookAtView());
    await this.checkRecovery();
  }

  /** A checkpoint that is still prepared can be committed once the pair has come together again, and is shown then. */
  async checkPrepared(): Promise<void> {
    await this.do("a prepared checkpoint", async () => {
      const [epoch] = this.pair.secondary.agent?.status().epoch.prepared ?? [];
      if (epoch === undefined) return;
      await this.wait("synced");
      if (await this.decide("commit", epoch)) assert.equal(await this.lookAtView(), epoch);
    });
  }

  /** The pair comes together again, and the next checkpoint makes both copies equal. */
  async checkRecovery(): Promise<void> {
    await this.do("the recovery", () => this.#recover());
  }

  async #recover(): Promise<void> {
    if (this.options.mode === "mirror") await this.#untilFollowing();
    else await this.#untilCommitted();
    for (const disk of this.disks) {
      const [primary, secondary] = [this.pair.primary, this.pair.secondary].map(({ host }) =>
        host.disk.readFile(imagePath(disk)),
      );
      assert(primary !== undefined && secondary?.equals(primary) === true, `the copies of ${disk.name} differ`);
    }
  }

  /** Without epochs: everything is in the secondary's images, and what comes is. */
  async #untilFollowing(): Promise<void> {
    await this.wait("synced");
    await this.until("the pair to be protected", () => {
      const status = this.pair.primary.agent?.status();
      return status?.protection.state === "Protected" && status.peers[0]?.lagBytes === 0;
    });
    await this.lookAtView();
  }

  async #untilCommitted(): Promise<void> {
    // Until the primary has noticed the loss of power, it waits for the dead session.
    let taken = false;
    for (let attempt = 0; attempt < ATTEMPTS_MAX && !taken; attempt += 1) {
      await this.wait("synced");
      taken = await this.checkpoint();
    }
    assert(taken, "the pair can take no checkpoint");
    for (let left = checkpointsUntilApplied(this.options); left > 0; left -= 1) await this.checkpoint();
    if (this.options.mode === "mc") {
      await this.until("the base to have it", () => bufferedBytes(this.pair.secondary) === 0);
    }
  }

  /** The secondary goes back to a checkpoint that it retains, if it does not die on the way. */
  async rollBack(epoch: number): Promise<void> {
    const { secondary } = this.pair;
    const { agent } = secondary;
    if (agent === undefined) return;
    this.model.rollbackAsked(epoch);
    const signal = new AbortController().signal;
    const outcome = await this.calls.make(secondary, "rollback", TIMEOUT_MS, () =>
      agent.rollback({ epoch, ...COMMAND }, signal),
    );
    if (outcome.kind === "failed") throw outcome.error;
    if (outcome.kind === "done") this.model.rolledBack(epoch);
  }

  /** A secondary that was rolled back is synced by nobody before its operator gives that up; any other one needs nothing. */
  async undoRollback(): Promise<void> {
    const { agent, host } = this.pair.secondary;
    if (agent === undefined || readRecord(host).history.rolledBackFrom === undefined) return;
    await this.until("the refusal", () => agent.status().peers[0]?.lastError?.code === "rolled-back");
    const request = { dryRun: false, discardMyData: true, ...COMMAND };
    await this.do("connect --discard-my-data", () => agent.connect(request, new AbortController().signal));
  }

  /** The primary is dead and the secondary takes over. */
  async failOver(): Promise<Outcome<unknown>> {
    const { agent } = this.pair.secondary;
    if (agent === undefined) return { kind: "lost" };
    const signal = new AbortController().signal;
    const request = { force: true, dryRun: false, discardActive: false, ...COMMAND };
    return this.calls.make(this.pair.secondary, "failover", TIMEOUT_MS, () => agent.failover(request, signal));
  }

  /** The promoted side shows what it was promoted from, before the merge and after it. */
  async checkPromoted(): Promise<void> {
    const { secondary } = this.pair;
    await this.do("the export", async () => {
      for (const [index, disk] of this.disks.entries()) {
        const content = Buffer.alloc(disk.sizeBytes);
        await secondary.device(disk)?.read(content, 0);
        this.model.view[index]?.check(content, 0, `${disk.name} after the promotion`);
      }
      await secondary.agent?.wait({ condition: "merged", ...COMMAND }, new AbortController().signal);
    });
    for (const [index, disk] of this.disks.entries()) {
      const image = secondary.host.disk.readFile(imagePath(disk));
      this.model.view[index]?.check(image, 0, `the image of ${disk.name} after the merge`);
    }
  }

  /** Waits for a condition of the primary, which is running or starting. */
  async wait(condition: "committed" | "synced"): Promise<void> {
    while (this.pair.primary.agent === undefined) await this.world.sleep(1);
    await this.pair.primary.agent.wait({ condition, ...COMMAND }, new AbortController().signal);
  }

  /** The guest writes to both disks, and the secondary's VM to its view of both. */
  async #writeSome(): Promise<void> {
    for (let count = 0; count < WRITES; count += 1) {
      const index = count % this.disks.length;
      await this.#write(this.pair.primary, index, this.model.guest[index]);
      if (count < this.disks.length) await this.#write(this.pair.secondary, index, undefined);
    }
  }

  async #write(member: PairMember, index: number, model: DiskModel | undefined): Promise<void> {
    const disk = this.disks[index];
    const device = disk === undefined ? undefined : member.device(disk);
    if (disk === undefined || device === undefined) return;
    const length = 1 + this.#random.below(3 * 4096);
    const offset = this.#random.below(disk.sizeBytes - length);
    const write = new ModelWrite(offset, length, this.#random.bytes(length));
    if (member === this.pair.secondary) {
      this.model.observeCommitted(member.agent?.status().epoch.committed ?? 0);
      model = this.model.view[index];
    }
    model?.begin(write);
    await device.write(write.data ?? Buffer.alloc(0), offset, { fua: member === this.pair.secondary });
    write.settled = true;
    if (member === this.pair.secondary) model?.flushed(new Set([write]));
  }
}
