import type { ResyncAnswer, ResyncRequest, RollbackAnswer, RollbackRequest } from "../proto/control-api.ts";
import type { SecondaryRole } from "../secondary/secondary-role.ts";
import type { Clock } from "../shared/host/clock.ts";
import { Deadline } from "../shared/host/deadline.ts";

export interface CheckpointChangesOptions {
  readonly clock: Clock;
  /** The secondary's role. Errors: `not-secondary`, naming the command. */
  readonly secondary: (command: string) => SecondaryRole;
  /** Resolves when no failover is under way. */
  readonly settled: () => Promise<unknown>;
}

/** What an operator changes about a secondary's checkpoints: one change after the other, and never beside a failover. */
export class CheckpointChanges {
  readonly #options: CheckpointChangesOptions;
  #tail: Promise<unknown> = Promise.resolve();

  constructor(options: CheckpointChangesOptions) {
    this.#options = options;
  }

  /** Resolves when no change is under way that has begun by now. */
  settled(): Promise<unknown> {
    return this.#tail;
  }

  giveUp(request: ResyncRequest, signal: AbortSignal): Promise<ResyncAnswer> {
    return this.#change("resync --give-up-checkpoint", request, signal, async ({ operations }) => {
      const epoch = await operations.giveUp();
      if (epoch === 0) return { outcome: "nothing-to-do", job: null, givenUpEpoch: null };
      return { outcome: "given-up", job: null, givenUpEpoch: epoch };
    });
  }

  rollBack(request: RollbackRequest, signal: AbortSignal): Promise<RollbackAnswer> {
    const { epoch } = request;
    return this.#change("rollback", request, signal, async ({ operations }) => ({
      epoch,
      fromEpoch: await operations.rollBack(epoch),
    }));
  }

  async #change<T>(
    command: string,
    request: { readonly timeoutMs: number },
    signal: AbortSignal,
    change: (secondary: SecondaryRole) => Promise<T>,
  ): Promise<T> {
    const { clock, secondary, settled } = this.#options;
    const earlier = this.#tail;
    const changed = (async () => {
      await earlier;
      await settled();
      return change(secondary(command));
    })();
    this.#tail = changed.catch(() => undefined); // who asked has the error
    const deadline = new Deadline(clock, request.timeoutMs, signal);
    try {
      return await deadline.race(changed, `"${command}" has begun and goes on`);
    } finally {
      deadline.end();
    }
  }
}
