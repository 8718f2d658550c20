import assert from "node:assert/strict";
import type { ChildStatus, JobStatus } from "../../proto/status.ts";
import type { CopyMode, Durability, JobOutcome } from "../../proto/words.ts";
import { present } from "../support/present.ts";
import { Calls } from "./calls.ts";
import { mirrorTo } from "./mirror-request.ts";
import { copyPath, imagePath, makePair, type Pair, type PairOptions } from "./pair.ts";
import type { SimHost } from "./sim-host.ts";
import { SimWorld } from "./world.ts";

const CLUSTER_BYTES = 4096;
const DISK = { name: "vda", sizeBytes: 16 * CLUSTER_BYTES };
const TARGET = "/images/target.img";
const NEW_COPY = "/images/new-copy.img";
const TIMEOUT_MS = 60_000;
const DRAIN_MS = 5_000;
const OPTIONS: Omit<PairOptions, "durability"> = {
  disks: [DISK],
  clusterBytes: CLUSTER_BYTES,
  ack: "async",
  access: "off",
  windowBytes: 1024 * 1024,
  peerTimeoutMs: 5_000,
  createImages: false,
  checkpointEveryMs: undefined,
  retain: 0,
  overlayLimitBytes: undefined,
};
/** A guest's write, and how many there are before the mirror and while it is at work. */
const WRITE_BYTES = 3000;
const WRITES = 6;

/**
 * The primary of a pair with one disk, which mirrors it, or replaces its copy, where there is one; its guest, and a model
 * of what the disk has to hold. A write that was under way when the host died is there, or not, or in part.
 */
export class MirrorScene {
  readonly world: SimWorld;
  readonly #pair: Pair;
  readonly #calls: Calls;
  readonly #content: Buffer;
  readonly #hasCopy: boolean;
  /** What a write that was not answered may have changed. */
  #unsure: { offset: number; length: number } | undefined;
  #fill = 0;

