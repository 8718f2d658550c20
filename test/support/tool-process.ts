import { spawn, type ChildProcess } from "node:child_process";
import { connect } from "node:net";
import { onTestFinished } from "vitest";

/** A server of another project that runs beside a test. It is killed when the test has finished. */
export class ToolProcess {
  readonly #child: ChildProcess;
  readonly #ended: Promise<void>;
  #hasEnded = false;

  constructor(program: string, args: readonly string[]) {
    this.#child = spawn(program, args, { stdio: ["ignore", "ignore", "inherit"] });
    this.#ended = new Promise((resolve) => {
      this.#child.once("close", () => {
        this.#hasEnded = true;
        resolve();
      });
    });
    onTestFinished(() => this.end("SIGKILL"));
  }

  /** Resolves when it accepts connections on the unix socket; the one that was made is closed again. */
  async untilListening(path: string): Promise<void> {
    while (!(await accepts(path))) {
      if (this.#hasEnded) throw new Error(`${this.#child.spawnfile} has ended`);
      await new Promise((resolve) => {
        setTimeout(resolve, 10);
      });
    }
  }

  /** Sends a signal that does not end it. */
  signal(signal: "SIGSTOP" | "SIGCONT"): void {
    this.#child.kill(signal);
  }

  async end(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    if (!this.#hasEnded) this.#child.kill(signal);
    await this.#ended;
  }
}

/** Whether somebody listens on the unix socket. */
export function accepts(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ path });
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}
