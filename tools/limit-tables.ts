/** The tables of `proto/limits.ts`: one for each `// Heading` there, with the comment of each limit as its meaning. */
import { readFileSync } from "node:fs";
import { formatBytes, formatDuration } from "../cli/quantities.ts";
import * as LIMITS from "../proto/limits.ts";
import { markdownTable } from "./markdown-table.ts";

const HEADING = /^\/\/ (\w+)/;
const LIMIT = /^export const (\w+) = /;

/** The tables by heading. Throws when a limit stands above the first heading. */
export function limitTables(): Map<string, string> {
  const source = readFileSync(new URL("../proto/limits.ts", import.meta.url), "utf8");
  const rows = new Map<string, string[][]>();
  let heading = "";
  let comment = "";
  for (const line of source.split("\n")) {
    const headingName = HEADING.exec(line)?.[1];
    const name = LIMIT.exec(line)?.[1];
    if (headingName !== undefined) rows.set((heading = headingName), []);
    else if (name !== undefined) {
      const section = rows.get(heading);
      if (section === undefined) throw new Error(`proto/limits.ts has ${name} above its first heading.`);
      section.push([`\`${name}\``, describeValue(name), comment === "" ? "See the line above." : comment]);
      comment = "";
    } else if (/^ ?\/?\*/.test(line)) {
      const text = line.replace(/^ ?\/?\*+\/?/, "").replace(/\*\/$/, "");
      comment = `${comment} ${text.trim()}`.trim();
    } else comment = "";
  }
  const table = (limits: string[][]) => markdownTable(["limit", "value", "meaning"], limits);
  return new Map([...rows].map(([name, limits]) => [name, table(limits)]));
}

/** A limit's name ends in its unit. */
function describeValue(name: string): string {
  const value = (LIMITS as Readonly<Record<string, number>>)[name];
  if (value === undefined) throw new Error(`proto/limits.ts exports no ${name}.`);
  if (name.endsWith("_BYTES") || name.includes("_BYTES_PER_")) return formatBytes(value);
  if (name.endsWith("_MS")) return formatDuration(value);
  return String(value);
}
