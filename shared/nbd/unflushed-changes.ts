import {
  NBD_CLIENT_CHANGE_COST_BYTES,
  NBD_CLIENT_UNFLUSHED_MAX_BYTES,
  NBD_CLIENT_UNFLUSHED_MAX_CHANGES,
  NBD_CLIENT_UNFLUSHED_TARGET_BYTES,
} from "../../proto/limits.ts";
import type { RequestOptions } from "./open-request.ts";

/** One change of an image, as it was sent to the server. */
export interface Change {
  readonly request: RequestOptions;
  readonly bytes: number;
  /** How many flushes had begun when the server answered; undefined: it has not answered. */
  flushesAtAnswer: number | undefined;
}

/**
 * The changes of an image that no flush has covered, in the order in which they were made. A server that dies may have
 * lost them, whatever it has answered; so they are kept, and written again to the next one.
 */
export class UnflushedChanges {
  #changes: Change[] = [];
  #bytes = 0;
  #flushes = 0;

  get isEmpty(): boolean {
    return this.#changes.length === 0;
  }

  /** Enough is kept to be worth a flush. */
  get isDue(): boolean {
    return this.#bytes >= NBD_CLIENT_UNFLUSHED_TARGET_BYTES || this.#isNearlyMany;
  }

  /** No more may be kept before a flush. */
  get isFull(): boolean {
    return this.#bytes >= NBD_CLIENT_UNFLUSHED_MAX_BYTES || this.#changes.length >= NBD_CLIENT_UNFLUSHED_MAX_CHANGES;
  }

  get #isNearlyMany(): boolean {
    return this.#changes.length >= NBD_CLIENT_UNFLUSHED_MAX_CHANGES / 2;
  }

  /** A change is about to be sent. Its payload is kept as it is, and not to change any more. */
  add(request: RequestOptions): Change {
    const bytes = NBD_CLIENT_CHANGE_COST_BYTES + (request.payload?.length ?? 0);
    const change: Change = { request, bytes, flushesAtAnswer: undefined };
    this.#changes.push(change);
    this.#bytes += bytes;
    return change;
  }

  /** The server says that it is done. */
  answered(change: Change): void {
    change.flushesAtAnswer = this.#flushes;
  }

  /** It failed, and whoever made it knows: what the range holds is unknown. */
  failed(change: Change): void {
    this.#changes = this.#changes.filter((other) => other !== change);
    this.#bytes -= change.bytes;
  }

  /** A flush is about to be sent. Returns what `flushed` is told when it is done. */
  flushBegins(): number {
    this.#flushes += 1;
    return this.#flushes;
  }

  /** Everything that was answered before that flush began is durable. */
  flushed(flush: number): void {
    const kept = this.#changes.filter(
      ({ flushesAtAnswer }) => flushesAtAnswer === undefined || flushesAtAnswer >= flush,
    );
    this.#changes = kept;
    this.#bytes = kept.reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** What was answered and may be lost, oldest first. */
  answeredChanges(): readonly Change[] {
    return this.#changes.filter(({ flushesAtAnswer }) => flushesAtAnswer !== undefined);
  }
}
