import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { endProcess, endsEarly, startProcess } from "./leftovers.ts";
import { QmpConnection } from "./qmp-connection.ts";

const PROGRAM = "qemu-system-x86_64";
const NO_GUEST = ["-M", "none", "-nodefaults", "-display", "none", "-S"];

/** A QEMU without a guest: its block layer and NBD server, commanded over QMP. */
export class QemuProcess {
  readonly #process: ChildProcess;
  readonly #qmp: QmpConnection;

  private constructor(process: ChildProcess, qmp: QmpConnection) {
    this.#process = process;
    this.#qmp = qmp;
  }

  /** Resolves when QEMU takes commands. `qmpSocket` is the path of a unix socket that does not exist yet. */
  static async start(qmpSocket: string, drives: readonly Readonly<Record<string, string>>[]): Promise<QemuProcess> {
    const server = createServer().listen(qmpSocket);
    await once(server, "listening");
    const flags = drives.flatMap((drive) => ["-drive", driveOption(drive)]);
    const qemu = startProcess(PROGRAM, [...NO_GUEST, "-qmp", `unix:${qmpSocket}`, ...flags], {
      stdio: ["ignore", "ignore", "inherit"],
    });
    const ended = endsEarly(qemu, PROGRAM);
    ended.catch(() => undefined); // once it takes commands, its end is the caller's doing
    try {
      return new QemuProcess(qemu, await Promise.race([QmpConnection.accept(server), ended]));
    } finally {
      server.close();
    }
  }

  get pid(): number {
    return this.#process.pid ?? 0;
  }

  execute(command: string, argumentsOfIt: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    return this.#qmp.execute(command, argumentsOfIt);
  }

  /** Has QEMU serve NBD on a unix socket. */
  async serve(socket: string): Promise<void> {
    await this.execute("nbd-server-start", { addr: { type: "unix", data: { path: socket } } });
  }

  async export(node: string, name: string): Promise<void> {
    await this.execute("block-export-add", { "type": "nbd", "id": name, "node-name": node, name, "writable": true });
  }

  /** Ends QEMU as it asks to be ended; one that takes no commands any more is killed. */
  async quit(): Promise<void> {
    if (this.#qmp.isClosed) return this.kill();
    const ended = once(this.#process, "exit");
    try {
      await this.execute("quit");
    } catch {
      return this.kill(); // it hangs, or has ended before it could answer
    }
    await ended;
  }

  kill(): Promise<void> {
    return endProcess(this.#process, "SIGKILL");
  }
}

function driveOption(drive: Readonly<Record<string, string>>): string {
  return Object.entries(drive)
    .map(([key, value]) => `${key}=${value.replaceAll(",", ",,")}`)
    .join(",");
}
