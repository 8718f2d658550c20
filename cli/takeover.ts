import type { ArbiterEntry, ArbiterRecord } from "../proto/arbiter-record.ts";
import type { ForeseenClaim } from "../proto/control-api.ts";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { TAKEOVER_LOOKS } from "../proto/limits.ts";
import type { EventType } from "../proto/words.ts";
import { decideTakeover, type ClaimDecision } from "../shared/arbiter/claim-rules.ts";
import type { OwnLease } from "../shared/arbiter/own-lease.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import { newId, type Random } from "../shared/host/random.ts";
import { succeededBy } from "../shared/replication/lineage.ts";
import { sleep } from "../shared/host/sleep.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { SecondaryRole } from "../secondary/secondary-role.ts";
import { TakeoverPromise } from "../secondary/takeover-promise.ts";

export interface TakeoverOptions {
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  readonly state: StateFile;
  readonly lease: OwnLease;
  /** Whether this side takes over by itself. */
  readonly isAutomatic: boolean;
  /** The secondary that could be promoted now; undefined: there is none, or it is being promoted. */
  readonly candidate: () => SecondaryRole | undefined;
  /** Errors: why it could not be promoted, whatever the arbiter says. */
  readonly assertFit: (secondary: SecondaryRole) => Promise<void>;
  /** Promotes it: `claim` is called on the way. */
  readonly failOver: () => Promise<unknown>;
}

export interface ClaimRequest {
  /** An operator overrides what the arbiter says. */
  readonly force: boolean;
  /** Whether somebody waits for the end of the promise, and of another's lease. */
  readonly waits: boolean;
}

/** The right to promote, under one lineage, until the promotion is recorded or given up. */
export interface TakeoverClaim {
  readonly lineage: string;
  /** What it supersedes, heard of or not: the primary had it begin, and has acknowledged nothing without this side. */
  readonly supersedes: readonly string[];
  /** The arbiter could not be told, and is to be told by whoever serves. */
  readonly isUntold: boolean;
  /** Where the other secondaries of the former primary are dialled: they are to follow this side. */
  readonly siblings: readonly string[];
  /**
   * Makes sure that nobody else has claimed since, which may be once the lease has run out: what came between took its time.
   * Errors: `lease-held`, `arbiter-unreachable`.
   */
  readonly secure: () => Promise<void>;
  /** Throws where the primary may rely on a promise of this side again. */
  readonly assertStill: () => void;
  /** The promotion has failed: the arbiter is told what stood there before. */
  readonly giveUp: () => Promise<void>;
}

const PROMISED = { kind: "wait", why: "this side has promised the primary not to take over yet" } as const;

/** Earlier claims whose calls may still reach the arbiter, beside the one that was found there. */
const UNSURE_MAX = 8;

/**
 * Takes the VM over from a primary that the arbiter does not hear any more: looks whether it may, claims the lease and the
 * record in one step, and has this side promoted under exactly the lineage that it has claimed. An operator's failover
 * goes the same way, but for the watching.
 *
 * Invariant: nothing is claimed, and nobody is promoted, while a promise to the primary binds.
 */
export class Takeover {
  readonly promise: TakeoverPromise;
  readonly #options: TakeoverOptions;
  #timer: Timer | undefined;
  #stopped = false;
  #lastFailure: string | undefined;
  /** What has failed is not tried again at once: a fence hook may have a say in it, or the primary may serve again. */
  #notBeforeMs = 0;
  /** What stood in the record before this side's last claims, of which any may stand there still, though nobody was promoted under them. */
  #overwritten: { readonly lineages: readonly string[]; readonly before: ArbiterRecord } | undefined;

  constructor(options: TakeoverOptions) {
    this.#options = options;
    this.promise = new TakeoverPromise(options.clock, options.lease.ttlMs);
  }

