/** `status --watch` on a real terminal. */
import { execFileSync, spawn } from "node:child_process";
import { stripVTControlCharacters } from "node:util";
import { expect, it, onTestFinished } from "vitest";
import { serveFakeAgent } from "../support/control-harness.ts";
import { MAIN } from "../support/cli-runner.ts";
import { requirePeers } from "../support/peers.ts";

const ENTER = "\u001b[?1049h\u001b[?25l";
const LEAVE = "\u001b[?25h\u001b[?1049l";
const HOME = "\u001b[H";

it.runIf(requirePeers("script", "stty"))(
  "status --watch fits a terminal and follows its size, and Ctrl-C leaves it as it was",
  async () => {
    const { control, run } = await serveFakeAgent();
    // util-linux' script gives the command a terminal of its own, and passes on what is typed.
    const command = `tty; stty rows 20 cols 100; exec ${process.execPath} ${MAIN} status --watch --run ${run}`;
    const env = { ...process.env, TERM: "xterm-256color", LC_ALL: "C.UTF-8", NO_COLOR: "" };
    const child = spawn("script", ["--quiet", "--return", "--command", command, "/dev/null"], { env });
    onTestFinished(() => void child.kill("SIGKILL"));
    const ended = new Promise<number | null>((resolve) => {
      child.on("close", resolve);
    });
    let output = "";
    let heard = (): void => {};
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      output += text;
      heard();
    });
    /** Resolves with the last frame that is complete, as soon as it is as wanted. */
    const frame = (isWanted: (lines: string[]) => boolean): Promise<string[]> =>
      new Promise((resolve) => {
        heard = () => {
          const complete = output.slice(0, output.lastIndexOf("\u001b[J"));
          const lines = complete
            .slice(complete.lastIndexOf(HOME) + HOME.length)
            .replaceAll("\r", "")
            .split("\u001b[K\n");
          if (complete.includes(HOME) && isWanted(lines)) resolve(lines);
        };
        heard();
      });

    await frame(([first = ""]) => first.includes("web") && first.includes("Protected"));
    expect(output).toContain(ENTER);
    control.log.emit("merged", { epoch: 7 });
    await frame((lines) => lines.some((line) => /merged +epoch=7/.test(line)));
    const [terminal = ""] = /\/dev\/pts\/\d+/.exec(output) ?? [];
    execFileSync("stty", ["-F", terminal, "rows", "6", "cols", "30"]);
    const small = await frame((lines) => lines.length <= 6);
    expect(Math.max(...small.map((line) => stripVTControlCharacters(line).length))).toBeLessThanOrEqual(30);
    expect(output).not.toContain(LEAVE);
    child.stdin.write("\u0003");
    expect(await ended).toBe(0);
    expect(output.trimEnd().endsWith(LEAVE)).toBe(true);
  },
);
