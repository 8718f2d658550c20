/**
 * Cuts the byte stream of the transmission phase into requests and pieces of write payloads: a synchronous state machine
 * that knows nothing of sockets and disks. Payloads are passed on as they arrive, as views of the received chunk; they are
 * never collected. Whatever the handler thinks of a write, its payload is passed on, so the stream stays in step.
 */
import { NBD_MAX_PAYLOAD_BYTES } from "../../proto/limits.ts";
import { COMMAND, REQUEST_BYTES, decodeRequest, emptyRequestHeader } from "../../proto/nbd-protocol.ts";
import type { RequestHeader } from "../../proto/nbd-protocol.ts";
import { ByteGatherer } from "./byte-gatherer.ts";

export interface RequestHandler {
  /** Parsing stops before the next byte while this is true. */
  readonly isBlocked: boolean;
  /**
   * A request. For a WRITE of more than 0 bytes its payload follows through `onPayload`.
   * `request` is valid, and the same object, until the next call.
   */
  onRequest(request: Readonly<RequestHeader>): void;
  /** The next piece of the payload of the last request. `isLast`: the payload is complete with it. */
  onPayload(piece: Buffer, isLast: boolean): void;
  /** The stream cannot be followed any further. */
  onBreach(fault: string): void;
}

export class RequestParser {
  readonly #handler: RequestHandler;
  readonly #request = emptyRequestHeader();
  readonly #gatherer = new ByteGatherer();
  #payloadLeft = 0;

  constructor(handler: RequestHandler) {
    this.#handler = handler;
    this.#gatherer.begin(REQUEST_BYTES);
  }

  /** Takes bytes of `chunk` from `position` until its end, or until the handler is blocked; returns where it stopped. */
  consume(chunk: Buffer, position: number): number {
    const handler = this.#handler;
    let at = position;
    while (at < chunk.length && !handler.isBlocked) {
      if (this.#payloadLeft > 0) {
        const end = Math.min(chunk.length, at + this.#payloadLeft);
        this.#payloadLeft -= end - at;
        handler.onPayload(chunk.subarray(at, end), this.#payloadLeft === 0);
        at = end;
      } else if (this.#gatherer.isEmpty && chunk.length - at >= REQUEST_BYTES) {
        this.#takeRequest(chunk, at);
        at += REQUEST_BYTES;
      } else {
        at = this.#gatherer.feed(chunk, at);
        const header = this.#gatherer.complete;
        if (header !== undefined) {
          this.#gatherer.begin(REQUEST_BYTES);
          this.#takeRequest(header, 0);
        }
      }
    }
    return at;
  }

  #takeRequest(source: Buffer, position: number): void {
    const request = this.#request;
    if (!decodeRequest(source, position, request)) {
      this.#handler.onBreach("wrong request magic");
      return;
    }
    if (request.type === COMMAND.WRITE) {
      if (request.length > NBD_MAX_PAYLOAD_BYTES) {
        this.#handler.onBreach("write payload over the limit");
        return;
      }
      this.#payloadLeft = request.length;
    }
    this.#handler.onRequest(request);
  }
}
