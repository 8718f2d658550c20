/** `status --watch` on a real terminal. */
import { execFileSync, spawn } from "node:child_process";
import { stripVTControlCharacters } from "node:util";
import { describe, expect, it, onTestFailed, onTestFinished } from "vitest";
import { serveFakeAgent } from "../support/control-harness.ts";
import { MAIN } from "../support/cli-runner.ts";
import { requirePeers } from "../support/peers.ts";

const ENTER = "\u001b[?1049h\u001b[?25l";
const LEAVE = "\u001b[?25h\u001b[?1049l";
const HOME = "\u001b[H";
const CTRL_C = "\u0003";
const CTRL_Z = "\u001a";

/** What runs on a terminal of its own, which util-linux' script gives it; script passes on what is typed. */
class Terminal {
  readonly ended: Promise<number | null>;
  readonly #child;
  #output = "";
  #seen = 0;
  #heard = (): void => {};

  constructor(command: string) {
    const env = { ...process.env, TERM: "xterm-256color", LC_ALL: "C.UTF-8", NO_COLOR: "" };
    this.#child = spawn("script", ["--quiet", "--return", "--command", command, "/dev/null"], { env });
    onTestFinished(() => void this.#child.kill("SIGKILL"));
    onTestFailed(() => void process.stderr.write(`\n--- the terminal\n${JSON.stringify(this.#output.slice(-3000))}\n`));
    this.ended = new Promise((resolve) => {
      this.#child.on("close", resolve);
    });
    this.#child.stdout.setEncoding("utf8").on("data", (text: string) => {
      this.#output += text;
      this.#heard();
    });
  }

  get output(): string {
    return this.#output;
  }

  type(keys: string): void {
    this.#child.stdin.write(keys);
  }

  /** Resolves with what has come since the last call, when that has `text`. */
  async until(text: string): Promise<string> {
    await new Promise<void>((resolve) => {
      this.#heard = () => {
        if (this.#output.includes(text, this.#seen)) resolve();
      };
      this.#heard();
    });
    const end = this.#output.indexOf(text, this.#seen) + text.length;
    const passed = this.#output.slice(this.#seen, end);
    this.#seen = end;
    return passed;
  }

  /** Resolves with the last frame that is complete, as soon as it is as wanted. */
  frame(isWanted: (lines: string[]) => boolean): Promise<string[]> {
    return new Promise((resolve) => {
      this.#heard = () => {
        const complete = this.#output.slice(0, this.#output.lastIndexOf("\u001b[J"));
        const lines = complete
          .slice(complete.lastIndexOf(HOME) + HOME.length)
          .replaceAll("\r", "")
          .split("\u001b[K\n");
        if (complete.includes(HOME) && isWanted(lines)) resolve(lines);
      };
      this.#heard();
    });
  }
}

describe.runIf(requirePeers("script", "stty", "bash"))("status --watch", () => {
  it("fits a terminal and follows its size, and Ctrl-C leaves it as it was", async () => {
    const { control, run } = await serveFakeAgent();
    const terminal = new Terminal(
      `tty; stty rows 20 cols 100; exec ${process.execPath} ${MAIN} status --watch --run ${run}`,
    );
    await terminal.frame(([first = ""]) => first.includes("web") && first.includes("Protected"));
    expect(terminal.output).toContain(ENTER);
    control.log.emit("merged", { epoch: 7 });
    await terminal.frame((lines) => lines.some((line) => /merged +epoch=7/.test(line)));
    const [path = ""] = /\/dev\/pts\/\d+/.exec(terminal.output) ?? [];
    execFileSync("stty", ["-F", path, "rows", "6", "cols", "30"]);
    // stty sets the one after the other.
    const isNarrow = (line: string): boolean => stripVTControlCharacters(line).length <= 30;
    await terminal.frame((lines) => lines.length <= 6 && lines.every(isNarrow));
    expect(terminal.output).not.toContain(LEAVE);
    terminal.type(CTRL_C);
    expect(await terminal.ended).toBe(0);
    expect(terminal.output.trimEnd().endsWith(LEAVE)).toBe(true);
  });

  it("gives the terminal back to the shell with Ctrl-Z, leaves it alone in the background, and takes it again with fg", async () => {
    const { control, run } = await serveFakeAgent();
    const terminal = new Terminal("PS1='READY> ' exec bash --norc --noprofile --noediting -bi");
    await terminal.until("READY> ");
    terminal.type(`stty -echo rows 20 cols 100; ${process.execPath} ${MAIN} status --watch --run ${run}\n`);
    await terminal.until(ENTER);
    await terminal.until("\u001b[J");

    terminal.type(CTRL_Z);
    const stopped = await terminal.until("READY> ");
    expect(stopped).toMatch(/Stopped/);
    expect(stopped.indexOf(LEAVE)).toBeGreaterThanOrEqual(0);
    expect(stopped.slice(stopped.indexOf(LEAVE) + LEAVE.length)).not.toContain("\u001b[?");

    control.log.emit("merged", { epoch: 7 });
    terminal.type("bg\n");
    const inBackground = await terminal.until("Stopped");
    expect(inBackground).not.toContain(HOME);
    expect(inBackground).not.toContain(ENTER);

    terminal.type("fg\n");
    await terminal.until(ENTER);
    await terminal.frame((lines) => lines.some((line) => /merged +epoch=7/.test(line)));
    terminal.type(CTRL_C);
    await terminal.until(LEAVE);
    await terminal.until("READY> ");
    terminal.type("exit\n");
    expect(await terminal.ended).toBe(0);
  });

  it("goes on where there is no shell that could stop it", async () => {
    const { control, run } = await serveFakeAgent();
    const terminal = new Terminal(
      `stty rows 20 cols 100; exec ${process.execPath} ${MAIN} status --watch --run ${run}`,
    );
    await terminal.until("\u001b[J");
    terminal.type(CTRL_Z);
    await terminal.until(LEAVE + ENTER);
    control.log.emit("merged", { epoch: 7 });
    await terminal.frame((lines) => lines.some((line) => /merged +epoch=7/.test(line)));
    terminal.type(CTRL_C);
    expect(await terminal.ended).toBe(0);
  });
});
