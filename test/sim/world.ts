import assert from "node:assert/strict";
import { EventQueue, ScheduledEvent, type EventOwner } from "./event-queue.ts";
import { SeededRandom } from "./seeded-random.ts";
import { SimHost, type HostOptions } from "./sim-host.ts";
import { SimNetwork } from "./sim-network.ts";
import { SimulatedCrash } from "./simulated-crash.ts";
import { sampleHash, TraceLog } from "./trace-log.ts";

/**
 * Owns one simulated world: virtual time, the queue of everything that will happen, its hosts, their network, and
 * the one seed from which all chance comes. The shipping code of the agents runs in it against simulated clocks,
 * randomness, storage and links.
 *
 * A step takes the next event, calls it, and lets every microtask that follows from it run to its end; then the checks
 * run, and the next step begins. Each step is a callback of `setImmediate`, many of which are queued at a time: Node
 * drains microtasks and ticks between two of them, at a tenth of the cost of a turn of the event loop.
 *
 * Invariants: the same seed and the same test give the same trace hash; nothing of a dead process happens. One world
 * runs at a time in one Node process, because unhandled rejections are caught for the world that runs.
 *
 * It does not see real input and output: code that awaits any would continue at an arbitrary step.
 */

/** Immediates queued at a time. Those left over when a run ends do nothing. */
const STEPS_PER_TURN = 64;

export interface WorldOptions {
  /** The command that replays this world; printed with a failure. */
  readonly replay?: string;
  /** Is told what is done in this world, line by line. */
  readonly print?: ((line: string) => void) | undefined;
}

export interface RunLimits {
  /** Ends the run as soon as this is true; asked before each step. */
  readonly until?: () => boolean;
  /** Ends the run when this much virtual time has passed. */
  readonly forMs?: number;
  /** Ends the run after this many events. */
  readonly steps?: number;
}

/** Why a run ended: its predicate, time or steps; or nothing is left that could happen. */
export type RunEnd = "until" | "time" | "steps" | "idle";

/** A broken invariant, or a bug of the code under test, with all that it takes to look into it. */
export class SimFailure extends Error {
  constructor(world: SimWorld, what: string, cause: unknown) {
    const message = cause instanceof Error ? `${cause.name}: ${cause.message}` : String(cause);
    super(
      [
        `${what}: ${message}`,
        `  seed ${world.seed}, step ${world.steps}, ${world.nowMs.toFixed(3)} ms, trace ${world.traceHash}`,
        ...(world.replay === undefined ? [] : [`  replay: ${world.replay}`]),
        ...world.traceLines(60).map((line) => `  ${line}`),
      ].join("\n"),
      { cause },
    );
    this.name = "SimFailure";
  }
}

let worldRuns = false;

export class SimWorld {
  readonly seed: number;
  /** For the test's own choices. */
  readonly random: SeededRandom;
  readonly network: SimNetwork;
  readonly replay: string | undefined;
  readonly #print: ((line: string) => void) | undefined;
  readonly #order: SeededRandom;
  readonly #queue = new EventQueue();
  readonly #trace = new TraceLog();
  readonly #hosts = new Map<string, SimHost>();
  readonly #checks = new Map<string, () => void>();
  #nowMs = 0;
  #steps = 0;
  #sequence = 0;
  #failure: SimFailure | undefined;

  constructor(seed: number, options: WorldOptions = {}) {
    this.seed = seed;
    this.replay = options.replay;
    this.#print = options.print;
    const root = new SeededRandom(seed);
    this.random = root.fork("test");
    this.#order = root.fork("order");
    this.network = new SimNetwork(this, root.fork("network"));
  }

  /** Virtual time since the world began. */
  get nowMs(): number {
    return this.#nowMs;
  }

  /** Events that have happened. */
  get steps(): number {
    return this.#steps;
  }

  get traceHash(): string {
    return this.#trace.hash;
  }

  /** The last lines of the trace, oldest first. */
  traceLines(count = Number.POSITIVE_INFINITY): string[] {
    return this.#trace.lines().slice(-count);
  }

  /** Notes something that happened: it counts for the hash, and is shown with a failure. `line` is best a constant. */
  trace(line: string, first?: number, second?: number): void {
    this.#trace.add(this.#nowMs, line, first, second);
  }

  /** Says what is done, for who replays this world, and in the report of a failure. */
  note(line: string): void {
    this.trace(`-- ${line}`);
    this.#print?.(`${this.#nowMs.toFixed(3).padStart(12)} ms  ${line}`);
  }

  /** Adds content to the hash without a line. */
  traceBytes(bytes: Uint8Array): void {
    this.#trace.mix(sampleHash(bytes));
  }

