import { ColobusError } from "../../proto/errors.ts";
import { readPrivateFile } from "./private-file.ts";
import { chanceBits } from "./secret-strength.ts";

const TOKEN_MIN_BYTES = 16;
const TOKEN_MAX_BYTES = 4096;
/** Who is between the two agents, or pretends to be the one that is dialled, can try tokens for as long as he likes. */
const TOKEN_MIN_BITS = 80;
const MAKE_ONE = "Make one with `openssl rand -hex 32`, and put the same into the file on the other side.";

export interface Login {
  readonly name: string;
  readonly password: string;
}

/**
 * A secret that nobody can guess: the file's content without the white space around it. Errors: `usage`, naming `flag`, also
 * where it is short or plainly not random.
 */
export function readToken(path: string, flag: string): Buffer {
  const text = readSecret(path, "token", flag);
  const token = Buffer.from(text, "utf8");
  if (token.length < TOKEN_MIN_BYTES || token.length > TOKEN_MAX_BYTES) {
    throw new ColobusError(
      "usage",
      `the token in ${path} has ${token.length} bytes; it must have ${TOKEN_MIN_BYTES} to ${TOKEN_MAX_BYTES}`,
      MAKE_ONE,
    );
  }
  const bits = Math.floor(chanceBits(text));
  if (bits < TOKEN_MIN_BITS) {
    throw new ColobusError(
      "usage",
      `the token in ${path} is too easy to guess: it has ${bits} bits of chance at most, and ${TOKEN_MIN_BITS} are the least`,
      MAKE_ONE,
    );
  }
  return token;
}

/** A name and a password, as `NAME:PASSWORD`. Errors: `usage`, naming `flag`. */
export function readLogin(path: string, flag: string): Login {
  const [, name, password] = /^([^:]+):(.+)$/s.exec(readSecret(path, "user", flag)) ?? [];
  if (name === undefined || password === undefined) {
    throw new ColobusError("usage", `the user file ${path} has no user`, "Write one line into it: NAME:PASSWORD.");
  }
  return { name, password };
}

function readSecret(path: string, what: string, flag: string): string {
  return readPrivateFile(path, what, flag).toString("utf8").trim();
}

/** The same for a secret that is sent in a header: printable, and in one piece. */
export function readBearerToken(path: string, flag: string): Buffer {
  const token = readToken(path, flag);
  if (/^[\x21-\x7e]+$/.test(token.toString("utf8"))) return token;
  throw new ColobusError(
    "usage",
    `the token in ${path} has characters that cannot be sent`,
    "Make one with `openssl rand -hex 32`.",
  );
}