  start(): void {
    if (this.#options.isAutomatic) this.#schedule();
  }

  stop(): void {
    this.#stopped = true;
    this.#timer?.cancel();
  }

  /**
   * Claims the VM for this side; with `force` whatever the arbiter says, and even where it says nothing.
   * Errors: `lease-refused`, `arbiter-unreachable`, `lease-held`.
   */
  async claim(secondary: SecondaryRole, { force, waits }: ClaimRequest): Promise<TakeoverClaim> {
    const { lease, state, clock, random, log } = this.#options;
    const lineage = newId(random);
    for (let waitedMs = 0; ;) {
      try {
        const seen = await lease.read();
        const leftMs = this.promise.leftMs(seen.record?.ttlMs ?? 0);
        const rightful = this.#decide(secondary, seen);
        const decision: ClaimDecision = force ? { kind: "claim" } : leftMs > 0 ? PROMISED : rightful;
        if (decision.kind === "refused") throw refused(decision.why);
        if (decision.kind === "claim") {
          const { record } = state;
          const outdated = record.pairing === null ? [] : [record.pairing.peer];
          const committed = secondary.checkpoints.committed.epoch;
          const { vm, agentId: holder } = record;
          const peers = this.#siblingsIn(seen.record);
          // A takeover of this side that is cut off finds it here again.
          const next = rightful.kind === "refused" ? [] : (seen.record?.next ?? []);
          const entry = { vm, lineage, next, holder, committed, outdated, peers, ttlMs: lease.ttlMs };
          const before = this.#beforeClaim(lineage, seen.record);
          if (await lease.claim(seen, entry, force)) return this.#claimed(entry, next, before, force);
          continue;
        }
        const patienceMs = waits ? 2 * Math.max(lease.ttlMs, seen.record?.ttlMs ?? 0) : 0;
        if (waitedMs >= patienceMs || this.#stopped) throw held(decision.why);
      } catch (error) {
        if (!force || this.#stopped) throw error;
        log.warn({ reason: asColobusError(error) }, "the arbiter is not told; the operator forces the failover");
        const giveUp = (): Promise<void> => Promise.resolve();
        const nothing = { secure: giveUp, assertStill: () => undefined, giveUp };
        return { lineage, supersedes: [], isUntold: true, siblings: [], ...nothing };
      }
      const pauseMs = lease.ttlMs / TAKEOVER_LOOKS;
      waitedMs += pauseMs;
      await sleep(clock, pauseMs);
    }
  }

  /** What `claim` would come to now, for somebody who waits: nothing is claimed by it. Errors: as of `claim`, but for `lease-held`. */
  async foresee(secondary: SecondaryRole, force: boolean): Promise<ForeseenClaim> {
    try {
      const seen = await this.#options.lease.read();
      const waitMs = this.promise.leftMs(seen.record?.ttlMs ?? 0);
      const rightful = this.#decide(secondary, seen);
      if (rightful.kind === "refused" && !force) throw refused(rightful.why);
      const decision = rightful.kind !== "refused" && waitMs > 0 ? PROMISED : rightful;
      if (decision.kind === "claim") return { outlook: "granted", reason: null, waitMs: null };
      const reason = decision.why;
      if (force) return { outlook: "overruled", reason, waitMs: null };
      return decision === PROMISED
        ? { outlook: "promised", reason, waitMs }
        : { outlook: "held", reason, waitMs: null };
    } catch (error) {
      if (!force) throw error;
      return { outlook: "untold", reason: asColobusError(error).message, waitMs: null };
    }
  }

  #claimed(
    entry: ArbiterEntry,
    supersedes: readonly string[],
    before: ArbiterRecord | undefined,
    force: boolean,
  ): TakeoverClaim {
    const { lease } = this.#options;
    const { lineage } = entry;
    return {
      lineage,
      supersedes,
      isUntold: false,
      siblings: this.#siblingsIn(before).map(({ url }) => url),
      secure: async () => {
        if (force || lease.isInForce || (await lease.replace(lineage, entry))) return;
        throw held("another has served since this side has claimed the lease");
      },
      assertStill: () => {
        if (!force && this.promise.leftMs(before?.ttlMs ?? 0) > 0) throw held("the primary was heard again");
      },
      giveUp: async () => {
        lease.forgo();
        try {
          if (before !== undefined) await lease.replace(lineage, before);
        } catch (error) {
          // The record names this side then, which may claim again; or the primary does when the two are connected.
          this.#options.log.warn({ reason: asColobusError(error) }, "the arbiter's record is not put back");
        }
        await lease.release();
      },
    };
  }

  /**
   * What is to stand in the record when a promotion under `lineage` fails: not an earlier claim of this process that has come to
   * nothing.
   */
  #beforeClaim(lineage: string, found: ArbiterRecord | undefined): ArbiterRecord | undefined {
    const succeeded = succeededBy(this.#options.state.record);
    const { lineages = [], before = found } = this.#overwritten ?? {};
    const vain = lineages.some((each) => succeeded.includes(each)) ? [] : lineages;
    const own = vain.filter((each) => each === found?.lineage);
    const former = own.length > 0 ? before : found;
    // How this claim ends may never be known: what it finds there stays, or one that was lost before it still comes.
    const unsure = [...new Set([...vain.slice(-UNSURE_MAX), ...own, lineage])];
    this.#overwritten = former === undefined ? undefined : { lineages: unsure, before: former };
    return former;
  }

  /** The other secondaries of whoever has written the record, or of whom a takeover of this side that was cut off has found there. */
  #siblingsIn(record: ArbiterRecord | undefined): ArbiterRecord["peers"] {
    const { agentId: self } = this.#options.state.record;
    return record?.peers.filter(({ agentId }) => agentId !== self) ?? [];
  }

  #decide(secondary: SecondaryRole, seen: Awaited<ReturnType<OwnLease["read"]>>): ClaimDecision {
    const { record } = this.#options.state;
    const committed = secondary.checkpoints.committed.epoch;
    return decideTakeover({ state: seen, agentId: record.agentId, lineages: succeededBy(record), committed });
  }

