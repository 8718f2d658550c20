import { dirname } from "node:path";
import { runQemuImg } from "./run-qemu-img.ts";
import type { Storage } from "./storage.ts";

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
  await runQemuImg(["create", "-q", "-f", format, unfinished, String(sizeBytes)], {
    doing: `make the image ${path}`,
    action: "Make it yourself with `qemu-img create`, and see what it says.",
  });
  const file = storage.open(unfinished, { kind: "image", create: "never" });
  try {
    await file.sync();
    storage.rename(unfinished, path);
  } finally {
    file.close();
  }
  await storage.syncDirectory(dirname(path));
}
