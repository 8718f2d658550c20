import type { FailoverAnswer, FailoverRequest } from "../proto/control-api.ts";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { COMMAND_TIMEOUT_DEFAULT_MS } from "../proto/limits.ts";
import { outdated } from "../primary/guest-policy.ts";
import type { SecondaryRole } from "../secondary/secondary-role.ts";
import type { Clock } from "../shared/host/clock.ts";
import { Deadline } from "../shared/host/deadline.ts";
import type { Log } from "../shared/host/log.ts";
import type { JobList } from "../shared/jobs/job-list.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { AgentOptions } from "./agent-host.ts";
import type { AgentRoles } from "./agent-roles.ts";
import type { Takeover, TakeoverClaim } from "./takeover.ts";

/** What a secondary that takes over by itself asks of itself; nobody waits for it. */
const BY_ITSELF: FailoverRequest = {
  force: false,
  dryRun: false,
  discardActive: false,
  timeoutMs: COMMAND_TIMEOUT_DEFAULT_MS,
};

export interface FailoversOptions {
  readonly clock: Clock;
  readonly log: Log;
  readonly state: StateFile;
  readonly jobs: JobList;
  readonly fence: AgentOptions["fence"];
  /** Aborts when the agent is about to stop: a hook is ended, and nobody is promoted any more. */
  readonly signal: AbortSignal;
  readonly roles: () => AgentRoles;
  /** undefined without an arbiter. */
  readonly takeover: () => Takeover | undefined;
  /** This side serves from the checkpoint of `epoch`, and the VM may be started, unless whoever has asked does that. */
  readonly promoted: (epoch: number) => void;
  /** Resolves when no command that changes checkpoints is under way. */
  readonly settled: () => Promise<unknown>;
}

interface RunningFailover {
  /** Whose it is: what others say beyond that does not count in it. */
  readonly request: FailoverRequest;
  readonly answer: Promise<FailoverAnswer>;
  /** Whether any of those who have asked wants the active disk left out. */
  discardActive: boolean;
  /** This side is being promoted: nothing more can be wanted. */
  isPromoting: boolean;
  /** Whose command would start the VM; undefined: the agent's own, if it has one. */
  starter: FailoverRequest | undefined;
  /** Whose does, once this side is Primary. */
  started: FailoverRequest | undefined;
}

/**
 * Owns an agent's promotion from Secondary to Primary, by an operator's command or by itself, one at a time: the arbiter
 * is asked, the peer is fenced, the role changes, in this order.
 */
export class Failovers {
  readonly #options: FailoversOptions;
  #running: RunningFailover | undefined;

  constructor(options: FailoversOptions) {
    this.#options = options;
  }

  get isRunning(): boolean {
    return this.#running !== undefined;
  }

  /** Resolves when none is under way, whatever has become of it: who asked for it has its error. */
  async ended(): Promise<void> {
    await this.#running?.answer.catch(() => undefined);
  }

