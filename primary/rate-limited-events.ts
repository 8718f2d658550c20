import type { EventType } from "../proto/words.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";

interface Kind {
  readonly timer: Timer;
  readonly type: EventType;
  last: Record<string, unknown>;
  /** How many came since one was told. */
  count: number;
}

/**
 * Events of which many of the same kind may come: the first is told at once, and those that follow within `everyMs`
 * together, as the last of them, with `count`.
 */
export class RateLimitedEvents {
  readonly #clock: Clock;
  readonly #everyMs: number;
  readonly #emit: (type: EventType, data: Record<string, unknown>) => void;
  readonly #kinds = new Map<string, Kind>();

  constructor(clock: Clock, everyMs: number, emit: (type: EventType, data: Record<string, unknown>) => void) {
    this.#clock = clock;
    this.#everyMs = everyMs;
    this.#emit = emit;
  }

  /** `key` tells the kinds of one type apart. */
  tell(type: EventType, key: string, data: Record<string, unknown>): void {
    const name = `${type} ${key}`;
    const kind = this.#kinds.get(name);
    if (kind === undefined) {
      this.#emit(type, { ...data, count: 1 });
      this.#begin(name, type);
    } else {
      kind.last = data;
      kind.count += 1;
    }
  }

  stop(): void {
    for (const { timer } of this.#kinds.values()) timer.cancel();
    this.#kinds.clear();
  }

  #begin(name: string, type: EventType): void {
    const timer = this.#clock.after(this.#everyMs, () => {
      const kind = this.#kinds.get(name);
      this.#kinds.delete(name);
      if (kind === undefined || kind.count === 0) return;
      this.#emit(kind.type, { ...kind.last, count: kind.count });
      this.#begin(name, type);
    });
    this.#kinds.set(name, { timer, type, last: {}, count: 0 });
  }
}
