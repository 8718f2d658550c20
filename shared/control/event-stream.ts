/**
 * One reader of the agent's events over HTTP (server-sent events, WHATWG HTML section 9.2).
 *
 * Nothing is buffered for a reader beyond its socket: when the socket is full, writing stops, and goes on from the
 * agent's own list of kept events when the socket has drained. A reader so slow that events it has not seen are no
 * longer kept is dropped; it can connect again with `Last-Event-ID` and will see the gap in the numbers.
 */
import type { ServerResponse } from "node:http";
import type { AgentControl } from "../../proto/control-api.ts";
import type { AgentEvent } from "../../proto/status.ts";

export class EventStream {
  readonly #control: AgentControl;
  readonly #response: ServerResponse;
  readonly #dropped: (lastSequence: number) => void;
  readonly #unfollow: () => void;
  #lastSequence: number;
  /** Whether an event was sent, so that the next one must have the next number. */
  #started = false;
  #blocked = false;
  #ended = false;

  /** Starts the stream after `afterSequence`. `dropped` is called, with the last number sent, when the reader was too slow. */
  constructor(
    control: AgentControl,
    response: ServerResponse,
    afterSequence: number,
    dropped: (lastSequence: number) => void,
  ) {
    this.#control = control;
    this.#response = response;
    this.#dropped = dropped;
    this.#lastSequence = afterSequence;
    response.writeHead(200, {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-store",
      "connection": "close",
    });
    response.flushHeaders();
    response.on("drain", () => {
      this.#blocked = false;
      this.#pump();
    });
    response.on("close", () => this.#stop());
    this.#unfollow = control.follow(() => this.#pump());
    this.#pump();
  }

  /** Ends the stream in good order. */
  end(): void {
    if (this.#ended) return;
    this.#stop();
    this.#response.end();
  }

  #pump(): void {
    if (this.#blocked || this.#ended) return;
    for (const event of this.#control.events(this.#lastSequence)) {
      if (this.#started && event.sequence !== this.#lastSequence + 1) {
        this.#stop();
        this.#response.destroy();
        this.#dropped(this.#lastSequence);
        return;
      }
      this.#started = true;
      this.#lastSequence = event.sequence;
      if (!this.#response.write(formatServerSentEvent(event))) {
        this.#blocked = true;
        return;
      }
    }
  }

  #stop(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#unfollow();
  }
}

function formatServerSentEvent(event: AgentEvent): string {
  return `id: ${event.sequence}\nevent: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`;
}
