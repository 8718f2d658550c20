import { createReadStream, createWriteStream } from "node:fs";
import { rm } from "node:fs/promises";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { connect } from "node:net";

/** The bytes of a file that an operator names for a command to read; `-` is stdin. Errors come with the stream. */
export function openContent(path: string): Readable {
  return path === "-" ? process.stdin : createReadStream(path);
}

/** Sends `content` to whoever listens on the unix socket at `path`, and resolves with the number of bytes. */
export async function sendContent(content: Readable, path: string): Promise<number> {
  let sent = 0;
  content.on("data", (chunk: Buffer) => {
    sent += chunk.length;
  });
  await pipeline(content, connect({ path }));
  return sent;
}

/** Removes the name of a socket that its listener has left. */
export function removeSocket(path: string): Promise<void> {
  return rm(path, { force: true });
}

/**
 * Writes `content` to the file, for its owner only, and resolves with the number of bytes. Where that is not `bytes`, or on
 * an error, which is passed on, no file is left.
 */
export async function writeContent(content: Readable, path: string, bytes: number): Promise<number> {
  let written = 0;
  content.on("data", (chunk: Buffer) => {
    written += chunk.length;
  });
  try {
    await pipeline(content, createWriteStream(path, { mode: 0o600 }));
  } catch (error) {
    await rm(path, { force: true });
    throw error;
  }
  if (written !== bytes) await rm(path, { force: true });
  return written;
}
