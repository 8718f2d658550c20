import { once } from "node:events";
import type { Server, Socket } from "node:net";
import { createInterface } from "node:readline";
import { z } from "zod";

const answerSchema = z.union([
  z.object({ return: z.unknown() }),
  z.object({ error: z.object({ class: z.string(), desc: z.string() }) }),
]);

interface Waiting {
  readonly command: string;
  readonly resolve: (answer: unknown) => void;
  readonly reject: (error: Error) => void;
  /** Ends the connection when it fires. */
  readonly timer: NodeJS.Timeout;
}

/** A checkpoint of much data takes less than a second. */
const ANSWER_TIMEOUT_MS = 60_000;

/** QEMU's machine protocol, on a connection that QEMU has made to us. Commands are answered in their order. */
export class QmpConnection {
  readonly #socket: Socket;
  readonly #waiting: Waiting[] = [];
  #isClosed = false;

  private constructor(socket: Socket) {
    this.#socket = socket;
    const lines = createInterface({ input: socket });
    lines.on("line", (line) => this.#take(JSON.parse(line)));
    // "close" follows, and tells those who wait.
    lines.on("error", () => undefined);
    socket.on("error", () => undefined);
    socket.on("close", () => {
      this.#isClosed = true;
      for (const { command, reject, timer } of this.#waiting.splice(0)) {
        clearTimeout(timer);
        reject(new Error(`QEMU ended during ${command}`));
      }
    });
  }

  /** Takes the next connection of `server`, and is ready for commands. */
  static async accept(server: Server): Promise<QmpConnection> {
    const [socket] = (await once(server, "connection")) as [Socket];
    const connection = new QmpConnection(socket);
    await connection.execute("qmp_capabilities");
    return connection;
  }

  /** QEMU has ended, or is about to. */
  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** What the command returns. Throws QEMU's own error, and one where QEMU does not answer. */
  execute(command: string, argumentsOfIt: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    if (this.#isClosed) return Promise.reject(new Error(`QEMU ended before ${command}`));
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        reject(new Error(`QEMU has not answered ${command} in ${ANSWER_TIMEOUT_MS / 1000} s`));
        this.#socket.destroy();
      }, ANSWER_TIMEOUT_MS);
      this.#waiting.push({ command, resolve, reject, timer });
      this.#socket.write(`${JSON.stringify({ execute: command, arguments: argumentsOfIt })}\n`);
    });
  }

  #take(line: unknown): void {
    const { success, data: answer } = answerSchema.safeParse(line);
    if (!success) return; // the greeting, or an event
    const waiting = this.#waiting.shift();
    if (waiting === undefined) return;
    clearTimeout(waiting.timer);
    if ("error" in answer) waiting.reject(new Error(`${waiting.command}: ${answer.error.desc}`));
    else waiting.resolve(answer.return);
  }
}
