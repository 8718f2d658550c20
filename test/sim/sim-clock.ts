import type { Clock, Timer } from "../../shared/host/clock.ts";
import type { EventOwner } from "./event-queue.ts";
import type { SeededRandom } from "./seeded-random.ts";
import type { SimWorld } from "./world.ts";

/** Wall-clock time at which every world begins: 2025-01-01T00:00:00Z. */
const WORLD_BEGINS_MS = 1_735_689_600_000;

export interface ClockProfile {
  /** A timer fires up to this much late, never early. */
  readonly timerSlackMs: number;
}

/**
 * The clock of one simulated process, in virtual time. Timers that are due at one moment fire in any order; deferred
 * callbacks run in the order in which they were deferred, at the same virtual time, among whatever else is due then.
 * Everything dies with the process.
 */
export class SimClock implements Clock {
  readonly #world: SimWorld;
  readonly #process: EventOwner;
  readonly #random: SeededRandom;
  readonly #profile: ClockProfile;
  /** Monotonic time at the beginning of the world; another one after each boot. */
  readonly #originMs: number;
  readonly #wallOffsetMs: () => number;
  readonly #deferred: (() => void)[] = [];

  constructor(
    world: SimWorld,
    process: EventOwner,
    random: SeededRandom,
    profile: ClockProfile,
    originMs: number,
    wallOffsetMs: () => number,
  ) {
    this.#world = world;
    this.#process = process;
    this.#random = random;
    this.#profile = profile;
    this.#originMs = originMs;
    this.#wallOffsetMs = wallOffsetMs;
  }

  nowMs(): number {
    return this.#originMs + this.#world.nowMs;
  }

  wallMs(): number {
    return WORLD_BEGINS_MS + this.#world.nowMs + this.#wallOffsetMs();
  }

  after(delayMs: number, callback: () => void): Timer {
    const slackMs = this.#profile.timerSlackMs * this.#random.fraction();
    return this.#world.schedule(Math.max(0, delayMs) + slackMs, callback, this.#process);
  }

  defer(callback: () => void): void {
    this.#deferred.push(callback);
    // Each event takes the oldest callback, whichever of several events at this moment comes first.
    this.#world.schedule(0, () => this.#deferred.shift()?.(), this.#process);
  }
}
