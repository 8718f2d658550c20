import { asColobusError, type ColobusError } from "../proto/errors.ts";
import type { ControlClient } from "../shared/control/api-client.ts";
import type { Clock } from "../shared/host/clock.ts";
import { sleep } from "../shared/host/sleep.ts";
import { isInSync } from "../proto/words.ts";
import { whyGuestsWait } from "./agent-health.ts";
import { untilAborted } from "./command.ts";

/** One round, as it is told. */
export type ProtectionRound =
  | {
      readonly epoch: number;
      readonly state: "committed";
      /** How long the guest did not run, or was frozen. */
      readonly pauseMs: number;
      /** null: a checkpoint of the disks alone. */
      readonly vmstateBytes: number | null;
      readonly totalMs: number;
    }
  | { readonly epoch: number | null; readonly state: "failed"; readonly error: ReturnType<ColobusError["toJSON"]> }
  | { readonly epoch: null; readonly state: "waiting"; readonly reason: string };

/** What happens to the guest while a checkpoint is taken. */
export interface GuestControl {
  /** The guest writes nothing from here on. Returns how it goes on; or why its state is not to be had now, and it is as it was. */
  readonly pause: () => Promise<(() => Promise<void>) | string>;
  /** What there is beside the disks; undefined: nothing. */
  readonly state: GuestState | undefined;
}

/** The memory and devices of a paused guest. */
export interface GuestState {
  /** Has it sent for the checkpoint that awaits it. Resolves when the guest may go on. */
  readonly begin: () => Promise<void>;
  /** Resolves when everything is sent. */
  readonly finish: () => Promise<void>;
  /** Ends what a failed `begin` or `finish` may have left. */
  readonly cancel: () => Promise<void>;
}

export interface ProtectionOptions {
  readonly control: ControlClient;
  readonly clock: Clock;
  readonly guest: GuestControl;
  readonly intervalMs: number;
  /** What one step may take. */
  readonly timeoutMs: number;
  readonly tell: (round: ProtectionRound) => void;
  readonly warn: (text: string) => void;
  /** Ends the protection after the round that is under way. */
  readonly signal: AbortSignal;
}

/**
 * Takes checkpoints of a VM every so often, or when the agent wants one. Whatever fails in a round, the guest goes on, and
 * what was begun is withdrawn: the checkpoint before stands, and the next round is tried.
 */
export class Protection {
  readonly #options: ProtectionOptions;
  /** Called when a checkpoint is wanted before its time. */
  #wake: () => void = () => undefined;
  #isWanted = false;
  #waitedFor: string | undefined;

  constructor(options: ProtectionOptions) {
    this.#options = options;
  }

  /** Resolves when `signal` has aborted and the guest runs. Errors: `vm-unreachable`; `agent-unreachable` for long. */
  async run(): Promise<void> {
    const { clock, intervalMs, signal, warn } = this.#options;
    const finished = new AbortController();
    void untilAborted(signal).then(() => this.#wake());
    void this.#followWanted(AbortSignal.any([signal, finished.signal]));
    try {
      while (!signal.aborted) {
        const startedMs = clock.nowMs();
        if (await this.#isReady()) {
          await this.#round();
          const tookMs = clock.nowMs() - startedMs;
          if (tookMs > intervalMs)
            warn(`the interval of ${intervalMs} ms cannot be met: the last checkpoint took ${Math.round(tookMs)} ms`);
        }
        await this.#rest(Math.max(0, startedMs + intervalMs - clock.nowMs()));
      }
    } finally {
      // A stream of events that is left open keeps the process.
      finished.abort();
    }
  }

  /** A guest is not paused for a checkpoint that cannot be taken; nor while its writes wait, for which a pause would wait too. */
  async #isReady(): Promise<boolean> {
    const { control, timeoutMs, signal } = this.#options;
    let reason: string;
    try {
      const status = await control.status({ timeoutMs, signal });
      const waiting = whyGuestsWait(status);
      if (status.role === "Secondary") reason = "the agent is Secondary";
      else if (!status.peers.some(({ replication }) => isInSync(replication))) reason = "no secondary is in sync";
      else if (waiting !== null) reason = `the guests are not served (${waiting}): see \`colobus status\``;
      else return true;
    } catch (error) {
      if (signal.aborted) return false;
      reason = asColobusError(error).message;
    }
    this.#tell({ epoch: null, state: "waiting", reason });
    return false;
  }

