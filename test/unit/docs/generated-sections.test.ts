import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import * as LIMITS from "../../../proto/limits.ts";
import { MESSAGE_SCHEMAS } from "../../../proto/replication-messages.ts";
import { GENERATED_FILES, GENERATED_SECTIONS, withSection } from "../../../tools/generated-sections.ts";
import { limitTables } from "../../../tools/limit-tables.ts";
import { markdownTable } from "../../../tools/markdown-table.ts";
import { schemaFields } from "../../../tools/schema-fields.ts";

const root = new URL("../../../", import.meta.url);

describe("generated documentation", () => {
  it.each(GENERATED_SECTIONS)("$file lists the $name that the code declares (else: npm run docs)", (section) => {
    const text = readFileSync(new URL(section.file, root), "utf8");
    expect(withSection(text, section)).toBe(text);
  });

  it.each([...GENERATED_FILES])("is in %s what the code declares (else: npm run docs)", (file, content) => {
    expect(readFileSync(new URL(file, root), "utf8")).toBe(content);
  });

  it("replaces what stands between the markers and nothing else", () => {
    const section = { name: "x", file: "docs/x.md", body: "new\n" };
    const around = (body: string) =>
      `before\n<!-- generated: x (npm run docs) -->${body}<!-- end generated: x -->\nafter\n`;
    expect(withSection(around("\n\nold\nold\n\n"), section)).toBe(around("\n\nnew\n\n"));
  });

  it.each([
    ["no markers", "text"],
    ["no end", "<!-- generated: x (npm run docs) -->\n"],
    ["the end first", "<!-- end generated: x -->\n<!-- generated: x (npm run docs) -->\n"],
    ["two of them", "<!-- generated: x (npm run docs) -->\n<!-- end generated: x -->\n".repeat(2)],
  ])("refuses a file with %s", (_case, text) => {
    expect(() => withSection(text, { name: "x", file: "docs/x.md", body: "" })).toThrow("docs/x.md must have");
  });

  it("lists every limit once, with its value and its comment", () => {
    const lines = [...limitTables().values()].flatMap((table) => table.split("\n").slice(2, -1));
    const names = lines.map((line) => line.split("`")[1]);
    expect(new Set(names)).toEqual(new Set(Object.keys(LIMITS)));
    expect(names).toHaveLength(Object.keys(LIMITS).length);
    expect(lines).toContain("| `STATE_SLOT_BYTES` | 64 KiB | Each of the two slots of the state record. |");
  });

  it("finds the fields of a schema, nested ones and byte strings included", () => {
    expect(schemaFields(MESSAGE_SCHEMAS.answer).map(({ path, type }) => `${path}: ${type}`)).toEqual([
      "type: `answer`",
      "id: integer",
      "error: object or null",
      "error.code: string",
      "error.message: string",
      "error.action: string",
      "tookMs: number",
      "checksum: bytes",
    ]);
    expect(schemaFields(MESSAGE_SCHEMAS.proof).at(-1)).toMatchObject({ path: "mac", type: "bytes", required: true });
  });

  it("keeps a cell in its column whatever is in it", () => {
    expect(markdownTable(["a"], [["x|y"]])).toBe("| a |\n| --- |\n| x\\|y |\n");
  });
});
