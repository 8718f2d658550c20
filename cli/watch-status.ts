/**
 * Looks at the agent anew whenever it reports an event, at most every REDRAW_MIN_MS: a burst of events costs one look.
 * Ends when interrupted; throws when the agent goes away.
 */
import type { AgentEvent } from "../proto/status.ts";
import type { CallOptions, ControlClient } from "../shared/control/api-client.ts";
import type { Clock } from "../shared/host/clock.ts";

const REDRAW_MIN_MS = 500;

export interface WatchOptions {
  readonly client: ControlClient;
  readonly clock: Clock;
  /** For each request. */
  readonly timeoutMs: number;
  readonly interrupted: AbortSignal;
  /** Look again after this time though no event came: ages and progress have none. undefined: never. */
  readonly refreshMs: number | undefined;
  /** Asks the agent, and shows what it says. */
  readonly look: (call: CallOptions) => Promise<void>;
  /** Is given every event, those that the agent still keeps first. */
  readonly heard?: (event: AgentEvent) => void;
}

export async function watchAgent({
  client,
  clock,
  timeoutMs,
  interrupted,
  refreshMs,
  look,
  heard = () => {},
}: WatchOptions): Promise<void> {
  const finished = new AbortController();
  const signal = AbortSignal.any([interrupted, finished.signal]);
  const call = { timeoutMs, signal };
  const changes = new ChangeFlag();
  try {
    const kept = await client.events(0, call);
    kept.forEach(heard);
    const following = raiseForEach(client.follow(kept.at(-1)?.sequence ?? 0, call), changes, heard);
    // The races below report its failure; one that comes between them must wait until then.
    following.catch(() => {});
    while (!interrupted.aborted) {
      changes.lower();
      await look(call);
      await Promise.race([pause(clock, REDRAW_MIN_MS, signal), following]);
      const changed = changes.raised();
      await Promise.race(
        refreshMs === undefined
          ? [changed, following]
          : [changed, pause(clock, refreshMs - REDRAW_MIN_MS, signal), following],
      );
    }
  } catch (error) {
    // An interruption ends the requests with errors of their own.
    if (!interrupted.aborted) throw error;
  } finally {
    finished.abort();
  }
}

async function raiseForEach(
  events: AsyncIterable<AgentEvent>,
  changes: ChangeFlag,
  heard: (event: AgentEvent) => void,
): Promise<void> {
  for await (const event of events) {
    heard(event);
    changes.raise();
  }
}

/** Whether something has happened since it was last lowered, and a promise of that. */
class ChangeFlag {
  #raised = false;
  #wake: (() => void) | undefined;

  raise(): void {
    this.#raised = true;
    this.#wake?.();
  }

  lower(): void {
    this.#raised = false;
  }

  raised(): Promise<void> {
    if (this.#raised) return Promise.resolve();
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }
}

/** Resolves after `delayMs`, or as soon as `signal` aborts. */
function pause(clock: Clock, delayMs: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const finish = (): void => {
      timer.cancel();
      signal.removeEventListener("abort", finish);
      resolve();
    };
    const timer = clock.after(delayMs, finish);
    signal.addEventListener("abort", finish, { once: true });
  });
}
