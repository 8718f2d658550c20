import {
  encodeArbiterRecord,
  parseArbiterRecord,
  type ArbiterEntry,
  type ArbiterRecord,
} from "../../proto/arbiter-record.ts";
import { ColobusError } from "../../proto/errors.ts";
import { ARBITER_CALL_SHARE } from "../../proto/limits.ts";
import type { Arbiter, ArbiterState } from "../../shared/arbiter/arbiter.ts";
import type { SeededRandom } from "./seeded-random.ts";
import type { SimProcess } from "./sim-host.ts";
import type { SimWorld } from "./world.ts";

const LATENCY_MS = [0.2, 5] as const;
/** Each way takes this part of the time that a call may take, for a host to which the arbiter is slow. */
const SLOW_SHARE = [0.3, 0.48] as const;

interface Lease {
  readonly id: number;
  readonly holder: string;
  endMs: number;
}

/**
 * An arbiter of the simulated world, for one VM. A call travels there, is done at one instant, and its answer travels back;
 * either way may be lost, and what was lost on the way back was done. Leases end to the instant.
 */
export class SimArbiter {
  readonly #world: SimWorld;
  readonly #random: SeededRandom;
  readonly #ttlMs: number;
  /** Hosts that do not reach it. */
  readonly #cut = new Set<string>();
  readonly #slow = new Set<string>();
  /** Asked about each claim, while set: whether it is lost on its way there. */
  losesClaim: ((host: string) => boolean) | undefined;
  #down = false;
  #record: ArbiterRecord | undefined;
  #revision = 0;
  #leases = 0;
  #lease: Lease | undefined;

  constructor(world: SimWorld, random: SeededRandom, ttlMs: number) {
    this.#world = world;
    this.#random = random;
    this.#ttlMs = ttlMs;
  }

  /** The arbiter as one process has it. */
  clientOf(process: SimProcess, agentId: string): Arbiter {
    let leaseId: number | undefined;
    const ask = <T>(does: () => T, isLost = false): Promise<T> => this.#ask(process, does, isLost);
    const isOwn = (): boolean => this.#living?.id === leaseId && leaseId !== undefined;
    return {
      read: () => ask(() => this.#state()),
      claim: async (revision, entry, force) => {
        const grantedMs = this.#world.nowMs;
        const claimed = await ask(() => {
          const other = this.#living !== undefined && this.#living.holder !== agentId;
          if (!force && (String(this.#revision) !== revision || other)) return undefined;
          this.#leases += 1;
          // As if the lease had been granted as early as it may have been.
          this.#lease = { id: this.#leases, holder: agentId, endMs: grantedMs + this.#ttlMs };
          return { id: this.#leases, state: this.#put(entry) };
        }, this.losesClaim?.(process.host.name));
        leaseId = claimed?.id;
        return claimed?.state;
      },
      renew: () => {
        const sentMs = this.#world.nowMs;
        return ask(() => {
          const lease = this.#living;
          if (lease !== undefined && isOwn()) lease.endMs = Math.max(lease.endMs, sentMs + this.#ttlMs);
          const state = this.#state();
          return isOwn() || state.leaseHolder !== agentId ? state : { ...state, leaseHolder: null };
        });
      },
      amend: (revision, entry) =>
        ask(() => (isOwn() && String(this.#revision) === revision ? this.#put(entry) : undefined)),
      release: () =>
        ask(() => {
          if (isOwn()) this.#lease = undefined;
        }),
    };
  }

  /** Nothing gets from this host to the arbiter, nor back. */
  cut(host: string, on: boolean): void {
    this.#world.trace(`the arbiter is ${on ? "cut off from" : "reached by"} ${host}`);
    if (on) this.#cut.add(host);
    else this.#cut.delete(host);
  }

  /** Calls of this host nearly take the time that they may take. */
  slow(host: string): void {
    this.#slow.add(host);
  }

  /** It stands still for everybody; what it has is kept. */
  stop(on: boolean): void {
    this.#world.trace(`the arbiter is ${on ? "down" : "up"}`);
    this.#down = on;
  }

  get #living(): Lease | undefined {
    return this.#lease !== undefined && this.#lease.endMs > this.#world.nowMs ? this.#lease : undefined;
  }

  #state(): ArbiterState {
    return { record: this.#record, revision: String(this.#revision), leaseHolder: this.#living?.holder ?? null };
  }

  #put(entry: ArbiterEntry): ArbiterState {
    this.#record = parseArbiterRecord(encodeArbiterRecord(entry));
    this.#revision += 1;
    return this.#state();
  }

  #ask<T>(process: SimProcess, does: () => T, isLostThere: boolean): Promise<T> {
    const isLost = (): boolean => this.#down || this.#cut.has(process.host.name);
    const timeoutMs = this.#ttlMs * ARBITER_CALL_SHARE;
    const latencyMs = (): number =>
      this.#slow.has(process.host.name) ? timeoutMs * this.#random.within(SLOW_SHARE) : this.#random.within(LATENCY_MS);
    return new Promise((resolve, reject) => {
      process.clock.after(timeoutMs, () =>
        reject(new ColobusError("arbiter-unreachable", "the simulated arbiter has not answered in time")),
      );
      if (isLost() || isLostThere) return;
      this.#world.schedule(latencyMs(), () => {
        if (isLost()) return;
        const answer = does();
        if (!isLost()) this.#world.schedule(latencyMs(), () => resolve(answer), process);
      });
    });
  }
}
