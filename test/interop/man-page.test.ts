/** The manual page, as man itself shows it. */
import { execFileSync, spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { ALL_COMMANDS } from "../../cli/all-commands.ts";
import { describeCommand } from "../../cli/describe-commands.ts";
import { requirePeers } from "../support/peers.ts";

const PAGE = fileURLToPath(new URL("../../packaging/man/colobus.1", import.meta.url));

describe.runIf(requirePeers("man", "lexgrog"))("the manual page", () => {
  const env = { ...process.env, LC_ALL: "C.UTF-8", MANWIDTH: "100", MANROFFSEQ: "" };

  it("has no fault that man knows of, and every command", () => {
    const flags = ["--warnings", "--encoding=UTF-8", "--local-file", "--no-justification", PAGE];
    const { stdout, stderr, status } = spawnSync("man", flags, { env, encoding: "utf8" });
    expect({ stderr, status }).toEqual({ stderr: "", status: 0 });
    const lines = stdout.split("\n").map((line) => line.trim().replaceAll(/ +/g, " "));
    for (const { usage, describe: what } of ALL_COMMANDS.map(describeCommand)) {
      const heading = usage.replaceAll(/<(\w+)>/g, "$1").replaceAll(/(?<= )\[?\w+\]?/g, (word) => word.toUpperCase());
      // A short one has its meaning beside it.
      const beside = `${heading} ${what.split(" ", 1)[0]}`;
      expect(
        lines.some((line) => line === heading || line.startsWith(beside)),
        heading,
      ).toBe(true);
    }
    expect(stdout).toContain("--on-peer-loss continue|freeze");
    expect(stdout).not.toMatch(/\\f|\\-/);
  });

  it("is found by what it is about", () => {
    expect(execFileSync("lexgrog", [PAGE], { env, encoding: "utf8" })).toContain("colobus - keeps a second host");
  });
});
