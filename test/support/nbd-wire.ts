import { connect, type Socket } from "node:net";
import { connect as connectTls, type ConnectionOptions, type TLSSocket } from "node:tls";
import { onTestFinished } from "vitest";
import { GREETING_BYTES, OPTION, OPTION_REPLY_HEADER_BYTES } from "../../proto/nbd-protocol.ts";
import { clientFlags, option } from "./nbd-client.ts";

/** The negotiation of an NBD client on TCP, word by word, with TLS where the test wants it. */
export class NbdWire {
  #socket: Socket | TLSSocket;
  #received: Buffer = Buffer.alloc(0);
  #arrived: () => void = () => undefined;
  readonly closed: Promise<void>;

  private constructor(socket: Socket) {
    this.#socket = socket;
    this.closed = new Promise((resolve) => {
      socket.once("close", () => resolve());
    });
    this.#listen();
  }

  static async open(port: number): Promise<NbdWire> {
    const wire = new NbdWire(connect(port, "127.0.0.1"));
    onTestFinished(() => void wire.#socket.destroy());
    await wire.#take(GREETING_BYTES);
    wire.send(clientFlags(3));
    return wire;
  }

  /** Bytes that were received and not taken. */
  get rest(): number {
    return this.#received.length;
  }

  send(bytes: Buffer): void {
    this.#socket.write(bytes);
  }

  option(code: number, data?: Buffer): void {
    this.send(option(code, data));
  }

  async reply(): Promise<{ option: number; type: number }> {
    const header = await this.#take(OPTION_REPLY_HEADER_BYTES);
    await this.#take(header.readUInt32BE(16));
    return { option: header.readUInt32BE(8), type: header.readUInt32BE(12) };
  }

  /** Asks for TLS and begins it. Rejects with what ends the handshake. */
  async startTls(options: ConnectionOptions): Promise<TLSSocket> {
    this.option(OPTION.STARTTLS);
    await this.reply();
    return this.secure(options);
  }

  /** Begins TLS after the answer to STARTTLS. Rejects with what ends the handshake. */
  async secure(options: ConnectionOptions): Promise<TLSSocket> {
    const plain = this.#socket;
    plain.removeAllListeners("data");
    const secured = await new Promise<TLSSocket>((resolve, reject) => {
      const socket = connectTls({ ...options, socket: plain, host: "localhost" }, () => resolve(socket));
      socket.once("error", reject);
    });
    this.#socket = secured;
    this.#listen();
    return secured;
  }

  #listen(): void {
    this.#socket.on("error", () => undefined);
    this.#socket.on("data", (chunk: Buffer) => {
      this.#received = Buffer.concat([this.#received, chunk]);
      this.#arrived();
    });
  }

  async #take(length: number): Promise<Buffer> {
    while (this.#received.length < length) {
      await new Promise<void>((resolve) => {
        this.#arrived = resolve;
      });
    }
    const taken = this.#received.subarray(0, length);
    this.#received = this.#received.subarray(length);
    return taken;
  }
}
