/**
 * Listening on a unix socket whose path outlives the process: a socket left by a killed process is replaced, one that
 * still answers is not. Only the owner may connect (mode 0600, from the moment the socket exists).
 *
 * It does not arbitrate between two processes that start at the same instant on the same path; the locks on images and
 * on the state directory do.
 */
import { existsSync, lstatSync, unlinkSync, type Stats } from "node:fs";
import { connect, type Server } from "node:net";
import { dirname } from "node:path";
import { ColobusError } from "../../proto/errors.ts";
import { withUmask } from "./umask.ts";

/** `sun_path` of the kernel's `struct sockaddr_un` without its terminating zero. */
export const UNIX_SOCKET_PATH_MAX_BYTES = 107;

/** Throws `usage` when the kernel could not take `path` as the address of a unix socket. */
export function assertUnixSocketPath(path: string): void {
  const length = Buffer.byteLength(path);
  if (length > 0 && length <= UNIX_SOCKET_PATH_MAX_BYTES) return;
  throw new ColobusError(
    "usage",
    `The socket path ${path} has ${length} bytes; a unix socket's path has at most ${UNIX_SOCKET_PATH_MAX_BYTES}.`,
    "Use a run directory with a shorter path.",
  );
}

/**
 * Makes `server` listen on `path`, replacing a dead socket there; or on `inherited`, the descriptor of a socket that listens
 * there already, which stays when the server is closed.
 * Errors: `address-in-use` when something answers at the path, or it is not a socket; `permission-denied`; `not-found`
 * when the directory does not exist; `usage` when the path is too long.
 */
export async function listenOnUnixSocket(server: Server, path: string, inherited?: number): Promise<void> {
  assertUnixSocketPath(path);
  if (inherited === undefined) await removeDeadSocket(path);
  await new Promise<void>((resolve, reject) => {
    const failed = (error: NodeJS.ErrnoException): void => reject(socketError(error, path, "listen on"));
    server.once("error", failed);
    // The socket file is made inside listen(), before it returns.
    withUmask(0o177, () =>
      server.listen(inherited === undefined ? { path } : { fd: inherited }, () => {
        server.off("error", failed);
        resolve();
      }),
    );
  });
}

async function removeDeadSocket(path: string): Promise<void> {
  const found = lookAt(path);
  if (found === undefined) return;
  if (!found.isSocket()) {
    throw new ColobusError(
      "address-in-use",
      `${path} exists and is not a socket.`,
      "Remove the file, or use another run directory.",
    );
  }
  if (await answersAt(path)) {
    throw new ColobusError(
      "address-in-use",
      `Another process answers at ${path}.`,
      "Stop the agent that uses this run directory, or use another run directory.",
    );
  }
  try {
    unlinkSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") {
      throw socketError(error as NodeJS.ErrnoException, path, "replace the dead socket");
    }
  }
}

function lookAt(path: string): Stats | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false });
  } catch (error) {
    throw socketError(error as NodeJS.ErrnoException, path, "look for");
  }
}

/** Whether a process listens at `path`. Errors other than "nobody does" are thrown. */
export function answersAt(path: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const probe = connect({ path });
    probe.once("connect", () => {
      probe.destroy();
      resolve(true);
    });
    probe.once("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "ECONNREFUSED" || error.code === "ENOENT") resolve(false);
      // A full backlog is a process that listens and does not accept just now.
      else if (error.code === "EAGAIN") resolve(true);
      else reject(socketError(error, path, "probe"));
    });
  });
}

function socketError(error: NodeJS.ErrnoException, path: string, doing: string): ColobusError {
  const options = { cause: error };
  switch (error.code) {
    case "EADDRINUSE":
      return new ColobusError(
        "address-in-use",
        `Cannot ${doing} ${path}: it is taken.`,
        "Stop the other process, or use another run directory.",
        options,
      );
    case "EACCES":
    case "EPERM":
      // libuv reports a missing directory as EACCES.
      if (!existsSync(dirname(path))) return directoryMissing(path, doing, error);
      return new ColobusError(
        "permission-denied",
        `Cannot ${doing} ${path}: access is denied.`,
        "Check the owner and mode of the run directory.",
        options,
      );
    case "ENOENT":
      return directoryMissing(path, doing, error);
    default:
      return new ColobusError(
        "io-error",
        `Cannot ${doing} ${path}: ${error.message}.`,
        "Check the run directory.",
        options,
      );
  }
}

function directoryMissing(path: string, doing: string, cause: Error): ColobusError {
  return new ColobusError(
    "not-found",
    `Cannot ${doing} ${path}: the directory does not exist.`,
    "Create the run directory.",
    { cause },
  );
}
