/** Writes every generated section into its file (`npm run docs`). */
import { readFileSync, writeFileSync } from "node:fs";
import { GENERATED_SECTIONS, withSection } from "./generated-sections.ts";

const root = new URL("../", import.meta.url);

for (const section of GENERATED_SECTIONS) {
  const path = new URL(section.file, root);
  const before = readFileSync(path, "utf8");
  const after = withSection(before, section);
  if (after !== before) {
    writeFileSync(path, after);
    console.log(`${section.file}: ${section.name} written`);
  }
}
