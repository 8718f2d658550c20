/** Writes every generated section into its file, and every generated file (`npm run docs`). */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { GENERATED_FILES, GENERATED_SECTIONS, withSection } from "./generated-sections.ts";

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

for (const [file, content] of GENERATED_FILES) {
  const path = new URL(file, root);
  if (existsSync(path) && readFileSync(path, "utf8") === content) continue;
  mkdirSync(new URL(".", path), { recursive: true });
  writeFileSync(path, content);
  console.log(`${file} written`);
}
