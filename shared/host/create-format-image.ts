import { execFile, type ExecFileException } from "node:child_process";
import { dirname } from "node:path";
import { ColobusError } from "../../proto/errors.ts";
import type { Storage } from "./storage.ts";
import { withUmask } from "./umask.ts";

/**
 * Makes an image of a format that reads as zeroes; durable, name and content, when the promise resolves. A crash on the
 * way leaves no image, at most a file beside its place that the next try replaces. Errors: `not-found` without qemu-img,
 * those of the storage, `io-error`.
 */
export async function createFormatImage(
  storage: Storage,
  format: string,
  path: string,
  sizeBytes: number,
): Promise<void> {
  const unfinished = `${path}.creating`;
  await runQemuImg(["create", "-q", "-f", format, unfinished, String(sizeBytes)], path);
  const file = storage.open(unfinished, { kind: "image", create: "never" });
  try {
    await file.sync();
    storage.rename(unfinished, path);
  } finally {
    file.close();
  }
  await storage.syncDirectory(dirname(path));
}

/** What it makes is its owner's alone, as every file with a disk's content. */
function runQemuImg(args: readonly string[], path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    withUmask(0o077, () =>
      execFile("qemu-img", args, (error, _, stderr) => {
        if (error === null) resolve();
        else reject(qemuImgError(error, stderr.trim(), path));
      }),
    );
  });
}

function qemuImgError(error: ExecFileException, said: string, path: string): ColobusError {
  if (error.code === "ENOENT") {
    return new ColobusError(
      "not-found",
      `to make ${path} takes qemu-img, which is not installed`,
      "Install it (Debian: qemu-utils), or make the image yourself.",
    );
  }
  const action = `Make it yourself with \`qemu-img create\`, and see what it says.`;
  return new ColobusError("io-error", `cannot make the image ${path}: ${said === "" ? error.message : said}`, action);
}
