/** Turns the kernel's error numbers into the typed faults of the error table. */
import { constants } from "node:os";
import { getSystemErrorMap } from "node:util";
import { ColobusError, type ErrorCode } from "../../proto/errors.ts";

const ERRNO = constants.errno;
const NAMES = new Map(Object.entries(ERRNO).map(([name, errno]) => [errno, name]));
// libuv, whose texts Node uses, has none for these.
const TEXTS = new Map<number, string>([
  [ERRNO.EDQUOT, "disk quota exceeded"],
  [ERRNO.ENOLCK, "no locks available"],
  [ERRNO.ESTALE, "stale file handle"],
]);

const CODES = new Map<number, ErrorCode>([
  [ERRNO.ENOSPC, "out-of-space"],
  [ERRNO.EDQUOT, "out-of-space"],
  [ERRNO.EFBIG, "out-of-space"],
  [ERRNO.EACCES, "permission-denied"],
  [ERRNO.EPERM, "permission-denied"],
  [ERRNO.EROFS, "permission-denied"],
  [ERRNO.ENOENT, "not-found"],
]);

function actionFor(errno: number, path: string): string {
  switch (errno) {
    case ERRNO.ENOSPC:
      return `Free space in the file system of ${path}, or enlarge it.`;
    case ERRNO.EDQUOT:
      return `Free space in the file system of ${path}, or raise the quota of the agent's user.`;
    case ERRNO.EFBIG:
      return `Use a file system that can hold a file of this size, or raise the file size limit of the process (ulimit -f).`;
    case ERRNO.EACCES:
    case ERRNO.EPERM:
      return `Give the user that runs the agent access to ${path}.`;
    case ERRNO.EROFS:
      return `Mount the file system of ${path} writable.`;
    case ERRNO.ENOENT:
      return `Check that ${path} is the right path and that its directory exists.`;
    case ERRNO.EEXIST:
      return `Remove ${path}, or choose another name.`;
    case ERRNO.ENOTDIR:
      return `Choose a path whose directories are none of them files.`;
    case ERRNO.EMFILE:
    case ERRNO.ENFILE:
      return `Raise the limit of open files (ulimit -n).`;
    default:
      return `Look for errors of the device or file system of ${path} in the kernel's log.`;
  }
}

/** `no space left on device (ENOSPC)` */
export function errnoText(errno: number): string {
  const known = getSystemErrorMap().get(-errno);
  const text = known?.[1] ?? TEXTS.get(errno) ?? "unknown error";
  return `${text} (${known?.[0] ?? NAMES.get(errno) ?? errno})`;
}

/**
 * The fault for a failed call. `what` says what was tried, as in `cannot write 4096 bytes at 8192 of /x/y`; `errno` is
 * the positive error number.
 */
export function osError(what: string, path: string, errno: number, cause?: unknown): ColobusError {
  const code = CODES.get(errno) ?? "io-error";
  const options = cause === undefined ? undefined : { cause };
  return new ColobusError(code, `${what}: ${errnoText(errno)}`, actionFor(errno, path), options);
}

/** The same for an exception of `node:fs`; anything else that was thrown is a bug, and is thrown on. */
export function fsError(what: string, path: string, thrown: unknown): ColobusError {
  const errno = errnoOf(thrown);
  if (errno === undefined) throw thrown;
  return osError(what, path, errno, thrown);
}

/** The positive error number of an exception of `node:fs`; undefined for any other value. */
export function errnoOf(thrown: unknown): number | undefined {
  if (!(thrown instanceof Error) || !("errno" in thrown) || typeof thrown.errno !== "number") return undefined;
  return Math.abs(thrown.errno);
}
