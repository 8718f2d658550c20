import { ColobusError } from "../../proto/errors.ts";
import type { Clock } from "./clock.ts";
import type { Log } from "./log.ts";
import { readPrivateFile } from "./private-file.ts";
import { WatchedFiles } from "./watched-files.ts";

const FLAG = "--nbd-psk-file";
/** OpenSSL takes no longer names of any release. */
const USER_MAX_BYTES = 128;
const KEY_MIN_BYTES = 16;
const KEY_MAX_BYTES = 64;
/** GnuTLS reads what begins with `#` as a name in hexadecimal. */
const LINE = /^(?<user>[^#:\s\p{Cc}][^:\s\p{Cc}]*):(?<digits>(?:[0-9A-Fa-f]{2})+)$/u;

/** The pre-shared keys of clients, by their users' names. */
export type PskKeys = WatchedFiles<ReadonlyMap<string, Buffer>>;

/** Reads the keys in a file. Errors: `usage`, naming the line that is wrong. */
export function openPskKeys(path: string, clock: Clock, log: Log): PskKeys {
  const load = (): ReadonlyMap<string, Buffer> => parseKeys(readPrivateFile(path, "key", FLAG).toString("utf8"), path);
  return new WatchedFiles({ paths: [path], load, clock, log });
}

/** The keys of a file as GnuTLS's `psktool` writes it: a line `USER:KEY` for each, the key in hexadecimal. Errors: `usage`. */
function parseKeys(text: string, path: string): ReadonlyMap<string, Buffer> {
  const keys = new Map<string, Buffer>();
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (line === "") continue;
    const { user = "", digits = "" } = LINE.exec(line)?.groups ?? {};
    const key = Buffer.from(digits, "hex");
    const fault = keys.has(user) ? `names the user ${user} again` : faultOf(user, key);
    if (fault !== undefined) throw unusable(`line ${index + 1} of ${path} ${fault}`);
    keys.set(user, key);
  }
  if (keys.size === 0) throw unusable(`${path} has no keys`);
  return keys;
}

function faultOf(user: string, { length }: Buffer): string | undefined {
  if (length === 0) return "is not USER:KEY, with the key in hexadecimal";
  if (length < KEY_MIN_BYTES || length > KEY_MAX_BYTES) {
    return `has a key of ${length} bytes; it must have ${KEY_MIN_BYTES} to ${KEY_MAX_BYTES}`;
  }
  return Buffer.byteLength(user) > USER_MAX_BYTES ? `names a user with more than ${USER_MAX_BYTES} bytes` : undefined;
}

function unusable(what: string): ColobusError {
  return new ColobusError("usage", what, `Check ${FLAG}; \`psktool --username NAME --pskfile FILE\` adds a key.`);
}
