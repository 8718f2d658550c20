import { BATCH_MAX_OPERATIONS, BATCH_TARGET_BYTES } from "../proto/limits.ts";
import { encodeData, OPERATION_KINDS, type OperationKind } from "../proto/replication-messages.ts";
import type { Clock } from "../shared/host/clock.ts";

/** Gathers the operations of one turn of the event loop into one data message. Payloads are kept as views until then, not copied. */
export class OutgoingBatch {
  readonly #clock: Clock;
  readonly #send: (parts: readonly Buffer[]) => void;
  #ranges: number[] = [];
  #payloads: Buffer[] = [];
  #payloadBytes = 0;
  #nextSequence = 1;
  #flushDeferred = false;
  #discarded = false;

  constructor(clock: Clock, send: (parts: readonly Buffer[]) => void) {
    this.#clock = clock;
    this.#send = send;
  }

  add(kind: OperationKind, disk: number, offset: number, length: number, payload: Buffer | undefined): void {
    this.#ranges.push(OPERATION_KINDS[kind], disk, offset, length);
    if (payload !== undefined) {
      this.#payloads.push(payload);
      this.#payloadBytes += payload.length;
    }
    if (this.#payloadBytes >= BATCH_TARGET_BYTES || this.#ranges.length >= 4 * BATCH_MAX_OPERATIONS) this.flush();
    else if (!this.#flushDeferred) {
      this.#flushDeferred = true;
      this.#clock.defer(() => {
        this.#flushDeferred = false;
        this.flush();
      });
    }
  }

  /** Sends what has been gathered. Every other message of the session follows a flush, so that the order is kept. */
  flush(): void {
    if (this.#ranges.length === 0 || this.#discarded) return;
    const parts = encodeData(this.#nextSequence, this.#ranges, this.#payloads);
    this.#nextSequence += this.#ranges.length / 4;
    this.#ranges = [];
    this.#payloads = [];
    this.#payloadBytes = 0;
    this.#send(parts);
  }

  /** The session is lost: nothing more is sent. */
  discard(): void {
    this.#discarded = true;
    this.#ranges = [];
    this.#payloads = [];
  }
}
