import {
  decodeMessage,
  encodeData,
  encodeMessage,
  numberMessage,
  type Hello,
  type HeaderMessage,
  type Message,
} from "../../proto/replication-messages.ts";
import { primaryHello, someGreeting } from "./hellos.ts";
import { MemoryLink } from "./link-pair.ts";

/** The primary's end of a link whose every message the test writes. `link` is the end to be given to the secondary. */
export class ScriptedPrimary {
  readonly link: MemoryLink;
  readonly hello: Hello;
  #said = 0;

  constructor(changes: Partial<Hello> = {}, name = "primary") {
    this.link = new MemoryLink(name);
    this.hello = primaryHello(changes);
  }

  /** What the secondary has sent since the last call. */
  take(): Message[] {
    return this.link.sent.splice(0).map((bytes) => decodeMessage(bytes));
  }

  send(message: HeaderMessage): void {
    this.#say(encodeMessage(message));
  }

  write(sequence: number, disk: number, offset: number, payload: Buffer): void {
    this.#say(encodeData(sequence, [0, disk, offset, payload.length], [payload]));
  }

  #say(parts: readonly Buffer[]): void {
    numberMessage(parts, this.#said);
    this.#said += 1;
    this.link.receive(Buffer.concat(parts));
  }

  /** Does its part of the handshake, without a token. */
  greet(): void {
    this.send({ type: "greeting", ...someGreeting() });
    this.send({ type: "proof", mac: Buffer.alloc(0) });
    this.send({ type: "hello", ...this.hello });
    this.send({ type: "seal", mac: Buffer.alloc(0) });
  }

  begin(openEpoch: number, changes: Partial<Extract<Message, { type: "begin" }>> = {}): void {
    this.send({
      type: "begin",
      session: `session-${openEpoch}`,
      extent: "full",
      lineage: this.hello.lineage ?? "",
      openEpoch,
      diskSizes: this.hello.disks.map((disk) => disk.sizeBytes ?? 0),
      ...changes,
    });
  }

  /** Why the secondary ended the session; undefined while it has not. */
  get refusal(): string | undefined {
    return this.link.closedWith?.code;
  }
}
