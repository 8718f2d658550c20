import { ColobusError } from "../proto/errors.ts";

/** Names of copies become names of directories. */
const CHILD_NAME = /^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$/;

/** Errors: `usage`. */
export function assertChildName(name: string): void {
  if (CHILD_NAME.test(name)) return;
  throw new ColobusError(
    "usage",
    `${JSON.stringify(name)} is not the name of a copy`,
    "Use letters, digits, `_` and `-`: at most 64, the first no `-`.",
  );
}
