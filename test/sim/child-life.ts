/**
 * Whole lives of the copies of one disk, from a seed: guests write, read and flush while copies fail, hang, vanish, come
 * back and are replaced in any order, and the process or the machine dies. In the end everything is mended, and all copies are the same, and
 * what every acknowledged write has made of the disk.
 */
import assert from "node:assert/strict";
import { GuestGate } from "../../primary/guest-gate.ts";
import { DiskChildren } from "../../primary/disk-children.ts";
import { newChild, newLocalChild, withUntrackedCopies } from "../../primary/recorded-quorum.ts";
import { ReplicatedDisk } from "../../primary/replicated-disk.ts";
import type { ChildStatus } from "../../proto/status.ts";
import { ColobusError } from "../../proto/errors.ts";
import type { Clock, Timer } from "../../shared/host/clock.ts";
import type { Storage } from "../../shared/host/storage.ts";
import { clusterGeometry } from "../../shared/block/cluster-geometry.ts";
import { JobList } from "../../shared/jobs/job-list.ts";
import { StateFile } from "../../shared/journal/state-file.ts";
import { FickleImage, FickleMedium } from "../support/fickle-image.ts";
import { ManualClock } from "../support/manual-clock.ts";
import { MemoryStorage, turn } from "../support/memory-storage.ts";
import { SilentLog } from "../support/silent-log.ts";
import { stateRecord } from "../support/state-records.ts";
import type { LifeCounts } from "./life-totals.ts";
import { SeededRandom } from "./seeded-random.ts";
import { SimDisk } from "./sim-disk.ts";
import { SimRandom } from "./sim-random.ts";

const CLUSTER = 4096;
const SECTOR = 512;
const CLUSTERS = 40;
const SIZE = CLUSTERS * CLUSTER - 3 * SECTOR;
const DIRECTORY = "/state";
const TIMEOUT_MS = 500;

/** What the disk should have, by sectors; undefined: nobody can know. */
class SectorModel {
  readonly #expected: (number | undefined)[] = Array.from({ length: SIZE / SECTOR }, () => 0);
  /** The last change of each sector that was begun. */
  readonly #last: number[] = Array.from({ length: SIZE / SECTOR }, () => 0);
  /** Changes that were acknowledged, and that no flush has covered. */
  #unflushed = new Set<number>();
  #changes = 0;

  begin(offset: number, length: number): number {
    this.#changes += 1;
    for (const sector of sectorsOf(offset, length)) {
      this.#last[sector] = this.#changes;
      this.#expected[sector] = undefined;
    }
    return this.#changes;
  }

