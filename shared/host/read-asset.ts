import { readFile } from "node:fs/promises";

/** A file that belongs to the program; undefined where it is not there. Other errors are the system's. */
export async function readAsset(path: string): Promise<Buffer | undefined> {
  try {
    return await readFile(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}