  constructor(seed: number, durability: Durability, { hasCopy = false }: { readonly hasCopy?: boolean } = {}) {
    this.world = new SimWorld(seed);
    this.#hasCopy = hasCopy;
    this.#calls = new Calls(this.world);
    this.#content = this.world.random.bytes(DISK.sizeBytes);
    this.#pair = makePair(
      this.world,
      { ...OPTIONS, durability, hasCopies: hasCopy },
      { primary: [Buffer.from(this.#content)], secondary: [Buffer.alloc(DISK.sizeBytes)] },
      { requested: () => undefined, happened: () => undefined },
    );
  }

  get host(): SimHost {
    return this.#pair.primary.host;
  }

  /** The copies of the disk, its image among them. */
  get copies(): readonly ChildStatus[] {
    return this.#pair.primary.agent?.status().disks[0]?.children ?? [];
  }

  get mirror(): JobStatus | undefined {
    return this.#pair.primary.agent?.jobs().findLast(({ type }) => type === "mirror");
  }

  /** Lets something happen in the world, and waits for its end. */
  do<T>(what: string, work: () => Promise<T>): Promise<T> {
    return this.world.do(what, work);
  }

  async start(): Promise<void> {
    const { primary, secondary } = this.#pair;
    await this.do("the start", async () => {
      await secondary.start();
      await primary.start();
      await primary.agent?.wait({ condition: "committed", timeoutMs: TIMEOUT_MS }, new AbortController().signal);
    });
    await this.do("writes", async () => {
      if (this.#hasCopy) await this.untilSound();
      for (let count = 0; count < WRITES; count += 1) await this.write();
    });
  }

  /** Begins the mirror, writes while it is at work, and ends it. Whatever is asked of a dead agent is lost. */
  async run(copyMode: CopyMode, how: "complete" | "cancel"): Promise<void> {
    if (!(await this.begin(copyMode))) return;
    const { process } = this.host;
    for (let count = 0; count < WRITES && process.alive; count += 1) await this.write();
    if (process.alive) await this.end(how);
  }

  /** Resolves with whether that was answered. `sync` none: to a target that has all that the disk has by now. */
  async begin(copyMode: CopyMode, sync: "full" | "none" = "full", target: string = TARGET): Promise<boolean> {
    const { agent } = this.#pair.primary;
    if (sync === "none") this.host.disk.addFile(target, DISK.sizeBytes, this.#content);
    const changed = { sync, copyMode, granularityBytes: CLUSTER_BYTES, create: sync === "full" };
    const request = { ...mirrorTo(target), ...changed };
    return (await this.#ask("mirror", () => agent?.mirror(request, new AbortController().signal))) !== undefined;
  }

  /** Lets the mirror that is there become ready, and ends it. */
  async end(how: "complete" | "cancel"): Promise<void> {
    const { process } = this.host;
    await this.untilReady();
    const { agent } = this.#pair.primary;
    const { mirror } = this;
    if (!process.alive || agent === undefined || mirror === undefined) return;
    await this.#ask(how, () => agent.job(mirror.id, how, { force: false }));
    await this.#until(() => this.mirror?.state === "concluded");
  }

  /** Waits until the mirror has everything. */
  untilReady(): Promise<void> {
    return this.#until(() => this.mirror?.state === "ready");
  }

  /** Pauses the mirror that is there. Resolves with whether that was answered. */
  async pause(): Promise<boolean> {
    const { agent } = this.#pair.primary;
    const { mirror } = this;
    if (agent === undefined || mirror === undefined) return false;
    return (await this.#ask("pause", () => agent.job(mirror.id, "pause", { force: false }))) !== undefined;
  }

  async resume(): Promise<void> {
    const { agent } = this.#pair.primary;
    const { mirror } = this;
    if (agent !== undefined && mirror !== undefined) await this.#ask("resume", () => agent.job(mirror.id, "resume"));
  }

  /** Has another image take the place of the copy. Resolves with whether that was answered. */
  async replaceCopy(): Promise<boolean> {
    const { agent } = this.#pair.primary;
    const request = { verb: "replace", disk: DISK.name, name: "b", image: NEW_COPY, create: true } as const;
    const answer = await this.#ask("replace", () =>
      agent?.changeChild({ ...request, timeoutMs: TIMEOUT_MS }, new AbortController().signal),
    );
    return answer !== undefined;
  }

  /** Waits until all copies are sound. */
  untilSound(): Promise<void> {
    return this.#until(() => this.copies.every(({ state }) => state === "sound"));
  }

  /** The copy is the image that it is said to be, and everything is there as well. */
  checkCopy(isReplaced: boolean): void {
    const path = isReplaced ? NEW_COPY : copyPath(DISK);
    const found = this.copies.map((copy) => [copy.name, copy.path]);
    assert.deepEqual(found, [
      ["local", present(this.#pair.primary.agent?.status().disks[0]).image],
      ["b", path],
    ]);
    assert(this.host.disk.readFile(path).equals(this.#content), "the copy has not what the disk holds");
  }

  /** Resolves with whether that was answered. */
  async write(): Promise<boolean> {
    const device = this.#pair.primary.device(DISK);
    if (device === undefined) return false;
    this.#fill = (this.#fill % 250) + 1;
    const offset = (this.#fill * 7919) % (DISK.sizeBytes - WRITE_BYTES);
    const bytes = Buffer.alloc(WRITE_BYTES, this.#fill);
    this.#unsure = { offset, length: WRITE_BYTES };
    const done = await this.#ask("write", () => device.write(bytes, offset, { fua: true }) ?? Promise.resolve());
    if (done !== true) return false;
    bytes.copy(this.#content, offset);
    this.#unsure = undefined;
    return true;
  }

  /** The primary starts again after its end. Its disk shows everything that the guest was told is there. */
  async restart(): Promise<void> {
    assert(await this.startDyingAt(undefined));
    await this.check();
  }

  /** The primary starts again, on a host that dies at that storage call. Resolves with whether it got that far. */
  async startDyingAt(dyingCall: number | undefined): Promise<boolean> {
    const { primary } = this.#pair;
    const { faults } = this.host.disk;
    faults.clear();
    this.host.restart();
    if (dyingCall !== undefined) faults.crashAt(dyingCall, "power");
    return this.do("the start of the primary", () => primary.start());
  }

  /** The primary is stopped in good order. */
  async stop(): Promise<void> {
    const { primary } = this.#pair;
    await this.do("a clean stop", () => primary.stop(DRAIN_MS));
    this.host.crash("process");
  }

  /** Another program changes the target, while no agent runs. */
  changeTarget(): void {
    const { disk } = this.host;
    const target = disk.file(TARGET);
    disk.change(target, () => target.write(Buffer.alloc(CLUSTER_BYTES, 0x99), 0));
    target.makeDurable(target.position);
  }

  /** The disk as its guest reads it. What was unsure is as it is found. */
  async check(): Promise<void> {
    const content = Buffer.alloc(DISK.sizeBytes);
    const read = async (): Promise<void> => this.#pair.primary.device(DISK)?.read(content, 0);
    await this.do("a read of the disk", read);
    if (this.#unsure !== undefined) {
      const { offset, length } = this.#unsure;
      content.copy(this.#content, offset, offset, offset + length);
      this.#unsure = undefined;
    }
    assert(content.equals(this.#content), "the disk does not hold what its guest has written");
  }

  /** The file that a mirror's outcome says to hold the disk does so, and so does the secondary. */
  async checkEnd(outcome: JobOutcome): Promise<void> {
    const { primary, secondary } = this.#pair;
    const image = present(primary.agent?.status().disks[0]).image;
    assert.equal(image, outcome === "pivoted" ? TARGET : imagePath(DISK));
    assert(this.host.disk.readFile(TARGET)?.equals(this.#content), "the target is not what the disk was");
    await this.do("a later write", () => this.write());
    await this.check();
    assert(this.host.disk.readFile(image)?.equals(this.#content), "the image is not what the disk is");
    if (this.#hasCopy) {
      await this.do("the copy", () => this.untilSound());
      this.checkCopy(false);
    }
    if (outcome !== "pivoted") return;
    await this.do("the last checkpoint", async () => {
      const { agent } = primary;
      const { signal } = new AbortController();
      await agent?.wait({ condition: "synced", timeoutMs: TIMEOUT_MS }, signal);
      await agent?.checkpoint({ prepare: false, timeoutMs: TIMEOUT_MS }, signal);
    });
    const copy = secondary.host.disk.readFile(imagePath(DISK));
    assert(copy?.equals(this.#content), "the secondary has not what the disk holds");
  }

  /** Resolves with what was answered; undefined when the host has died. */
  async #ask<T>(what: string, call: () => Promise<T> | undefined): Promise<T | true | undefined> {
    const { primary } = this.#pair;
    const outcome = await this.#calls.make(primary, what, TIMEOUT_MS, async () => call());
    return outcome.kind === "done" ? (outcome.value ?? true) : undefined;
  }

  async #until(isReached: () => boolean): Promise<void> {
    const { process } = this.host;
    while (process.alive && !isReached()) await this.world.sleep(5);
  }
}
