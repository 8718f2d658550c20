/**
 * Text scenarios: commands and the output that they gave, in files that people read and a test compares.
 *
 *     # A comment.
 *     command
 *     ----
 *     output
 *
 * A blank line ends the output. Output that has blank lines itself stands between two lines of dashes on each side.
 * With UPDATE=1 in the environment the files are rewritten with the output that came.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { expect } from "vitest";

const RULE = "----";

interface Step {
  /** Comments and blank lines before the command. */
  readonly preamble: readonly string[];
  readonly command: string;
  readonly expected: string;
}

/** Runs every command of the file and compares, or rewrites, its output. */
export async function runTextScenario(path: string, run: (command: string) => Promise<string>): Promise<void> {
  const { steps, rest } = parseScenario(readFileSync(path, "utf8"));
  const actual: string[] = [];
  for (const step of steps) actual.push(formatStep({ ...step, expected: await run(step.command) }));
  const text = [...actual, ...rest.map((line) => `${line}\n`)].join("");
  if (process.env.UPDATE === "1") writeFileSync(path, text);
  else expect(text).toBe([...steps.map(formatStep), ...rest.map((line) => `${line}\n`)].join(""));
}

function parseScenario(text: string): { steps: Step[]; rest: string[] } {
  const lines = text.split("\n");
  if (lines.at(-1) === "") lines.pop();
  const steps: Step[] = [];
  let preamble: string[] = [];
  for (let at = 0; at < lines.length;) {
    const line = lines[at] ?? "";
    at += 1;
    if (line === "" || line.startsWith("#")) {
      preamble.push(line);
      continue;
    }
    if (lines[at] !== RULE)
      throw new Error(`line ${at + 1}: expected ${RULE} after the command ${JSON.stringify(line)}`);
    at += 1;
    const double = lines[at] === RULE;
    if (double) at += 1;
    const output: string[] = [];
    const ended = (): boolean => (double ? lines[at] === RULE && lines[at + 1] === RULE : lines[at] === "");
    while (at < lines.length && !ended()) output.push(lines[at++] ?? "");
    if (double) at += 2;
    steps.push({ preamble, command: line, expected: output.join("\n") });
    preamble = [];
  }
  return { steps, rest: preamble };
}

function formatStep({ preamble, command, expected }: Step): string {
  const output = expected === "" ? [] : expected.split("\n");
  const body = output.includes("") ? [RULE, ...output, RULE, RULE] : output;
  return [...preamble, command, RULE, ...body].map((line) => `${line}\n`).join("");
}
