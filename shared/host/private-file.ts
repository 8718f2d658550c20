import { closeSync, fstatSync, openSync, readFileSync } from "node:fs";
import { ColobusError } from "../../proto/errors.ts";

const OTHERS = 0o007;

/** The content of a file that holds a secret: a `what` file, named by `flag`. Errors: `usage`, also where it is open to others. */
export function readPrivateFile(path: string, what: string, flag: string): Buffer {
  let content: Buffer;
  let mode: number;
  try {
    const fd = openSync(path, "r");
    try {
      ({ mode } = fstatSync(fd));
      content = readFileSync(fd);
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new ColobusError("usage", `the ${what} file cannot be read: ${why}`, `Check ${flag}.`, { cause: error });
  }
  if (isPrivate(mode)) return content;
  throw new ColobusError("usage", `the ${what} file ${path} is accessible to others`, `Run \`chmod o= ${path}\`.`);
}

/** Whether a file of this mode is closed to all but its owner and group: root's, for the group that an agent runs in, is. */
export function isPrivate(mode: number): boolean {
  return (mode & OTHERS) === 0;
}
