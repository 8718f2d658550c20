import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { GENERATED_SECTIONS, withSection } from "../../../tools/generated-sections.ts";

const root = new URL("../../../", import.meta.url);

describe("generated documentation", () => {
  it.each(GENERATED_SECTIONS)("$file lists the $name that the code declares (else: npm run docs)", (section) => {
    const text = readFileSync(new URL(section.file, root), "utf8");
    expect(withSection(text, section)).toBe(text);
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
});
