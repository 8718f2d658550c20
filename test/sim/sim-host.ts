import assert from "node:assert/strict";
import type { Clock } from "../../shared/host/clock.ts";
import type { Random } from "../../shared/host/random.ts";
import type { Storage } from "../../shared/host/storage.ts";
import type { Dialer, Link } from "../../shared/replication/link.ts";
import type { EventOwner, ScheduledEvent } from "./event-queue.ts";
import type { SeededRandom } from "./seeded-random.ts";
import { SimClock } from "./sim-clock.ts";
import { SimDisk, type StorageProfile, type Survival } from "./sim-disk.ts";
import { SimRandom } from "./sim-random.ts";
import { SimStorage } from "./sim-storage.ts";
import type { CrashKind } from "./simulated-crash.ts";
import type { SimWorld } from "./world.ts";

/**
 * A simulated host: a disk that lasts, and one process after another, each with its own clock, randomness, storage and
 * links. A process dies at once and for good: its timers, events, promises and links are dead, its files are closed,
 * and whatever its code still does reaches nothing.
 */
export interface HostOptions {
  /** A disk prepared elsewhere (`SimDisk.fork`). */
  readonly disk?: SimDisk;
  readonly storage?: Partial<StorageProfile>;
  /** Timers fire up to this much late; 0 by default. */
  readonly timerSlackMs?: number;
}

/** One life of the agent's process on a host. */
export class SimProcess implements EventOwner {
  readonly host: SimHost;
  /** Host and number of the life, as in `a.2`. */
  readonly label: string;
  readonly clock: Clock;
  readonly random: Random;
  readonly storage: Storage;
  readonly #world: SimWorld;
  readonly #storage: SimStorage;
  readonly #lines = new Map<string, Map<string, string>>();
  #alive = true;
  #frozen = false;
  #held: ScheduledEvent[] = [];
  #accept: ((link: Link) => void) | undefined;

  constructor(
    world: SimWorld,
    host: SimHost,
    life: number,
    clockOriginMs: number,
    seeds: SeededRandom,
    slackMs: number,
  ) {
    this.#world = world;
    this.host = host;
    this.label = `${host.name}.${life}`;
    const profile = { timerSlackMs: slackMs };
    this.clock = new SimClock(world, this, seeds.fork("timers"), profile, clockOriginMs, () => host.wallOffsetMs);
    this.random = new SimRandom(seeds.fork("random"));
    this.#storage = new SimStorage(world, host.disk, this);
    this.storage = this.#storage;
  }

  get alive(): boolean {
    return this.#alive;
  }

  get frozen(): boolean {
    return this.#frozen;
  }

  /** Takes links that others dial to this host; undefined while nobody listens. */
  get accept(): ((link: Link) => void) | undefined {
    return this.#accept;
  }

  listen(accept: ((link: Link) => void) | undefined): void {
    if (this.#alive) this.#accept = accept;
  }

  dialer(to: string): Dialer {
    return this.#world.network.dialer(this, to);
  }

  hold(event: ScheduledEvent): void {
    this.#held.push(event);
  }

  /** SIGSTOP: nothing of this process happens, its kernel goes on; and SIGCONT. */
  freeze(on: boolean): void {
    if (!this.#alive || on === this.#frozen) return;
    this.#world.trace(`${this.label} is ${on ? "frozen" : "thawed"}`);
    this.#frozen = on;
    if (on) return;
    const held = this.#held;
    this.#held = [];
    this.#world.resume(held);
    this.#world.network.processThawed(this);
  }

  die(kind: CrashKind): void {
    assert(this.#alive);
    this.#alive = false;
    this.#held = [];
    this.#storage.releaseAll();
    this.#world.network.processDied(this, kind);
  }

  /** A line for the trace, put together once. */
  traceLine(what: string, about: string): string {
    let lines = this.#lines.get(what);
    if (lines === undefined) this.#lines.set(what, (lines = new Map<string, string>()));
    let line = lines.get(about);
    if (line === undefined) lines.set(about, (line = `${this.label} ${what} ${about}`));
    return line;
  }
}

export class SimHost {
  readonly name: string;
  readonly disk: SimDisk;
  readonly #world: SimWorld;
  readonly #seeds: SeededRandom;
  readonly #slackMs: number;
  readonly #deathWatchers: ((kind: CrashKind) => void)[] = [];
  #process: SimProcess;
  #lives = 0;
  #boots = 1;
  #clockOriginMs: number;
  #off = false;
  /** What the wall clock is off by; a test may let it jump. */
  wallOffsetMs = 0;

  constructor(world: SimWorld, name: string, seeds: SeededRandom, options: HostOptions) {
    this.#world = world;
    this.name = name;
    this.#seeds = seeds;
    this.#slackMs = options.timerSlackMs ?? 0;
    this.disk = options.disk ?? new SimDisk(seeds.fork("disk"), options.storage);
    this.#clockOriginMs = this.#drawClockOrigin();
    this.#process = this.#startProcess();
  }

  // The current process, as its code sees it

  get process(): SimProcess {
    return this.#process;
  }

  get clock(): Clock {
    return this.#process.clock;
  }

  get random(): Random {
    return this.#process.random;
  }

  get storage(): Storage {
    return this.#process.storage;
  }

  dialer(to: string): Dialer {
    return this.#process.dialer(to);
  }

  listen(accept: (link: Link) => void): void {
    this.#process.listen(accept);
  }

  get alive(): boolean {
    return this.#process.alive;
  }

  /** After a loss of power, until `restart`. */
  get isOff(): boolean {
    return this.#off;
  }

  /** Another one after each loss of power. */
  get bootId(): string {
    return `${this.name}-boot-${this.#boots}`;
  }

  // What happens to it

  /**
   * Kills the process, and with `power` the kernel's caches too: chance decides what of them survives, or `survival`.
   * Also a clean exit: there is no difference from here.
   */
  crash(kind: CrashKind, survival?: Survival): void {
    const dying = this.#process;
    if (dying.alive) {
      this.#world.trace(`${dying.label} dies: ${kind}`);
      dying.die(kind);
    } else if (kind === "process" || this.#off) return;
    if (kind === "power") this.#off = true;
    this.disk.crash(kind, survival);
    // The watchers run apart: this call may come from the middle of the dying code.
    for (const watcher of this.#deathWatchers) this.#world.schedule(0, () => watcher(kind));
  }

  /** Starts a new process on what the disk holds. The old one must be dead. */
  restart(): SimProcess {
    assert(!this.#process.alive, `${this.#process.label} is alive`);
    if (this.#off) {
      this.#off = false;
      this.#boots++;
      this.#clockOriginMs = this.#drawClockOrigin();
    }
    this.#process = this.#startProcess();
    this.#world.trace(`${this.#process.label} starts`);
    return this.#process;
  }

  /** SIGSTOP and SIGCONT of the current process. */
  freeze(on: boolean): void {
    this.#process.freeze(on);
  }

  /** Has `watcher` called, as an event of the world, whenever the process or the power dies. */
  onDeath(watcher: (kind: CrashKind) => void): void {
    this.#deathWatchers.push(watcher);
  }

  #startProcess(): SimProcess {
    const life = ++this.#lives;
    const seeds = this.#seeds.fork(`life ${life}`);
    return new SimProcess(this.#world, this, life, this.#clockOriginMs, seeds, this.#slackMs);
  }

  /** Only differences of the monotonic clock mean anything: no two boots begin at the same time. */
  #drawClockOrigin(): number {
    return this.#seeds.fork(`boot ${this.#boots}`).within([1_000, 1_000_000]);
  }
}
