import { ColobusError } from "../proto/errors.ts";

/** `flag` has to be given: `what` says what it is for. */
export function missing(flag: string, what: string): ColobusError {
  return new ColobusError("usage", `${flag} is missing`, `${what} See --help.`);
}

/** `flag` cannot have this value: `action` says which it can have. */
export function impossible(flag: string, value: string, action: string): ColobusError {
  return new ColobusError("usage", `${flag} ${JSON.stringify(value)} is not possible`, action);
}
