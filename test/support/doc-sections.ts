/** The sections of a document in docs/, with what their code blocks tell the reader to run. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export interface DocSection {
  readonly heading: string;
  readonly text: string;
  /** The commands of its shell blocks, each on one line. */
  readonly commands: readonly string[];
}

/** The sections below the headings of the second level, of a file named from the root of the repository. */
export function readSections(file: string): DocSection[] {
  return readDocument(file)
    .split(/^## /m)
    .slice(1)
    .map((text) => ({
      heading: text.slice(0, text.indexOf("\n")),
      text,
      commands: blocksOf(text, "sh").join("").replaceAll("\\\n", " ").split("\n").filter(isCommand),
    }));
}

/** The section with this heading. */
export function sectionOf(sections: readonly DocSection[], heading: string): DocSection {
  const section = sections.find((candidate) => candidate.heading === heading);
  if (section === undefined) throw new Error(`there is no heading "${heading}"`);
  return section;
}

/** The contents of the code blocks of a language, in their order. */
export function blocksOf(text: string, language: string): string[] {
  return [...text.matchAll(/^```(\w*)\n(.*?)^```$/gms)]
    .filter(([, name]) => name === language)
    .map(([, , block = ""]) => block);
}

/** `line` with what the document's example names replaced by what there is. */
export function withNames(line: string, names: Readonly<Record<string, string>>): string {
  let replaced = line;
  for (const [example, real] of Object.entries(names)) replaced = replaced.replaceAll(example, real);
  return replaced;
}

export function readDocument(file: string): string {
  return readFileSync(fileURLToPath(new URL(`../../${file}`, import.meta.url)), "utf8");
}

function isCommand(line: string): boolean {
  return line !== "" && !line.startsWith("#");
}
