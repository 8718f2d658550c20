import { ColobusError } from "../../proto/errors.ts";
import { numberMessage, numberOf } from "../../proto/replication-messages.ts";

const NUMBERS = 2 ** 32;

/**
 * The numbers of one session's messages, each direction by itself: what this side sends is numbered from 0 on, and what
 * it receives has to be. So a message that was lost, repeated or moved between the two agents is noticed at the next one,
 * which a heartbeat is at the latest. After 2^32 messages the numbers begin anew.
 */
export class MessageNumbers {
  #toSend: number;
  #toReceive: number;

  constructor(first = 0) {
    this.#toSend = first;
    this.#toReceive = first;
  }

  /** Numbers an encoded message, which has to be sent next. */
  stamp(parts: readonly Buffer[]): void {
    numberMessage(parts, this.#toSend);
    this.#toSend = (this.#toSend + 1) % NUMBERS;
  }

  /** Takes note of a decoded message. Errors: `protocol-error` where it is not the next one. */
  check(bytes: Buffer): void {
    const number = numberOf(bytes);
    if (number !== this.#toReceive) {
      throw new ColobusError(
        "protocol-error",
        `message ${number} of the peer came where ${this.#toReceive} was expected: ` +
          "one was lost, repeated or moved between the two agents",
        "Check proxies and tunnels between the two: each message has to come once and in order. The session is tried again by itself.",
      );
    }
    this.#toReceive = (number + 1) % NUMBERS;
  }
}
