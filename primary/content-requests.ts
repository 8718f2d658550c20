import { ColobusError } from "../proto/errors.ts";
import { fromErrorBody, type ContentMessage, type Message } from "../proto/replication-messages.ts";

interface ContentRequest {
  readonly length: number;
  readonly resolve: (content: Buffer) => void;
  readonly reject: (reason: ColobusError) => void;
}

/** The ranges of one session that the secondary was asked for, and has not sent yet. */
export class ContentRequests {
  readonly #requests = new Map<number, ContentRequest>();

  get isEmpty(): boolean {
    return this.#requests.size === 0;
  }

  /** Resolves with what the secondary sends. Errors: its own; what `end` is given. */
  add(id: number, length: number): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      this.#requests.set(id, { length, resolve, reject });
    });
  }

  /** Errors: `protocol-error`: nobody has asked for that. */
  receive({ id, payload }: ContentMessage): void {
    const request = this.#requests.get(id);
    if (request?.length !== payload.length) throw unasked();
    this.#requests.delete(id);
    request.resolve(payload);
  }

  /** The secondary says why it does not send it. Errors: `protocol-error`: nobody has asked for it, or it says nothing. */
  refused({ id, error }: Extract<Message, { type: "answer" }>): void {
    const request = this.#requests.get(id);
    if (request === undefined || error === null) throw unasked();
    this.#requests.delete(id);
    request.reject(fromErrorBody(error));
  }

  /** Nothing comes any more. */
  end(reason: ColobusError): void {
    for (const { reject } of this.#requests.values()) reject(reason);
    this.#requests.clear();
  }
}

function unasked(): ColobusError {
  return new ColobusError("protocol-error", "the peer answered what was not asked");
}