  /** What is waited for is told once. */
  #tell(round: ProtectionRound): void {
    const waitedFor = round.state === "waiting" ? round.reason : undefined;
    if (waitedFor === undefined || waitedFor !== this.#waitedFor) this.#options.tell(round);
    this.#waitedFor = waitedFor;
  }

  async #round(): Promise<void> {
    const { control, clock, guest, timeoutMs } = this.#options;
    const startedMs = clock.nowMs();
    let epoch: number | null = null;
    let isSending = false;
    let withdrawn: Promise<void> | undefined;
    const withdraw = (): Promise<void> => (withdrawn ??= this.#withdraw(epoch));
    try {
      const resume = await guest.pause();
      if (typeof resume === "string") {
        this.#tell({ epoch: null, state: "waiting", reason: resume });
        return;
      }
      try {
        epoch = await this.#place();
        await guest.state?.begin();
      } catch (error) {
        // A QEMU that waits for the agent to let go of the state answers nobody before.
        if (asColobusError(error).code !== "vm-refused") void withdraw();
        if (epoch !== null) await failureOf(guest.state?.cancel);
        await goOn(resume, withdraw);
        throw error;
      }
      const stuck = await goOn(resume, withdraw);
      const pauseMs = clock.nowMs() - startedMs;
      if (stuck !== undefined) throw stuck;
      isSending = true;
      await guest.state?.finish();
      isSending = false;
      const { vmstateBytes = null } = await control.commit({ epoch, timeoutMs });
      this.#tell({ epoch, state: "committed", pauseMs, vmstateBytes, totalMs: clock.nowMs() - startedMs });
    } catch (error) {
      const reason = asColobusError(error);
      await withdraw();
      // After the agent has let go of the state: QEMU may have waited for that, and answered nobody.
      if (isSending) await failureOf(guest.state?.cancel);
      this.#tell({ epoch, state: "failed", error: reason.toJSON() });
      if (reason.code === "vm-unreachable") throw reason;
    }
  }

  async #place(): Promise<number> {
    const { control, guest, timeoutMs } = this.#options;
    const vmstate = guest.state === undefined ? {} : { vmstate: true };
    const { epoch } = await control.checkpoint({ prepare: true, wait: false, timeoutMs, ...vmstate });
    return epoch;
  }

  async #withdraw(epoch: number | null): Promise<void> {
    const { control, timeoutMs } = this.#options;
    if (epoch !== null) await failureOf(() => control.discard({ epoch, timeoutMs }));
  }

  /** Until the interval is over, a checkpoint is wanted, or the protection is to end. */
  async #rest(ms: number): Promise<void> {
    const { clock, signal } = this.#options;
    if (!this.#isWanted && !signal.aborted) {
      await new Promise<void>((resolve) => {
        const timer = clock.after(ms, resolve);
        this.#wake = () => {
          timer.cancel();
          resolve();
        };
      });
    }
    this.#isWanted = false;
  }

  /** The agent's events, for as long as it tells them; a new agent is asked again with the next round. */
  async #followWanted(signal: AbortSignal): Promise<void> {
    const { control, clock, intervalMs } = this.#options;
    while (!signal.aborted) {
      try {
        const last = (await control.events(0, { signal })).at(-1)?.sequence ?? 0;
        for await (const { type } of control.follow(last, { signal })) {
          if (type !== "checkpoint-wanted") continue;
          this.#isWanted = true;
          this.#wake();
        }
      } catch {
        // The rounds tell that the agent is not there.
      }
      if (signal.aborted) return;
      await sleep(clock, intervalMs);
    }
  }
}

/**
 * Has the guest go on, and resolves with what has kept it from that until `withdraw` had the agent let go of its state.
 * Errors: it may be paused still.
 */
async function goOn(resume: () => Promise<void>, withdraw: () => Promise<void>): Promise<ColobusError | undefined> {
  const stuck = await failureOf(resume);
  if (stuck === undefined) return undefined;
  await withdraw();
  await resume();
  return stuck;
}

/** What has become of work whose failure does not end what is done around it: undefined when it is done. */
async function failureOf(work: (() => Promise<unknown>) | undefined): Promise<ColobusError | undefined> {
  try {
    await work?.();
    return undefined;
  } catch (error) {
    return asColobusError(error);
  }
}
