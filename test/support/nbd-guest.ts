import { NBD_ERRNO } from "../../proto/errors.ts";
import { COMMAND } from "../../proto/nbd-protocol.ts";
import { NbdTestSocket, request } from "./nbd-client.ts";

/** A guest in the test's own process, for tests that connect and read often. Requests are done one after the other. */
export class NbdGuest {
  readonly #socket: NbdTestSocket;
  #cookie = 0;

  private constructor(socket: NbdTestSocket) {
    this.#socket = socket;
  }

  static async connect(socketPath: string, exportName = "vda"): Promise<NbdGuest> {
    const socket = await NbdTestSocket.connect({ path: socketPath });
    await socket.open(exportName);
    return new NbdGuest(socket);
  }

  /** Rejects when the server answers with an error, or the connection ends. */
  async write(offset: number, payload: Buffer): Promise<void> {
    await this.#ask({ type: COMMAND.WRITE, offset, payload });
  }

  async flush(): Promise<void> {
    await this.#ask({ type: COMMAND.FLUSH });
  }

  async read(offset: number, length: number): Promise<Buffer> {
    await this.#ask({ type: COMMAND.READ, offset, length });
    return Buffer.from(await this.#socket.read(length));
  }

  close(): void {
    this.#socket.destroy();
  }

  async #ask(what: Omit<Parameters<typeof request>[0], "cookie">): Promise<void> {
    this.#cookie += 1;
    this.#socket.write(request({ ...what, cookie: this.#cookie }));
    const { error, cookie } = await this.#socket.readSimpleReply();
    if (cookie !== this.#cookie) throw new Error(`the server answered request ${cookie}`);
    if (error !== 0) throw new NbdGuestError(cookie, error);
  }
}

/** The server's answer to a request. `code` is the name of the error, or its number where it has none here. */
class NbdGuestError extends Error {
  readonly code: string;

  constructor(cookie: number, error: number) {
    const names = Object.entries(NBD_ERRNO);
    const code = names.find(([, number]) => number === error)?.[0] ?? String(error);
    super(`the server answered request ${cookie} with ${code}`);
    this.code = code;
  }
}
