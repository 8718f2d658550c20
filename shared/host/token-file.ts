import { readFileSync, statSync } from "node:fs";
import { ColobusError } from "../../proto/errors.ts";

const TOKEN_MIN_BYTES = 16;
const TOKEN_MAX_BYTES = 4096;

export interface Login {
  readonly name: string;
  readonly password: string;
}

/** A secret: the file's content without the white space around it. Errors: `usage`, naming `flag`. */
export function readToken(path: string, flag: string): Buffer {
  const token = Buffer.from(readSecret(path, flag, "token"), "utf8");
  if (token.length < TOKEN_MIN_BYTES || token.length > TOKEN_MAX_BYTES) {
    throw new ColobusError(
      "usage",
      `the token in ${path} has ${token.length} bytes; it must have ${TOKEN_MIN_BYTES} to ${TOKEN_MAX_BYTES}`,
      "Make one with `openssl rand -hex 32`, and put the same into the file on the other side.",
    );
  }
  assertPrivate(path, "token");
  return token;
}

/** A name and a password, as `NAME:PASSWORD`. Errors: `usage`, naming `flag`. */
export function readLogin(path: string, flag: string): Login {
  const [, name, password] = /^([^:]+):(.+)$/s.exec(readSecret(path, flag, "user")) ?? [];
  if (name === undefined || password === undefined) {
    throw new ColobusError("usage", `the user file ${path} has no user`, "Write one line into it: NAME:PASSWORD.");
  }
  assertPrivate(path, "user");
  return { name, password };
}

function readSecret(path: string, flag: string, what: string): string {
  try {
    return readFileSync(path, "utf8").trim();
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new ColobusError("usage", `the ${what} file cannot be read: ${why}`, `Check ${flag}.`, { cause: error });
  }
}

function assertPrivate(path: string, what: string): void {
  if ((statSync(path).mode & 0o007) === 0) return;
  throw new ColobusError("usage", `the ${what} file ${path} is accessible to others`, `Run \`chmod 600 ${path}\`.`);
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
