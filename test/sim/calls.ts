import { ColobusError } from "../../proto/errors.ts";
import type { PairMember } from "./pair.ts";
import type { SimProcess } from "./sim-host.ts";
import { SimulatedCrash } from "./simulated-crash.ts";
import type { SimWorld } from "./world.ts";

/** How a call into an agent ended. `lost`: its process died first. */
export type Outcome<T> =
  | { readonly kind: "done"; readonly value: T }
  | { readonly kind: "failed"; readonly error: ColobusError }
  | { readonly kind: "lost" };

interface Call {
  readonly process: SimProcess;
  readonly what: string;
  readonly limitMs: number;
  dueMs: number;
  readonly lose: () => void;
}

/**
 * The calls that the world outside makes into the agents of a pair. Each one ends: with a value, with a ColobusError, or
 * with the death of the process. Anything else fails the world, and so does a call that takes too long.
 */
export class Calls {
  readonly #world: SimWorld;
  readonly #pending = new Set<Call>();
  #waiters: (() => void)[] = [];
  /** Whether the process says that it lets its callers wait, and for what. */
  isExcused: (process: SimProcess) => boolean = () => false;

  constructor(world: SimWorld) {
    this.#world = world;
    world.addCheck("every call ends in time", () => this.#checkTimes());
  }

  /**
   * Makes a call that must end within `limitMs`. `settled` is called once, at the moment at which the caller is told;
   * what it throws fails the world.
   */
  make<T>(
    member: PairMember,
    what: string,
    limitMs: number,
    call: () => T | Promise<T>,
    settled: (outcome: Outcome<T>) => void = () => undefined,
  ): Promise<Outcome<T>> {
    const { process } = member.host;
    return new Promise((resolve) => {
      const end = (outcome: Outcome<T>): void => {
        if (!this.#pending.delete(pending)) return;
        const heard: Outcome<T> = process.alive ? outcome : { kind: "lost" };
        try {
          settled(heard);
        } catch (error) {
          if (!(error instanceof SimulatedCrash)) this.#world.fail(what, error);
        }
        resolve(heard);
        for (const wake of this.#waiters.splice(0)) wake();
      };
      const fail = (error: unknown): void => {
        if (error instanceof ColobusError) end({ kind: "failed", error });
        else {
          if (process.alive && !(error instanceof SimulatedCrash)) this.#world.fail(`${what} threw`, error);
          end({ kind: "lost" });
        }
      };
      const pending: Call = {
        process,
        what,
        limitMs,
        dueMs: this.#world.nowMs + limitMs,
        lose: () => end({ kind: "lost" }),
      };
      this.#pending.add(pending);
      try {
        const value = call();
        if (value instanceof Promise) value.then((done: T) => end({ kind: "done", value: done }), fail);
        else end({ kind: "done", value });
      } catch (error) {
        fail(error);
      }
    });
  }

  /** Calls under way whose name is `what`, or all. */
  count(what?: string): number {
    if (what === undefined) return this.#pending.size;
    let count = 0;
    for (const call of this.#pending) if (call.what === what) count += 1;
    return count;
  }

  /** Resolves when no client waits for an answer of the process; what an operator asked for may still be under way. */
  async drained(process: SimProcess, operatorCalls: readonly string[]): Promise<void> {
    const isOfClient = (call: Call): boolean => call.process === process && !operatorCalls.includes(call.what);
    while ([...this.#pending].some(isOfClient)) await this.untilNext();
  }

  /** Resolves when one of the calls has ended. */
  untilNext(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiters.push(resolve);
    });
  }

  /** Resolves when no call is under way. */
  async settled(): Promise<void> {
    while (this.#pending.size > 0) await this.untilNext();
  }

  /** The process is dead: its callers hear nothing any more. */
  died(process: SimProcess): void {
    for (const call of Array.from(this.#pending)) if (call.process === process) call.lose();
  }

  /** The process was stopped for a while: its calls have that much longer. */
  extend(process: SimProcess, byMs: number): void {
    for (const call of this.#pending) if (call.process === process) call.dueMs += byMs;
  }

  /** The process lets the callers go on that it had wait: their time begins anew. */
  restart(process: SimProcess): void {
    for (const call of this.#pending) if (call.process === process) call.dueMs = this.#world.nowMs + call.limitMs;
  }

  #checkTimes(): void {
    for (const call of this.#pending) {
      if (this.#world.nowMs > call.dueMs && call.process.alive && !call.process.frozen) {
        if (this.isExcused(call.process)) {
          call.dueMs = this.#world.nowMs + call.limitMs;
          continue;
        }
        throw new Error(`${call.process.label} has not ended "${call.what}"`);
      }
    }
  }
}
