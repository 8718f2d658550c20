import { ColobusError } from "../../proto/errors.ts";
import type { Link, LinkHandlers } from "../../shared/replication/link.ts";

/**
 * Two ends of a link in memory. Messages wait in a queue until the test delivers them, so that their order is the
 * test's: `deliver` until nothing is left, or one at a time by hand.
 */
export class LinkPair {
  /** The end that has dialled. */
  readonly left = new MemoryLink("left", true);
  readonly right = new MemoryLink("right");

  constructor() {
    this.left.peer = this.right;
    this.right.peer = this.left;
  }

  /** Delivers everything that is under way, and what follows from it. Returns the number of messages. */
  deliver(): number {
    let count = 0;
    while (this.left.deliverOne() || this.right.deliverOne()) count += 1;
    return count;
  }

  /** Delivers until nothing is under way for a few turns of the event loop. */
  async settle(endTurn: () => void = () => undefined): Promise<void> {
    for (let quiet = 0; quiet < 8; quiet += 1) {
      await new Promise((resolve) => {
        setImmediate(resolve);
      });
      endTurn();
      if (this.deliver() > 0) quiet = 0;
    }
  }
}

/** One end. `sent` holds what this end has sent and the other has not been given yet. */
export class MemoryLink implements Link {
  readonly peerAddress: string;
  readonly dialled: boolean;
  peer: MemoryLink | undefined;
  readonly sent: Buffer[] = [];
  /** Why this end was closed by its owner. */
  closedWith: ColobusError | undefined;
  /** Why the owner was told that the link is over. */
  endedWith: ColobusError | undefined;
  #handlers: LinkHandlers | undefined;

  constructor(peerAddress: string, dialled = false) {
    this.peerAddress = peerAddress;
    this.dialled = dialled;
  }

  get queuedBytes(): number {
    return this.sent.reduce((sum, message) => sum + message.length, 0);
  }

  send(parts: readonly Uint8Array[]): void {
    if (this.closedWith === undefined && this.endedWith === undefined) this.sent.push(Buffer.concat(parts));
  }

  start(handlers: LinkHandlers): void {
    if (this.endedWith !== undefined) handlers.closed(this.endedWith);
    else this.#handlers = handlers;
  }

  close(reason: ColobusError): void {
    this.closedWith ??= reason;
  }

  /** Hands the oldest message to the other end, or tells it, when none is left, that this end was closed. */
  deliverOne(): boolean {
    const message = this.sent.shift();
    if (message !== undefined) {
      this.peer?.receive(message);
      return true;
    }
    if (this.closedWith === undefined || this.endedWith !== undefined) return false;
    this.end(this.closedWith);
    this.peer?.end(new ColobusError(this.closedWith.code, this.closedWith.message));
    return true;
  }

  /** Hands bytes to this end's owner, as if the other end had sent them. */
  receive(message: Buffer): void {
    if (this.endedWith === undefined) this.#handlers?.message(message);
  }

  /** The link ends, for this end. */
  end(reason: ColobusError): void {
    if (this.endedWith !== undefined) return;
    this.endedWith = reason;
    this.#handlers?.closed(reason);
  }
}
