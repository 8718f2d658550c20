import type {
  CheckpointAnswer,
  CommitAnswer,
  CommitRequest,
  DiscardAnswer,
  DiscardRequest,
  VmStateAnswer,
} from "../proto/control-api.ts";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import type { VmStateMark } from "../proto/state-record.ts";
import type { Clock } from "../shared/host/clock.ts";
import { Deadline } from "../shared/host/deadline.ts";
import type { Log } from "../shared/host/log.ts";
import type { PrimaryCheckpoints } from "./primary-checkpoints.ts";
import type { EpochSession } from "./session-group.ts";
import type { VmStateBytes } from "./vm-state-stream.ts";

export interface VmStatesOptions {
  readonly clock: Clock;
  readonly log: Log;
  readonly checkpoints: PrimaryCheckpoints;
}

/** `ended` resolves when another state may be received. */
interface Receiving {
  readonly epoch: number;
  readonly done: Promise<VmStateMark>;
  readonly fail: (reason: ColobusError) => void;
  readonly ended: Promise<void>;
}

/** What a discard may take whose own command has failed already. */
const DISCARD_TIMEOUT_MS = 10_000;

/**
 * Owns the VM state that is being received for a checkpoint, one at a time. The barrier comes first: a checkpoint that
 * awaits its state cannot be committed, and one whose state breaks off is withdrawn, so that the one before stands.
 */
export class VmStates {
  readonly #options: VmStatesOptions;
  /** Sizes of the states that are stored with prepared checkpoints. */
  readonly #stored = new Map<number, number>();
  #receiving: Receiving | undefined;

  constructor(options: VmStatesOptions) {
    this.#options = options;
  }

  /**
   * Takes a checkpoint with the state that `bytes` has, and commits it unless only that is left out.
   * Errors: those of `PrimaryCheckpoints.checkpoint`; `vmstate-interrupted`; `vmstate-busy`; `out-of-space` …
   */
  async checkpoint(
    request: { readonly prepare: boolean; readonly timeoutMs: number },
    bytes: VmStateBytes,
    signal: AbortSignal,
  ): Promise<CheckpointAnswer> {
    const { checkpoints, clock } = this.#options;
    const startedMs = clock.nowMs();
    const leftMs = (): number => Math.max(1, request.timeoutMs - (clock.nowMs() - startedMs));
    this.#assertIdle();
    const { timeoutMs } = request;
    const { epoch } = await checkpoints.checkpoint({ prepare: true, vmstate: true, timeoutMs }, signal);
    const { bytes: vmstateBytes } = await this.receive({ epoch, timeoutMs: leftMs() }, bytes, signal);
    const prepareMs = clock.nowMs() - startedMs;
    if (request.prepare) return { epoch, state: "prepared", prepareMs, commitMs: null, vmstateBytes };
    const { commitMs } = await checkpoints.commit(epoch, leftMs(), signal);
    return { epoch, state: "committed", prepareMs, commitMs, vmstateBytes };
  }

  /**
   * Receives the state of the checkpoint that awaits one, which is prepared then. Without an epoch: of the newest.
   * Errors: `epoch-unknown`, `vmstate-interrupted`, `vmstate-busy`, `timed-out`, the secondary's; the checkpoint is
   * withdrawn then, unless it was another one's state that was being received.
   */
  async receive(
    request: { readonly epoch?: number | undefined; readonly timeoutMs: number },
    bytes: VmStateBytes,
    signal: AbortSignal,
  ): Promise<VmStateAnswer> {
    const { checkpoints, clock } = this.#options;
    this.#assertIdle();
    const { epoch, session } = checkpoints.awaiting(request.epoch);
    const deadline = new Deadline(clock, request.timeoutMs, signal);
    const stream = session.openVmState(epoch);
    const startedMs = clock.nowMs();
    const done = (async () => {
      const mark = await stream.pump(bytes);
      await session.request((id) => ({ type: "vmstate-end", id, epoch, ...mark }));
      checkpoints.stored(epoch, session, clock.nowMs() - startedMs);
      return mark;
    })();
    done.catch(() => undefined); // whoever waits for it has the error
    let end: () => void = () => undefined;
    const ended = new Promise<void>((resolve) => {
      end = resolve;
    });
    this.#receiving = { epoch, done, fail: (reason) => stream.fail(reason), ended };
    try {
      const mark = await deadline.race(done, `the VM state of checkpoint ${epoch} is not complete yet`);
      this.#stored.set(epoch, mark.bytes);
      return { epoch, bytes: mark.bytes };
    } catch (error) {
      stream.fail(asColobusError(error));
      const withdrawn = this.#withdraw(epoch, session);
      await deadline.race(withdrawn, "").catch(() => undefined); // it goes on by itself; the first error is told
      throw error;
    } finally {
      this.#receiving = undefined;
      session.closeVmState(stream);
      deadline.end();
      end();
    }
  }

  /** Commits a checkpoint, once the state that is being received for it is complete. */
  async commit({ epoch, timeoutMs }: CommitRequest, signal: AbortSignal): Promise<CommitAnswer> {
    const { checkpoints, clock } = this.#options;
    const startedMs = clock.nowMs();
    if (this.#receiving?.epoch === epoch) {
      const deadline = new Deadline(clock, timeoutMs, signal);
      try {
        await deadline.race(this.#receiving.done, `the VM state of checkpoint ${epoch} is not complete yet`);
      } finally {
        deadline.end();
      }
    }
    const answer = await checkpoints.commit(epoch, Math.max(1, timeoutMs - (clock.nowMs() - startedMs)), signal);
    const vmstateBytes = this.#stored.get(epoch);
    for (const earlier of this.#stored.keys()) if (earlier < epoch) this.#stored.delete(earlier);
    return vmstateBytes === undefined ? answer : { ...answer, vmstateBytes };
  }

  /**
   * Withdraws one prepared checkpoint, or all of them. Where the state of one is being received, that ends with it: the next
   * checkpoint's may come at once. Errors: those of `PrimaryCheckpoints.discard`; `timed-out`.
   */
  async discard({ epoch, timeoutMs }: DiscardRequest, signal: AbortSignal): Promise<DiscardAnswer> {
    const { checkpoints, clock } = this.#options;
    const deadline = new Deadline(clock, timeoutMs, signal);
    try {
      const answer = await checkpoints.discard(epoch, timeoutMs, signal);
      const receiving = this.#receiving;
      if (receiving === undefined || !answer.discarded.includes(receiving.epoch)) return answer;
      receiving.fail(
        new ColobusError("epoch-unknown", `checkpoint ${receiving.epoch} was withdrawn`, "Take a new checkpoint."),
      );
      await deadline.race(receiving.ended, `the VM state of checkpoint ${receiving.epoch} is still being received`);
      return answer;
    } finally {
      deadline.end();
    }
  }

  #assertIdle(): void {
    if (this.#receiving === undefined) return;
    throw new ColobusError(
      "vmstate-busy",
      `the VM state of checkpoint ${this.#receiving.epoch} is being received`,
      "Wait for it, or withdraw that checkpoint: `colobus discard`.",
    );
  }

  /** Where the secondary cannot be told, it withdraws the checkpoint by itself as the session ends. */
  async #withdraw(epoch: number, session: EpochSession): Promise<void> {
    const { checkpoints, log } = this.#options;
    if (session.isClosed) return;
    try {
      await checkpoints.discard(epoch, DISCARD_TIMEOUT_MS, new AbortController().signal);
    } catch (error) {
      log.warn({ epoch, reason: asColobusError(error) }, "a checkpoint without its VM state was not withdrawn");
    }
  }
}
