/** Run directories, seen from outside the agent: where control sockets are. */
import { lstatSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { ColobusError } from "../../proto/errors.ts";

/** The name of an agent's control socket in its run directory. */
export const CONTROL_SOCKET_NAME = "control.sock";

/**
 * The directories with a control socket: `directory` itself if it has one, else its subdirectories, sorted.
 * Whether an agent still answers there is not looked at. A directory that does not exist has none.
 * Errors: `permission-denied`; `io-error`.
 */
export function findAgentDirectories(directory: string): string[] {
  try {
    if (hasControlSocket(directory)) return [directory];
    return readdirSync(directory)
      .sort()
      .map((name) => join(directory, name))
      .filter((path) => hasControlSocket(path));
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === "ENOENT") return [];
    if (code === "EACCES") {
      throw new ColobusError(
        "permission-denied",
        `Cannot look into the run directory ${directory}: access is denied.`,
        "Run the command as the user that runs the agent.",
        { cause: error },
      );
    }
    throw new ColobusError(
      "io-error",
      `Cannot look into the run directory ${directory}: ${message}.`,
      "Check the path that --run or COLOBUS_RUN names.",
      { cause: error },
    );
  }
}

function hasControlSocket(directory: string): boolean {
  try {
    return lstatSync(join(directory, CONTROL_SOCKET_NAME), { throwIfNoEntry: false })?.isSocket() ?? false;
  } catch (error) {
    // Another agent's private directory, or a plain file, beside the ones that may be looked into.
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOTDIR" || code === "EACCES") return false;
    throw error;
  }
}
