/** Reading of server-sent events (WHATWG HTML section 9.2), as far as the control API uses them: the `data` field. */
import { ColobusError } from "../../proto/errors.ts";

export class ServerSentEventParser {
  readonly #decoder = new TextDecoder();
  readonly #maxEventLength: number;
  #line = "";
  #data: string[] = [];
  #dataLength = 0;

  /** `maxEventLength`: characters of one event; more is a `protocol-error`. */
  constructor(maxEventLength: number) {
    this.#maxEventLength = maxEventLength;
  }

  /** The `data` of every event that `chunk` completes. */
  push(chunk: Uint8Array): string[] {
    const events: string[] = [];
    const lines = (this.#line + this.#decoder.decode(chunk, { stream: true })).split("\n");
    this.#line = lines.pop() ?? "";
    for (const line of lines) {
      const event = this.#takeLine(line.endsWith("\r") ? line.slice(0, -1) : line);
      if (event !== undefined) events.push(event);
    }
    if (this.#line.length + this.#dataLength > this.#maxEventLength) {
      throw new ColobusError(
        "protocol-error",
        `The agent sent an event of more than ${this.#maxEventLength} characters.`,
        "Check that the address is that of a Colobus agent.",
      );
    }
    return events;
  }

  #takeLine(line: string): string | undefined {
    if (line === "") {
      if (this.#data.length === 0) return undefined;
      const event = this.#data.join("\n");
      this.#data = [];
      this.#dataLength = 0;
      return event;
    }
    if (line.startsWith("data:")) {
      const value = line.slice(line.startsWith("data: ") ? 6 : 5);
      this.#data.push(value);
      this.#dataLength += value.length;
    }
    return undefined;
  }
}