  /** A new host, running, with an empty disk unless one is given. */
  host(name: string, options: HostOptions = {}): SimHost {
    assert(!this.#hosts.has(name), `there is a host ${name} already`);
    const host = new SimHost(this, name, new SeededRandom(this.seed).fork(`host ${name}`), options);
    this.#hosts.set(name, host);
    return host;
  }

  getHost(name: string): SimHost {
    const host = this.#hosts.get(name);
    assert(host !== undefined, `there is no host ${name}`);
    return host;
  }

  /** Calls `callback` once, `delayMs` of virtual time from now, unless `owner` is dead by then. */
  schedule(delayMs: number, callback: () => void, owner?: EventOwner): ScheduledEvent {
    assert(delayMs >= 0, `an event cannot lie ${delayMs} ms ahead`);
    const event = new ScheduledEvent(this.#nowMs + delayMs, this.#order.next(), this.#sequence++, owner, callback);
    this.#queue.push(event);
    return event;
  }

  /** Resolves `ms` of virtual time from now, unless `owner` is dead by then. */
  sleep(ms: number, owner?: EventOwner): Promise<void> {
    return new Promise((resolve) => {
      this.schedule(ms, resolve, owner);
    });
  }

  /** Puts events back that came due while their owner was frozen: all are due now. */
  resume(held: readonly ScheduledEvent[]): void {
    for (const event of held) {
      event.timeMs = this.#nowMs;
      this.#queue.push(event);
    }
  }

  /** Has `check` called after every step; what it throws fails the run under `name`. */
  addCheck(name: string, check: () => void): void {
    this.#checks.set(name, check);
  }

  removeCheck(name: string): void {
    this.#checks.delete(name);
  }

  /** Makes the run fail at the end of this step. The first failure counts. */
  fail(what: string, cause: unknown): void {
    this.#failure ??= new SimFailure(this, what, cause);
  }

  /**
   * Lets events happen until a limit is reached. Rejects with SimFailure when an event throws, a promise of the code
   * under test is rejected without a handler, or a check fails; such a world cannot go on.
   */
  run(limits: RunLimits = {}): Promise<RunEnd> {
    assert(!worldRuns, "another world, or this one, is running in this Node process");
    worldRuns = true;
    const deadlineMs = this.#nowMs + (limits.forMs ?? Number.POSITIVE_INFINITY);
    const lastStep = this.#steps + (limits.steps ?? Number.POSITIVE_INFINITY);
    const releaseRejections = this.#catchRejections();
    return new Promise((resolve, reject) => {
      let ended = false;
      let queued = 0;
      const end = (settle: () => void): void => {
        ended = true;
        releaseRejections();
        worldRuns = false;
        settle();
      };
      const queueSteps = (): void => {
        for (queued = STEPS_PER_TURN; queued > 0; queued--) setImmediate(step);
        queued = STEPS_PER_TURN;
      };
      const step = (): void => {
        if (ended) return;
        const outcome = this.#step(limits.until, deadlineMs, lastStep);
        const failure = this.#failure;
        if (failure !== undefined) end(() => reject(failure));
        else if (outcome !== undefined) end(() => resolve(outcome));
        else if (--queued === 0) queueSteps();
      };
      queueSteps();
    });
  }

  /** Runs until `condition` holds; not reaching it within `withinMs` of virtual time fails the world, naming `what`. */
  async runUntil(what: string, condition: () => boolean, withinMs = 3_600_000): Promise<void> {
    const end = await this.run({ until: condition, forMs: withinMs });
    if (end === "until") return;
    throw new SimFailure(
      this,
      "not reached",
      `${what} (${end === "idle" ? "nothing is left to happen" : `${withinMs} ms passed`})`,
    );
  }

  /**
   * Runs until `promise` settles, and settles like it. For calls that a test makes into the code under test.
   * A promise of a process that dies never settles: where that may happen, `run` until it or `SimHost.alive` changes.
   */
  async runFor<T>(what: string, promise: Promise<T>, withinMs = 3_600_000): Promise<T> {
    let settled = false;
    const mark = (): void => {
      settled = true;
    };
    promise.then(mark, mark);
    await this.runUntil(what, () => settled, withinMs);
    return await promise;
  }

  /** Has `work` begin as an event of this world, and runs until it ends, as `runFor`. */
  do<T>(what: string, work: () => Promise<T>, withinMs?: number): Promise<T> {
    const done = new Promise<T>((resolve, reject) => {
      this.schedule(0, () => void work().then(resolve, reject));
    });
    return this.runFor(what, done, withinMs);
  }

  /** One step: undefined when the run goes on. Everything that followed from the step before has been done. */
  #step(until: (() => boolean) | undefined, deadlineMs: number, lastStep: number): RunEnd | undefined {
    this.#check();
    if (this.#failure !== undefined) return undefined;
    if (until?.() === true) return "until";
    if (this.#steps >= lastStep) return "steps";
    for (;;) {
      const next = this.#queue.peek();
      if (next === undefined || next.timeMs > deadlineMs) {
        if (deadlineMs === Number.POSITIVE_INFINITY) return "idle";
        this.#nowMs = deadlineMs;
        return "time";
      }
      this.#queue.pop();
      const { callback, owner } = next;
      if (callback === undefined || owner?.alive === false) continue;
      if (owner?.frozen === true) {
        owner.hold(next);
        continue;
      }
      this.#nowMs = next.timeMs;
      this.#steps++;
      this.#trace.mix(next.timeMs);
      this.#trace.mix(next.sequence);
      next.callback = undefined;
      try {
        callback();
      } catch (error) {
        if (!(error instanceof SimulatedCrash)) this.fail("an event threw", error);
      }
      return undefined;
    }
  }

  #check(): void {
    for (const [name, check] of this.#checks) {
      try {
        check();
      } catch (error) {
        this.fail(`check "${name}"`, error);
        return;
      }
    }
  }

  /**
   * Rejections without a handler are bugs of the code under test, unless its process died of a SimulatedCrash: a dead
   * process does not care. Listeners of the test runner are put aside meanwhile.
   */
  #catchRejections(): () => void {
    const others = process.rawListeners("unhandledRejection");
    process.removeAllListeners("unhandledRejection");
    const listener = (reason: unknown): void => {
      if (!(reason instanceof SimulatedCrash)) this.fail("unhandled rejection", reason);
    };
    process.on("unhandledRejection", listener);
    return () => {
      process.removeListener("unhandledRejection", listener);
      for (const other of others) process.on("unhandledRejection", other as NodeJS.UnhandledRejectionListener);
    };
  }
}