  /** Errors: what keeps this side from being promoted, `shutting-down` included; `timed-out` when it has begun, and goes on. */
  async run(request: FailoverRequest, signal: AbortSignal): Promise<FailoverAnswer> {
    const deadline = new Deadline(this.#options.clock, request.timeoutMs, signal);
    try {
      for (;;) {
        const answer = await this.#tryRun(request, deadline);
        if (answer !== undefined) return answer;
      }
    } finally {
      deadline.end();
      // Who has gone before the answer does not start the VM.
      if (this.#running?.starter === request) this.#running.starter = undefined;
    }
  }

  /** undefined: one that was under way has failed, and this request says more. Errors: as `run`. */
  async #tryRun(request: FailoverRequest, deadline: Deadline): Promise<FailoverAnswer | undefined> {
    const { state, roles, settled } = this.#options;
    const { active } = roles();
    if (active.role === "Primary") {
      if (state.record.outdated) throw outdated();
      return this.#alreadyPrimary(request.dryRun);
    }
    const { secondary } = active;
    secondary.assertPromotable(request.force);
    this.#assertFenceable(request);
    if (request.dryRun) {
      await secondary.assertProtected(request.force);
      const foreseen = this.#options.takeover()?.foresee(secondary, request.force);
      const arbiter = await deadline.race(Promise.resolve(foreseen), "the arbiter has not answered yet");
      return { ...this.#describe(secondary, request), ...(arbiter === undefined ? {} : { arbiter }) };
    }
    await deadline.race(settled(), "the failover waits for another command to end");
    return deadline.race(this.#begin(request), "the failover has begun and goes on");
  }

  /**
   * Makes sure that a takeover would not stop half-way: nobody is claimed from, or fenced, for a checkpoint that is void,
   * or where there is no way to fence. Errors: `fence-failed`, `unprotected`, `image-busy`.
   */
  async assertFit(secondary: SecondaryRole): Promise<void> {
    this.#assertFenceable(BY_ITSELF);
    await secondary.assertProtected(false);
  }

  /** The arbiter lets this secondary take over. Errors: what keeps it from being promoted. */
  async takeOver(): Promise<void> {
    await this.#options.settled();
    await this.#begin(BY_ITSELF);
  }

  /**
   * Whoever joins one that is under way, and starts the VM, does so in the place of any other; the active disk is left out
   * where anybody wants that. undefined: it has failed, and the request says more than it. Errors: `not-secondary` where it is
   * too late for it; those of the failover.
   */
  async #begin(request: FailoverRequest): Promise<FailoverAnswer | undefined> {
    const running = (this.#running ??= this.#start(request));
    if (request.discardActive && !running.discardActive) {
      // With a stored VM state it is left out anyway.
      if (running.isPromoting && this.#options.state.record.committed.vmstate === undefined) throw alreadyPromoting();
      running.discardActive = true;
    }
    if (request.startsVm === true) running.starter = request;
    const saysMore = overrides(request, running.request);
    const answer = await (saysMore ? running.answer.catch(() => undefined) : running.answer); // who began it has the error
    return answer === undefined ? undefined : { ...answer, startsVm: running.started === request };
  }

  #start(request: FailoverRequest): RunningFailover {
    const running: RunningFailover = {
      request,
      answer: this.#fenceAndPromote(request),
      discardActive: request.discardActive,
      isPromoting: false,
      starter: undefined,
      started: undefined,
    };
    const end = (): void => {
      this.#running = undefined;
    };
    void running.answer.then(end, end);
    return running;
  }

  /** Two hosts that write one disk destroy it: nobody is promoted on a shared one before the other is known to be dead. */
  #assertFenceable({ fenced }: FailoverRequest): void {
    const { state, fence } = this.#options;
    if (state.record.mode !== "shared" || fenced === true || fence !== undefined) return;
    throw new ColobusError(
      "fence-failed",
      "nobody has made sure that the former primary does not write the shared disk any more",
      "Power its host off, or cut it off from the disk, and say `colobus failover --fenced`; or start this agent with --fence-peer.",
    );
  }

  /** An arbiter is told first: nobody is fenced, nor promoted, whom it does not let. */
  async #fenceAndPromote(request: FailoverRequest): Promise<FailoverAnswer> {
    const { roles, state, takeover, signal } = this.#options;
    const { active } = roles();
    if (active.role === "Primary") return this.#alreadyPrimary(false); // a hand-over came first
    const { secondary } = active;
    signal.throwIfAborted();
    const claim = await takeover()?.claim(secondary, { force: request.force, waits: request !== BY_ITSELF });
    try {
      signal.throwIfAborted();
      await this.#fence(secondary, request);
      // The primary may have come back meanwhile.
      secondary.assertPromotable(request.force);
      await secondary.secureCheckpoint(request.force);
      await claim?.secure();
      signal.throwIfAborted();
      return await this.#promote(secondary, request, claim);
    } catch (error) {
      if (state.record.role === "Secondary") await claim?.giveUp();
      throw error;
    }
  }

  async #fence(secondary: SecondaryRole, request: FailoverRequest): Promise<void> {
    const { fence, log, state, signal } = this.#options;
    // A reload may have taken the hook away since the failover was asked for.
    this.#assertFenceable(request);
    if (fence === undefined) return;
    // Nobody is powered off for a promotion that cannot be.
    await secondary.assertProtected(request.force);
    const { record } = state;
    const { address } = secondary.describePeer();
    const peer = {
      vm: record.vm,
      agentId: record.pairing?.peer ?? null,
      address,
      sharesDisks: record.mode === "shared",
    };
    try {
      await fence(peer, signal);
    } catch (error) {
      signal.throwIfAborted();
      const mayForce = record.mode === "shared" ? request.fenced === true : request.force;
      if (!mayForce) throw error;
      log.warn({ reason: asColobusError(error) }, "the peer was not fenced; the operator forces the failover");
    }
  }

