import { createReadStream, createWriteStream, type WriteStream } from "node:fs";
import { mkdtemp, realpath, rename, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
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
 * an error, which is passed on, everything under that name is as it was; but what is no regular file is written to as it is.
 */
export async function writeContent(content: Readable, path: string, bytes: number): Promise<number> {
  const target = await fileToReplace(path);
  let written = 0;
  const write = async (out: WriteStream): Promise<void> => {
    await pipeline(content, out);
    written = out.bytesWritten;
  };
  if (target === undefined) await write(createWriteStream(path));
  else {
    await replaceFile(target, async (part) => {
      await write(createWriteStream(part, { flags: "wx", mode: 0o600, flush: true }));
      return written === bytes;
    });
  }
  return written;
}

/** Copies the finished file at `from` to `path`, for its owner only; what is no regular file there is written to. */
export async function putFile(from: string, path: string): Promise<void> {
  const { size } = await stat(from);
  await writeContent(createReadStream(from), path, size);
}

/** The file that a new one at `path` takes the place of, or would; undefined: a device, a pipe, or another that stays. */
async function fileToReplace(path: string): Promise<string | undefined> {
  try {
    return (await stat(path)).isFile() ? await realpath(path) : undefined;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return path;
    throw error;
  }
}

/** Has `fill` write a file of its own beside `path`, which takes its place where `fill` finds it whole. */
async function replaceFile(path: string, fill: (part: string) => Promise<boolean>): Promise<void> {
  const directory = await mkdtemp(join(dirname(path), ".colobus-")); // others cannot foresee its name, nor look into it
  try {
    const part = join(directory, "part");
    if (await fill(part)) await rename(part, path);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