  #schedule(): void {
    if (this.#stopped) return;
    const { clock, lease } = this.#options;
    this.#timer = clock.after(lease.ttlMs / TAKEOVER_LOOKS, () => {
      void this.#look().finally(() => this.#schedule());
    });
  }

  /** Takes over when nothing speaks against it. What does is told once. */
  async #look(): Promise<void> {
    const { clock, lease, emit } = this.#options;
    try {
      if (clock.nowMs() < this.#notBeforeMs) return;
      const lonely = this.#lonely();
      if (lonely === undefined) return;
      await this.#options.assertFit(lonely);
      const seen = await lease.read();
      const secondary = this.#lonely();
      if (secondary === undefined || this.promise.leftMs(seen.record?.ttlMs ?? 0) > 0) return;
      const decision = this.#decide(secondary, seen);
      if (decision.kind === "wait") return;
      if (decision.kind === "refused") throw refused(decision.why);
      emit("takeover-started", { holder: seen.record?.holder ?? null });
      try {
        await this.#options.failOver();
      } finally {
        this.#notBeforeMs = clock.nowMs() + lease.ttlMs;
      }
      this.#lastFailure = undefined;
    } catch (error) {
      const reason = asColobusError(error);
      if (reason.message === this.#lastFailure || reason.code === "arbiter-unreachable") return;
      this.#lastFailure = reason.message;
      emit("takeover-failed", reason.toJSON());
    }
  }

  /** The secondary, when it hears no primary, and has something to return to. */
  #lonely(): SecondaryRole | undefined {
    const { candidate, state } = this.#options;
    const secondary = this.#stopped ? undefined : candidate();
    if (secondary === undefined || secondary.isConnected || state.record.outdated) return undefined;
    if (secondary.checkpoints.committed.epoch === 0 || this.promise.leftMs(0) > 0) return undefined;
    return secondary;
  }
}

function refused(why: string): ColobusError {
  return new ColobusError(
    "lease-refused",
    `this side may not take over: ${why}`,
    "Fail over by hand when you are sure that the other side serves nobody: `colobus failover --force`.",
  );
}

function held(why: string): ColobusError {
  return new ColobusError(
    "lease-held",
    `this side may not take over yet: ${why}`,
    "Stop the primary's agent or its host, and try again; --force takes the lease away from it.",
  );
}