  async #promote(
    secondary: SecondaryRole,
    request: FailoverRequest,
    claim: TakeoverClaim | undefined,
  ): Promise<FailoverAnswer> {
    const roles = this.#options.roles();
    const discardActive = this.#decideActive();
    const described = this.#describe(secondary, { ...request, discardActive });
    const { assertStill, siblings, supersedes, isUntold, lineage } = claim ?? {};
    const promotion = await roles.promote({ discardActive, assertStill, siblings, supersedes, isUntold }, lineage);
    // A commit that was under way when the session ended has come before the promotion.
    const { epoch } = promotion;
    const { ageMs, wouldLose } = secondary.describeRecoverable() ?? described;
    const mergeBytes = roles.promoted.reduce((sum, disk) => sum + disk.mergeTotalBytes, 0);
    const jobs = this.#options.jobs.all().map((job) => job.describe().id);
    this.#decideWhoStarts(epoch);
    return { ...described, dryRun: false, epoch, ageMs, wouldLose, mergeBytes, jobs };
  }

  /** Whether what the secondary's own VM has written is left out: from here on nobody can ask for it any more. */
  #decideActive(): boolean {
    const running = this.#running;
    if (running !== undefined) running.isPromoting = true;
    return running?.discardActive === true;
  }

  /** Once for each promotion. Who would start the VM of an agent that is being stopped hears that it is not started. */
  #decideWhoStarts(epoch: number): void {
    const running = this.#running;
    if (running?.starter === undefined || this.#options.signal.aborted) this.#options.promoted(epoch);
    else running.started = running.starter;
  }

  #describe(secondary: SecondaryRole, request: FailoverRequest): FailoverAnswer {
    const recoverable = secondary.describeRecoverable();
    const disks = secondary.describeDisks();
    const discardsActive = this.#discardsActive(request);
    return {
      already: false,
      dryRun: request.dryRun,
      startsVm: false,
      mode: this.#options.state.record.mode,
      epoch: recoverable?.epoch ?? 0,
      ageMs: recoverable?.ageMs ?? null,
      wouldLose: recoverable?.wouldLose ?? { writes: 0, bytes: 0, atLeast: true },
      discardedActiveBytes: discardsActive ? disks.reduce((sum, disk) => sum + disk.activeBytes, 0) : 0,
      mergeBytes: secondary.mergeBytes({ discardsActive }),
      jobs: [],
    };
  }

  /** A stored VM state knows nothing of what a VM on this side has written. */
  #discardsActive({ discardActive }: FailoverRequest): boolean {
    return discardActive || this.#options.state.record.committed.vmstate !== undefined;
  }

  #alreadyPrimary(dryRun: boolean): FailoverAnswer {
    const { state, jobs, roles } = this.#options;
    return {
      already: true,
      dryRun,
      startsVm: false,
      mode: state.record.mode,
      epoch: state.record.committed.epoch,
      ageMs: null,
      wouldLose: { writes: 0, bytes: 0, atLeast: false },
      discardedActiveBytes: 0,
      mergeBytes: roles().promoted.reduce((sum, disk) => sum + disk.mergeTotalBytes - disk.mergedBytes, 0),
      jobs: jobs
        .all()
        .map((job) => job.describe())
        .filter(({ type }) => type === "merge")
        .map(({ id }) => id),
    };
  }
}

/** Whether a failover may succeed by `request` where it has failed by `other`: an operator's waits for a lease as well. */
function overrides(request: FailoverRequest, other: FailoverRequest): boolean {
  const isForced = request.force && !other.force;
  const isFenced = request.fenced === true && other.fenced !== true;
  return isForced || isFenced || (other === BY_ITSELF && request !== BY_ITSELF);
}

function alreadyPromoting(): ColobusError {
  return new ColobusError(
    "not-secondary",
    "another command has begun to promote this side, and what its own VM has written stays",
    "See `colobus status`; nothing of it can be left out any more.",
  );
}
