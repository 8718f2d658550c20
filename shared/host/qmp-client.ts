import { connect, type Socket } from "node:net";
import { createInterface } from "node:readline";
import { z } from "zod";
import { ColobusError } from "../../proto/errors.ts";
import type { Clock, Timer } from "./clock.ts";

const lineSchema = z.union([
  z.object({ return: z.unknown() }),
  z.object({ error: z.object({ desc: z.string() }) }),
  z.object({ event: z.string(), data: z.record(z.string(), z.unknown()).default({}) }),
  z.object({ QMP: z.unknown() }),
]);

const DELIMITER = Buffer.of(0xff);
/** What the delimiter, which is in no character's encoding, becomes in text. */
const DELIMITER_READ = "\ufffd";

export interface QmpEvent {
  readonly event: string;
  readonly data: Readonly<Record<string, unknown>>;
}

export interface QmpClientOptions {
  /** Path of the unix socket on which QEMU, or its guest agent, listens. */
  readonly socket: string;
  readonly clock: Clock;
  /** What a command may take unless it says otherwise. */
  readonly timeoutMs: number;
  readonly event?: (event: QmpEvent) => void;
}

interface Waiting {
  readonly command: string;
  readonly resolve: (answer: unknown) => void;
  readonly reject: (error: ColobusError) => void;
  readonly timer: Timer;
}

/**
 * One connection to QEMU's machine protocol, or to the guest agent, which speaks the same without a greeting. Commands
 * are answered in their order. One that is not answered in time ends the connection: a later answer would be taken for
 * another command's.
 */
export class QmpClient {
  /** Resolves when the connection is over, with the reason. */
  readonly ended: Promise<ColobusError>;
  readonly #options: QmpClientOptions;
  readonly #socket: Socket;
  readonly #waiting: Waiting[] = [];
  #end: ColobusError | undefined;
  /** Of the guest agent's handshake, until it is answered. */
  #syncId: number | undefined;
  #tellEnd: (reason: ColobusError) => void = () => undefined;

  private constructor(options: QmpClientOptions) {
    this.#options = options;
    this.ended = new Promise((resolve) => {
      this.#tellEnd = resolve;
    });
    this.#socket = connect({ path: options.socket });
    const lines = createInterface({ input: this.#socket });
    lines.on("line", (line) => this.#take(line));
    lines.on("error", () => undefined); // the socket's own error says it
    this.#socket.on("error", (error: NodeJS.ErrnoException) =>
      // QEMU's queue is full: it accepts nobody, and keeps the places of those who have given up before.
      error.code === "EAGAIN"
        ? this.#over(unanswered(`${options.socket} accepts no more connections, since none is answered`))
        : this.#lost(error.message),
    );
    this.#socket.on("close", () => this.#lost("it was closed"));
  }

  /** Connects to QEMU and agrees on its capabilities. Errors: `vm-unreachable`, `timed-out`. */
  static async connect(options: QmpClientOptions): Promise<QmpClient> {
    const client = new QmpClient(options);
    try {
      await client.execute("qmp_capabilities");
      return client;
    } catch (error) {
      client.close();
      throw error;
    }
  }

  /**
   * Connects to a guest agent, which does not notice that its clients change: the byte 0xff has it forget what an earlier
   * one began, and what comes before its own 0xff is an answer to that one. Errors: `vm-unreachable`, `timed-out`: it may be
   * that none runs in the guest.
   */
  static async connectToGuestAgent(options: QmpClientOptions): Promise<QmpClient> {
    const client = new QmpClient(options);
    const id = Math.floor(options.clock.wallMs());
    try {
      client.#syncId = id;
      client.#socket.write(DELIMITER);
      await client.execute("guest-sync-delimited", { id });
      return client;
    } catch (error) {
      client.close();
      throw error;
    }
  }

  /** What the command returns. Errors: `vm-refused`, `timed-out`, `vm-unreachable`. */
  execute(
    command: string,
    args: Readonly<Record<string, unknown>> = {},
    timeoutMs = this.#options.timeoutMs,
  ): Promise<unknown> {
    if (this.#end !== undefined) return Promise.reject(this.#end);
    return new Promise((resolve, reject) => {
      const timer = this.#options.clock.after(timeoutMs, () => {
        reject(unanswered(`${command} was not answered in ${timeoutMs} ms at ${this.#options.socket}`));
        this.#socket.destroy();
      });
      this.#waiting.push({ command, resolve, reject, timer });
      this.#socket.write(`${JSON.stringify({ execute: command, arguments: args })}\n`);
    });
  }

  close(): void {
    this.#socket.destroy();
  }

  #take(line: string): void {
    const text = this.#syncId === undefined ? line : line.slice(line.lastIndexOf(DELIMITER_READ) + 1);
    const parsed = lineSchema.safeParse(tryParse(text));
    if (this.#syncId !== undefined) {
      if (!parsed.success || !("return" in parsed.data) || parsed.data.return !== this.#syncId) return;
      this.#syncId = undefined;
    }
    if (!parsed.success) {
      this.#lost("what it says is not understood");
      this.#socket.destroy();
      return;
    }
    const { data } = parsed;
    if ("QMP" in data) return;
    if ("event" in data) {
      this.#options.event?.(data);
      return;
    }
    const waiting = this.#waiting.shift();
    if (waiting === undefined) return;
    waiting.timer.cancel();
    if ("error" in data) {
      waiting.reject(
        new ColobusError("vm-refused", `${waiting.command} was refused: ${data.error.desc}`, "See the VM's own log."),
      );
    } else waiting.resolve(data.return);
  }

  #lost(why: string): void {
    this.#over(
      new ColobusError(
        "vm-unreachable",
        `the connection to ${this.#options.socket} is over: ${why}`,
        "Check that the VM runs, that the path is that of its socket, and that nobody else uses it.",
      ),
    );
  }

  #over(end: ColobusError): void {
    if (this.#end !== undefined) return;
    this.#end = end;
    for (const { timer, reject } of this.#waiting.splice(0)) {
      timer.cancel();
      reject(end);
    }
    this.#tellEnd(end);
  }
}

/** A QEMU that hangs, not one that is gone: it may carry out yet what it was told. */
function unanswered(message: string): ColobusError {
  return new ColobusError(
    "timed-out",
    message,
    "Check that the VM is not stopped by a debugger or an overloaded host.",
  );
}

function tryParse(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined; // the schema refuses that
  }
}
