import { afterEach, describe, expect, it, vi } from "vitest";
import { ALL_COMMANDS } from "../../../cli/all-commands.ts";
import { describeCommand } from "../../../cli/describe-commands.ts";
import { OPERATOR_COMMANDS } from "../../../cli/operator-commands.ts";
import { runInProcess } from "../../support/control-harness.ts";

afterEach(() => vi.unstubAllEnvs());

async function complete(...words: string[]): Promise<string[]> {
  const { code, stdout } = await runInProcess(["--get-yargs-completions", "colobus", ...words]);
  expect(code).toBe(0);
  return stdout.trim().split("\n");
}

describe("completion", () => {
  it.each([
    ["/bin/bash", "complete -o bashdefault -o default -F _colobus_yargs_completions colobus"],
    ["/usr/bin/zsh", "compdef _colobus_yargs_completions colobus"],
  ])("prints the script of %s", async (shell, line) => {
    vi.stubEnv("SHELL", shell);
    vi.stubEnv("ZSH_NAME", "");
    const { code, stdout } = await runInProcess(["completion"]);
    expect(code).toBe(0);
    expect(stdout.split("\n").map((text) => text.trim())).toContain(line);
    expect(stdout).toContain("colobus --get-yargs-completions");
  });

  it("offers every command", async () => {
    vi.stubEnv("SHELL", "/bin/bash");
    expect(await complete("")).toEqual(expect.arrayContaining(OPERATOR_COMMANDS.map(({ name }) => name)));
  });

  it("offers a command's flags and words", async () => {
    vi.stubEnv("SHELL", "/bin/bash");
    expect(await complete("failover", "--")).toEqual(
      expect.arrayContaining(["--dry-run", "--force", "--discard-active", "--run"]),
    );
    expect(await complete("wait", "c")).toEqual(["connected", "committed"]);
    expect(await complete("job", "p")).toEqual(["pause"]);
  });
});

describe("help", () => {
  it.each(OPERATOR_COMMANDS.map(({ name }) => name))("of %s says what it does, and gives an example", async (name) => {
    const { code, stdout, stderr } = await runInProcess([name, "--help"]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toContain(`colobus ${name}`);
    expect(stdout).toMatch(/Examples:\n +colobus /);
  });

  const described = ALL_COMMANDS.map(describeCommand);
  const flags = described.flatMap(({ options }) => options.map(({ name }) => `--${name}`));

  it.each(described)("of $usage has --json, and names flags that there are", ({ options }) => {
    expect(options.map(({ name }) => name)).toContain("json");
    const named = options.flatMap(({ describe: text }) => text.match(/(?<![\w-])--[a-z][a-z-]*/g) ?? []);
    expect(named.filter((flag) => !flags.includes(flag))).toEqual([]);
  });

  it("lists every command and the exit codes", async () => {
    const { stdout } = await runInProcess(["--help"]);
    for (const { usage } of OPERATOR_COMMANDS) expect(stdout).toContain(`colobus ${usage}`);
    expect(stdout).toContain("Exit codes: 0 done");
  });
});
