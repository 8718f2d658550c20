import fs from "node:fs";
import { dirname } from "node:path";
import { fsError } from "./os-error.ts";

/** Nobody but the owner looks into what agents keep. */
const DIRECTORY_MODE = 0o700;

/**
 * Makes the parents that are missing too; a directory that exists already is left as it is. Node's own recursive `mkdir`
 * never returns where a file system answers ENOENT for a name in a directory that exists, as /proc does.
 * Errors: as `osError`, naming the directory that could not be made.
 */
export function makeDirectory(path: string): void {
  if (isDirectory(path)) return;
  const parent = dirname(path);
  if (parent !== path) makeDirectory(parent);
  try {
    fs.mkdirSync(path, { mode: DIRECTORY_MODE });
  } catch (error) {
    // Another process may have made it meanwhile.
    if (!isDirectory(path)) throw fsError(`cannot make the directory ${path}`, path, error);
  }
}

function isDirectory(path: string): boolean {
  try {
    return fs.statSync(path).isDirectory();
  } catch {
    // Why it cannot be looked at is told when it is to be made.
    return false;
  }
}
