/** QEMU's guest agent without a guest, on a unix socket: file systems that are frozen or not. */
import { once } from "node:events";
import { createServer, type Socket } from "node:net";
import { onTestFinished } from "vitest";

const DELIMITER = 0xff;
const NEWLINE = 0x0a;

export class FakeGuestAgent {
  readonly socket: string;
  readonly commands: string[] = [];
  isFrozen = false;
  /** What each new client is sent first: the rest of what an earlier one had asked for. */
  leftOver: Buffer | undefined;
  /** What becomes of a command: "silence" is done, and not answered. */
  mishap: (command: string) => { readonly error: string } | "silence" | undefined = () => undefined;
  readonly #server = createServer((socket) => this.#serve(socket));
  readonly #clients = new Set<Socket>();

  constructor(socket: string) {
    this.socket = socket;
  }

  async listen(): Promise<this> {
    this.#server.listen({ path: this.socket });
    await once(this.#server, "listening");
    onTestFinished(() => {
      this.#server.close();
      for (const client of this.#clients) client.destroy();
    });
    return this;
  }

  #serve(socket: Socket): void {
    this.#clients.add(socket);
    socket.on("close", () => this.#clients.delete(socket));
    socket.on("error", () => undefined); // a client that is gone is one of the cases
    if (this.leftOver !== undefined) socket.write(this.leftOver);
    let line: number[] = [];
    socket.on("data", (piece) => {
      for (const byte of piece) {
        if (byte === DELIMITER) line = [];
        else if (byte !== NEWLINE) line.push(byte);
        else {
          const answer = this.#answer(Buffer.from(line).toString());
          line = [];
          if (answer !== undefined) socket.write(answer);
        }
      }
    });
  }

  #answer(line: string): Buffer | undefined {
    const { execute, arguments: args } = JSON.parse(line) as { execute: string; arguments?: { id?: number } };
    this.commands.push(execute);
    const mishap = this.mishap(execute);
    const isRefused = mishap !== undefined && mishap !== "silence";
    if (!isRefused && execute === "guest-fsfreeze-freeze") this.isFrozen = true;
    if (!isRefused && execute === "guest-fsfreeze-thaw") this.isFrozen = false;
    if (mishap === "silence") return undefined;
    const answer = isRefused ? { error: { class: "GenericError", desc: mishap.error } } : { return: args?.id ?? 1 };
    const text = Buffer.from(`${JSON.stringify(answer)}\n`);
    return execute === "guest-sync-delimited" ? Buffer.concat([Buffer.of(DELIMITER), text]) : text;
  }
}
