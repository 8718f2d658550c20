/** What the documents name is there: other documents and their headings, flags, commands, metrics. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { ALL_COMMANDS } from "../../../cli/all-commands.ts";
import { describeCommand } from "../../../cli/describe-commands.ts";
import { METRICS } from "../../../proto/metrics.ts";

const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
const DOCUMENTS = [
  "README.md",
  "ARCHITECTURE.md",
  "CONTRIBUTING.md",
  "CHANGELOG.md",
  ...readdirSync(join(ROOT, "docs"))
    .filter((name) => name.endsWith(".md"))
    .map((name) => `docs/${name}`),
];
/** Those whose every flag is one of ours. */
const GUIDES = ["docs/tuning.md", "docs/faq.md"];

const read = (file: string): string => readFileSync(join(ROOT, file), "utf8");

/** A heading as the links of GitHub name it. */
function anchorOf(heading: string): string {
  return heading
    .replaceAll(/\[([^\]]*)\]\([^)]*\)/g, "$1")
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N}\s_-]/gu, "")
    .trim()
    .replaceAll(" ", "-");
}

function anchorsOf(file: string): Set<string> {
  const prose = read(file).replaceAll(/^```.*?^```$/gms, "");
  return new Set([...prose.matchAll(/^#+ (.*)$/gm)].map(([, heading = ""]) => anchorOf(heading)));
}

describe("the documents", () => {
  it.each(DOCUMENTS)("link to what is there: %s", (file) => {
    const prose = read(file).replaceAll(/^```.*?^```$/gms, "");
    const broken = [...prose.matchAll(/\]\(([^)\s]+)\)/g)]
      .map(([, target = ""]) => target)
      .filter((target) => !/^[a-z]+:/.test(target))
      .filter((target) => {
        const [path = "", anchor] = target.split("#");
        const linked = path === "" ? file : normalize(join(dirname(file), path));
        if (!existsSync(join(ROOT, linked))) return true;
        return anchor !== undefined && !anchorsOf(linked).has(anchor);
      });
    expect(broken).toEqual([]);
  });

  it("say which commands take no --timeout and --run", () => {
    const [, named = ""] =
      /All but ([^.]*) ask agents, and take `--timeout`, and\n`--run DIR`/.exec(read("README.md")) ?? [];
    const without = ALL_COMMANDS.filter((command) => {
      const flags = describeCommand(command).options.map(({ name }) => name);
      return !(flags.includes("timeout") && flags.includes("run"));
    });
    expect([...named.matchAll(/`([a-z-]+)`/g)].map(([, name]) => name)).toEqual(without.map(({ name }) => name));
  });

  it.each(GUIDES)("name flags, commands and metrics that there are: %s", (file) => {
    const text = read(file);
    const commands = ALL_COMMANDS.map(describeCommand);
    const flags = new Set(commands.flatMap(({ options }) => options.map(({ name }) => `--${name}`)));
    const named = [...text.matchAll(/(?<![\w-])--[a-z][a-z-]*/g)].map(([flag]) => flag);
    expect(named.filter((flag) => !flags.has(flag))).toEqual([]);
    const verbs = new Set(commands.map(({ usage }) => usage.split(" ", 1)[0]));
    const run = [...text.matchAll(/`colobus ([a-z-]+)/g)].map(([, verb]) => verb);
    expect(run.filter((verb) => !verbs.has(verb))).toEqual([]);
    const metrics = [...text.matchAll(/`((?:colobus|process)_[a-z_]+)`/g)].map(([, name = ""]) => name);
    expect(metrics.filter((name) => !(name in METRICS))).toEqual([]);
  });
});
