/** A client that makes its connection again by itself, as the lines that we print have it: qemu-io with a reconnect-delay. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { onTestFinished } from "vitest";
import type { AgentUnderTest } from "./agent-pair.ts";

const PROMPT = "qemu-io>";
/** What qemu-io says when a request, or the comparison with a pattern, has failed. */
const FAULT = /error|failed/i;

export class ReconnectingGuest {
  readonly #child;
  readonly #agent: AgentUnderTest;
  #output = "";

  private constructor(agent: AgentUnderTest) {
    const image = [
      "driver=raw,file.driver=nbd,file.server.type=unix",
      `file.server.path=${join(agent.run, "nbd.sock")},file.export=vda,file.reconnect-delay=100`,
    ].join(",");
    this.#agent = agent;
    this.#child = spawn("qemu-io", ["--image-opts", image], { stdio: ["pipe", "pipe", "pipe"] });
    onTestFinished(() => void this.#child.kill("SIGKILL"));
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream.setEncoding("utf8").on("data", (text: string) => (this.#output += text));
    }
  }

  static async connect(agent: AgentUnderTest): Promise<ReconnectingGuest> {
    const guest = new ReconnectingGuest(agent);
    await guest.#printed(PROMPT);
    return guest;
  }

  /** Gives a command, and resolves when qemu-io has printed `expected`. */
  async run(command: string, expected = PROMPT): Promise<void> {
    this.#output = "";
    this.#child.stdin.write(`${command}\n`);
    await this.#printed(expected);
  }

  /** Gives an `aio_` command, which `aio_flush` waits for, and resolves when the agent has its request. */
  async begin(command: string): Promise<void> {
    await this.run(command);
    // It lies in the agent's socket by now, and what comes later is answered later.
    await this.#agent.status();
  }

  /** Resolves when qemu-io has printed `text` since the last command. Rejects with any fault that it prints. */
  async #printed(text: string): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const look = (): void => {
        if (FAULT.test(this.#output)) reject(new Error(this.#output));
        else if (this.#output.includes(text)) resolve();
      };
      this.#child.stdout.on("data", look);
      this.#child.stderr.on("data", look);
      this.#child.once("close", () => reject(new Error(`qemu-io has ended: ${this.#output}`)));
      look();
    });
  }

  /** Resolves with the exit code. */
  async quit(): Promise<unknown> {
    const ended = once(this.#child, "close");
    this.#child.stdin.end("quit\n");
    return (await ended)[0];
  }
}
