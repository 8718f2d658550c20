/**
 * The agent's events: numbered from 1, the last EVENTS_KEPT of them kept in memory, each handed to every follower in
 * the order of the numbers, also when a follower's reaction emits further events.
 *
 * Numbers start anew with each life of the agent. A reader that asks for what follows a number not reached yet has
 * seen an earlier life, and is given everything.
 */
import { EVENTS_KEPT } from "../../proto/limits.ts";
import type { AgentEvent } from "../../proto/status.ts";
import type { EventType } from "../../proto/words.ts";
import type { Clock } from "../host/clock.ts";

type Listener = (event: AgentEvent) => void;

export class EventLog {
  readonly #clock: Clock;
  /** Kept events, oldest first; consecutive numbers, ending with `#lastSequence`. */
  readonly #kept: AgentEvent[] = [];
  readonly #listeners = new Set<{ readonly listener: Listener; readonly from: number }>();
  readonly #undelivered: AgentEvent[] = [];
  #delivering = false;
  #lastSequence = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Records an event and hands it to the followers. `data` must survive JSON; the log keeps it. */
  emit(type: EventType, data: Readonly<Record<string, unknown>> = {}): void {
    this.#lastSequence += 1;
    const event: AgentEvent = {
      sequence: this.#lastSequence,
      at: new Date(this.#clock.wallMs()).toISOString(),
      type,
      data,
    };
    this.#kept.push(event);
    if (this.#kept.length > EVENTS_KEPT) this.#kept.shift();
    this.#undelivered.push(event);
    if (!this.#delivering) this.#deliver();
  }

  /** Events numbered above `afterSequence` that are still kept, oldest first. */
  since(afterSequence: number): AgentEvent[] {
    if (afterSequence > this.#lastSequence) return [...this.#kept];
    const wanted = this.#lastSequence - afterSequence;
    return wanted >= this.#kept.length ? [...this.#kept] : this.#kept.slice(this.#kept.length - wanted);
  }

  /** Calls `listener` with every later event, until the returned function is called. `listener` must not throw. */
  follow(listener: Listener): () => void {
    const follower = { listener, from: this.#lastSequence + 1 };
    this.#listeners.add(follower);
    return () => this.#listeners.delete(follower);
  }

  #deliver(): void {
    this.#delivering = true;
    try {
      for (let event = this.#undelivered.shift(); event !== undefined; event = this.#undelivered.shift()) {
        for (const follower of this.#listeners) {
          if (event.sequence >= follower.from) follower.listener(event);
        }
      }
    } finally {
      this.#delivering = false;
    }
  }
}
