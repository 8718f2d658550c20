import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/**
 * Bytes that a released version has written, by name: `test/golden/FILE`, one `name hex` a line. With UPDATE=1 names
 * that are not in the file yet are added to it; what is there is never changed, since it was released.
 */
export function goldenBytes(file: string, current: ReadonlyMap<string, Buffer>): Map<string, Buffer> {
  const path = join(import.meta.dirname, "../golden", file);
  const update = process.env["UPDATE"] === "1";
  const golden = new Map<string, Buffer>();
  for (const line of readLines(path, update)) {
    const [name, hex] = line.split(" ");
    if (name !== undefined && hex !== undefined) golden.set(name, Buffer.from(hex, "hex"));
  }
  if (update) {
    for (const [name, bytes] of current) if (!golden.has(name)) golden.set(name, bytes);
    writeFileSync(path, [...golden].map(([name, bytes]) => `${name} ${bytes.toString("hex")}\n`).join(""));
  }
  return golden;
}

function readLines(path: string, mayBeMissing: boolean): string[] {
  try {
    return readFileSync(path, "utf8").split("\n");
  } catch (error) {
    if (mayBeMissing) return [];
    throw error;
  }
}