  done(change: number, offset: number, length: number, fill: number): void {
    for (const sector of sectorsOf(offset, length)) {
      this.#unflushed.add(sector);
      if (this.#last[sector] === change) this.#expected[sector] = fill;
    }
  }

  get unflushed(): ReadonlySet<number> {
    return new Set(this.#unflushed);
  }

  flushed(covered: ReadonlySet<number>, changesBefore: number): void {
    for (const sector of covered) if ((this.#last[sector] ?? 0) <= changesBefore) this.#unflushed.delete(sector);
  }

  get changes(): number {
    return this.#changes;
  }

  losePower(): void {
    for (const sector of this.#unflushed) this.#expected[sector] = undefined;
    this.#unflushed.clear();
  }

  /** Why `content` is not what it should be; undefined: it is, as far as anyone knows. */
  mismatch(content: Uint8Array, offset: number): string | undefined {
    for (const sector of sectorsOf(offset, content.length)) {
      const expected = this.#expected[sector];
      if (expected === undefined) continue;
      const from = Math.max(sector * SECTOR, offset) - offset;
      const to = Math.min((sector + 1) * SECTOR, offset + content.length) - offset;
      const found = content.subarray(from, to).find((byte) => byte !== expected);
      if (found !== undefined) return `sector ${sector} has ${found} and not ${expected}`;
    }
    return undefined;
  }

  snapshot(offset: number, length: number): number[] {
    return sectorsOf(offset, length).map((sector) => this.#last[sector] ?? 0);
  }
}

/** Whole sectors: guests write no parts here. */
function sectorsOf(offset: number, length: number): number[] {
  const first = Math.floor(offset / SECTOR);
  return Array.from({ length: Math.ceil((offset + length) / SECTOR) - first }, (_, index) => first + index);
}

/** The time, and the files, of one process: when it is dead, what it still had to do does not happen. */
class Mortal implements Clock {
  isAlive = true;
  readonly #clock: Clock;
  readonly storage: Storage;

  constructor(clock: Clock, storage: Storage) {
    this.#clock = clock;
    this.storage = new Proxy(storage, {
      get: (target, name) => {
        const value: unknown = Reflect.get(target, name);
        if (typeof value !== "function") return value;
        return (...args: unknown[]): unknown => {
          if (!this.isAlive) throw new ColobusError("io-error", "the process is dead");
          return Reflect.apply(value, target, args);
        };
      },
    });
  }

  nowMs(): number {
    return this.#clock.nowMs();
  }

  wallMs(): number {
    return this.#clock.wallMs();
  }

  after(delayMs: number, callback: () => void): Timer {
    if (!this.isAlive) return { cancel: () => undefined };
    return this.#clock.after(delayMs, () => {
      if (this.isAlive) callback();
    });
  }

  defer(callback: () => void): void {
    this.#clock.defer(() => {
      if (this.isAlive) callback();
    });
  }
}

class ChildLife {
  readonly #random: SeededRandom;
  readonly #replacements: SeededRandom;
  readonly #storage: MemoryStorage;
  readonly #clock = new ManualClock();
  /** By the images' names, which are numbers; those that are no copies any more as well. */
  readonly #media: FickleMedium[];
  readonly #copies: number;
  readonly #model = new SectorModel();
  readonly #geometry = clusterGeometry(SIZE, CLUSTER);
  readonly counts: Record<string, number> = {};
  steps = 0;
  #images: FickleImage[] = [];
  #process: Mortal | undefined;
  /** What a request came to that it should not have. */
  #broken: Error | undefined;
  #state: StateFile | undefined;
  #children: DiskChildren | undefined;
  #disk: ReplicatedDisk | undefined;
  #jobs: JobList | undefined;
  #pending = new Set<Promise<void>>();
  #generation = 0;
  readonly #threshold: number;
  readonly #readPattern: "fifo" | "quorum";
  readonly #durability: "power" | "process";

  constructor(seed: number) {
    this.#random = new SeededRandom(seed);
    this.#replacements = this.#random.fork("replacements");
    this.#storage = new MemoryStorage(new SimDisk(this.#random.fork("storage"), { coldProbability: 0 }));
    const copies = 2 + this.#random.below(3);
    this.#copies = copies;
    this.#media = Array.from(
      { length: copies },
      (_, index) => new FickleMedium(SIZE, this.#random.fork(`medium ${index}`)),
    );
    // A copy of the disk that was never synced has whatever it had before.
    for (const medium of this.#media.slice(1)) medium.bytes.fill(0xee);
    this.#threshold = this.#random.chance(0.7) ? 1 : 1 + this.#random.below(copies);
    this.#readPattern = this.#random.chance(0.75) ? "fifo" : "quorum";
    this.#durability = this.#random.chance(0.6) ? "power" : "process";
  }

  async run(): Promise<void> {
    await this.#start();
    const steps = 60 + this.#random.below(160);
    for (; this.steps < steps; this.steps += 1) {
      await this.#step();
      await this.#breathe();
      this.#assertSoundCopiesAgree();
      if (this.#broken !== undefined) throw this.#broken;
    }
    await this.#mend();
  }

  /** `isSuspect`: what never fsyncs has lost its power (`agent-state.ts`). */
  async #start(isSuspect = false): Promise<void> {
    this.#storage.makeDirectory(DIRECTORY);
    const clock = new Mortal(this.#clock, this.#storage);
    this.#process = clock;
    const { storage } = clock;
    this.#generation += 1;
    this.#state =
      StateFile.open(storage, DIRECTORY) ??
      (await StateFile.create(
        storage,
        DIRECTORY,
        stateRecord({ role: "Primary", durability: this.#durability, disks: [this.#recorded()] }),
      ));
    if (this.#generation === 1) {
      for (const directory of [DIRECTORY, "/"]) await this.#storage.syncDirectory(directory);
    }
    if (isSuspect) await this.#state.update((record) => ({ ...record, disks: record.disks.map(withUntrackedCopies) }));
    this.#images = [];
    this.#jobs = new JobList(clock, () => undefined);
    const local = this.#image(0, true);
    this.#children = new DiskChildren({
      storage,
      clock,
      random: new SimRandom(this.#random.fork(`process ${this.#generation}`)),
      log: new SilentLog(),
      state: this.#state,
      jobs: this.#jobs,
      emit: (type) => this.#count(type),
      stateDirectory: DIRECTORY,
      extentBytes: 4 * CLUSTER,
      settleEveryMs: 300,
      dirtyFileMinBytes: 4096,
      timeoutMs: TIMEOUT_MS,
      speed: 0,
      policy: { voteThreshold: 1, readPattern: "fifo", rewriteCorrupted: false, blkverify: false },
      open: (_, { image }) => this.#image(Number(image), false),
      measure: async () => Promise.resolve(SIZE),
      release: () => undefined,
      localMended: () => undefined,
      disk: "vda",
      local,
      geometry: this.#geometry,
      freeze: () => undefined,
    });
    this.#disk = new ReplicatedDisk("vda", this.#geometry, this.#children.child, new GuestGate(), {
      mark: () => undefined,
      forward: () => undefined,
      room: () => undefined,
      flush: () => undefined,
      failed: () => undefined,
      refused: () => undefined,
    });
    this.#children.start(this.#disk);
  }

  #recorded() {
    return {
      name: "vda",
      image: "0",
      sizeBytes: SIZE,
      cleanMark: null,
      quorum: {
        voteThreshold: this.#threshold,
        readPattern: this.#readPattern,
        rewriteCorrupted: false,
        blkverify: false,
        children: this.#media.map((_, index) => (index === 0 ? newLocalChild() : newChild(`c${index}`, `${index}`))),
      },
    };
  }

  /** The disk's own image is always found: an agent that does not find it does not start. */
  #image(index: number, isLocal: boolean): FickleImage {
    const medium = this.#media[index];
    assert(medium !== undefined, "there is a medium for each copy");
    if (isLocal && medium.mood === "away") medium.mood = "failing";
    const image = new FickleImage(medium, this.#clock);
    this.#images.push(image);
    return image;
  }

  async #step(): Promise<void> {
    if (this.#replacements.chance(0.03)) this.#replace();
    const random = this.#random;
    const what = random.fraction();
    if (what < 0.45) this.#write();
    else if (what < 0.55) this.#read();
    else if (what < 0.62) this.#flush();
    else if (what < 0.75) this.#changeMood();
    else if (what < 0.97) await this.#pass(random.within([1, 3000]));
    else if (what < 0.985) await this.#restart("process");
    else if (what < 0.993) await this.#restart("power");
    else await this.#stopAndStart();
  }

  /** Has another image take the place of a copy, or has that given up. */
  #replace(): void {
    const children = this.#children;
    const others = children?.describe().filter(({ name }) => name !== "local") ?? [];
    if (children === undefined || others.length === 0) return;
    const { name, replaces } = this.#replacements.pick(others);
    if (replaces !== undefined) {
      if (this.#replacements.chance(0.3)) this.#follow("give up", () => children.remove(name));
      return;
    }
    const image = this.#media.length;
    const medium = new FickleMedium(SIZE, this.#random.fork(`medium ${image}`));
    medium.bytes.fill(0xdd);
    this.#media.push(medium);
    this.#follow("replace", () => children.replace(name, `${image}`, { create: false }));
  }

  #write(): void {
    const random = this.#random;
    const disk = this.#disk;
    if (disk === undefined) return;
    const length = SECTOR * (1 + random.below(random.chance(0.2) ? 60 : 10));
    const offset = SECTOR * random.below(SIZE / SECTOR - Math.ceil(length / SECTOR) + 1);
    const fill = random.chance(0.15) ? 0 : 1 + random.below(200);
    const change = this.#model.begin(offset, length);
    const fua = random.chance(0.1);
    this.#follow(
      "write",
      async () => {
        if (fill === 0) await disk.zero(offset, length, { fua, mayUnmap: true });
        else await disk.write(Buffer.alloc(length, fill), offset, { fua });
      },
      () => this.#model.done(change, offset, length, fill),
    );
  }

  #read(): void {
    const disk = this.#disk;
    if (disk === undefined) return;
    const length = SECTOR * (1 + this.#random.below(20));
    const offset = SECTOR * this.#random.below(SIZE / SECTOR - length / SECTOR + 1);
    const target = Buffer.alloc(length);
    const before = this.#model.snapshot(offset, length);
    this.#follow(
      "read",
      async () => disk.read(target, offset),
      () => {
        const after = this.#model.snapshot(offset, length);
        if (before.some((change, index) => change !== after[index])) return;
        assert.equal(this.#model.mismatch(target, offset), undefined, "a read shows what was acknowledged");
      },
    );
  }

  #flush(): void {
    const disk = this.#disk;
    if (disk === undefined) return;
    const covered = this.#model.unflushed;
    const { changes } = this.#model;
    this.#follow(
      "flush",
      async () => disk.flush(),
      () => this.#model.flushed(covered, changes),
    );
  }

  /** Does a request beside the others; what it comes to counts only if the process still lives then. */
  #follow(name: string, work: () => Promise<void>, done: () => void = () => undefined): void {
    const generation = this.#generation;
    const request = work().then(
      () => {
        if (generation !== this.#generation) return;
        this.#count(`${name} done`);
        try {
          done();
        } catch (error) {
          this.#broken ??= new Error(`a ${name}: ${messageOf(error)}`, { cause: error });
        }
      },
      (error: unknown) => {
        if (generation !== this.#generation) return; // its files are closed
        if (!(error instanceof ColobusError)) throw error;
        this.#count(`${name} refused`);
      },
    );
    this.#pending.add(request);
    void request.finally(() => this.#pending.delete(request));
  }

  #changeMood(): void {
    const medium = this.#random.pick(this.#media);
    const wasHanging = medium.mood === "hanging";
    const isHealed = this.#random.chance(0.5);
    medium.mood = isHealed ? "sound" : this.#random.pick(["failing", "hanging", "away"] as const);
    medium.failingShare = this.#random.pick([0.05, 0.3, 1]);
    if (wasHanging && medium.mood !== "hanging") medium.goOn();
    this.#count(isHealed ? "healed" : medium.mood);
  }

  async #restart(kind: "process" | "power"): Promise<void> {
    this.#count(`crash ${kind}`);
    this.#generation += 1;
    for (const image of this.#images) image.abandon();
    for (const medium of this.#media) {
      if (medium.mood === "hanging") medium.goOn();
      if (kind === "power") medium.losePower();
    }
    this.#storage.crash(kind);
    if (kind === "power") this.#model.losePower();
    this.#pending.clear();
    if (this.#process !== undefined) this.#process.isAlive = false;
    this.#clock.forget();
    await this.#start(kind === "power" && this.#durability === "process");
  }

  async #stopAndStart(): Promise<void> {
    this.#count("stopped");
    const stopping = Promise.all(this.#pending).then(async () => {
      await this.#jobs?.stop(new ColobusError("shutting-down", "the agent is being stopped"));
      await this.#children?.stop(new ColobusError("shutting-down", "the agent is being stopped"));
      await this.#children?.close();
      await this.#state?.close();
    });
    for (const medium of this.#media) if (medium.mood === "hanging") this.#heal(medium);
    await this.#until(stopping);
    for (const image of this.#images) image.close();
    await this.#start();
  }

  #heal(medium: FickleMedium): void {
    medium.mood = "sound";
    medium.goOn();
  }

  /** Everything is well again: all copies become sound, and equal. */
  async #mend(): Promise<void> {
    for (const medium of this.#media) this.#heal(medium);
    await this.#until(Promise.all(this.#pending).then(() => undefined));
    // A flush may find that an earlier one has lost something: then it takes one more round.
    for (let tries = 0; tries < 400; tries += 1) {
      await this.#pass(1000);
      if (this.#children?.describe().every(({ state }) => state === "sound") !== true) continue;
      if ((await this.#until(this.#tryFlush())) && this.#pending.size === 0) break;
    }
    const states = this.#children
      ?.describe()
      .map(({ name, state, dirtyBytes, lastError }) => `${name} ${state} ${dirtyBytes} ${lastError?.message ?? ""}`);
    assert(
      states?.every((state) => / sound 0 /.test(state)),
      `all copies become sound: ${states?.join(", ")}`,
    );
    const [first, ...others] = this.#mediaOf(this.#children?.describe() ?? []);
    for (const [index, other] of others.entries()) {
      assert(first?.bytes.equals(other.bytes) === true, `copy ${index + 1} equals the first`);
    }
    assert.equal(others.length + 1, this.#copies, `there are as many copies as ever: ${states?.join(", ")}`);
    assert.equal(first && this.#model.mismatch(first.bytes, 0), undefined, "the copies have what was acknowledged");
  }

  /** Where nothing is under way, two sound copies never differ. */
  #assertSoundCopiesAgree(): void {
    if (this.#pending.size > 0) return;
    const sound = this.#children?.describe().filter(({ state }) => state === "sound") ?? [];
    assert(sound.length > 0, "one copy at least is sound");
    const [first, ...others] = this.#mediaOf(sound);
    for (const other of others) {
      if (first !== undefined && other !== undefined && !first.bytes.equals(other.bytes)) {
        const at = first.bytes.findIndex((byte, index) => byte !== other.bytes[index]);
        const which = `${this.#media.indexOf(first)} and ${this.#media.indexOf(other)}`;
        assert.fail(`sound copies ${which} differ at sector ${at / SECTOR}: ${first.bytes[at]} and ${other.bytes[at]}`);
      }
    }
  }

  #mediaOf(copies: readonly ChildStatus[]): FickleMedium[] {
    return copies.flatMap(({ path }) => this.#media[Number(path)] ?? []);
  }

  async #pass(ms: number): Promise<void> {
    for (let passed = 0; passed < ms; passed += ms / 20) {
      this.#clock.advance(ms / 20);
      await this.#breathe();
    }
  }

  async #breathe(): Promise<void> {
    for (let turns = 0; turns < 4; turns += 1) {
      this.#clock.endTurn();
      await turn();
    }
  }

  async #tryFlush(): Promise<boolean> {
    try {
      await this.#disk?.flush();
      return this.#children?.describe().every(({ state }) => state === "sound") === true;
    } catch (error) {
      if (error instanceof ColobusError) return false;
      throw error;
    }
  }

  async #until<T>(done: Promise<T>): Promise<T> {
    let isDone = false;
    const settled = (): void => {
      isDone = true;
    };
    done.then(settled, settled);
    for (let tries = 0; !isDone; tries += 1) {
      assert(tries < 2000, "it ends");
      await this.#pass(20);
    }
    return done;
  }

  #count(name: string): void {
    this.counts[name] = (this.counts[name] ?? 0) + 1;
  }
}

/** Lives one life. A broken promise is an assertion that names the seed. */
export async function runChildLife(seed: number): Promise<LifeCounts> {
  const life = new ChildLife(seed);
  try {
    await life.run();
  } catch (error) {
    throw new Error(`child life ${seed}, step ${life.steps}: ${messageOf(error)}`, { cause: error });
  }
  return { counts: { ...life.counts, steps: life.steps }, pairs: {} };
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
