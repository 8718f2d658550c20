import { ColobusError } from "../../proto/errors.ts";

/** A sound file of a format that a later release has: nothing in its directory may be changed or removed by this one. */
export function laterVersion(path: string, what: string): ColobusError {
  return new ColobusError(
    "state-corrupt",
    `${path} was written by a later version of Colobus (${what})`,
    "Start that version, or a later one, with this state directory.",
  );
}
