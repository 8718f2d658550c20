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
  if ((mode & OTHERS) === 0) return content;
  throw new ColobusError("usage", `the ${what} file ${path} is accessible to others`, `Run \`chmod 600 ${path}\`.`);
}
