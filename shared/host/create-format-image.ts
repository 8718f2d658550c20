import { dirname } from "node:path";
import { runQemuImg } from "./run-qemu-img.ts";
import type { Storage } from "./storage.ts";

/**
 * Makes an image of a format that reads as zeroes; durable, name and content, when the promise resolves. A crash on the
 * way leaves no image, at most a name beside its place that the next try removes. What has come by the name meanwhile is not
 * replaced. One at a time for a path. Errors: `not-found` without qemu-img, those of the storage, `io-error`.
 */
export async function createFormatImage(
  storage: Storage,
  format: string,
  path: string,
  sizeBytes: number,
): Promise<void> {
  const unfinished = `${path}.creating`;
  // qemu-img would make it in the file, which may be an image that is whole, and lies elsewhere by now.
  if (storage.exists(unfinished)) storage.remove(unfinished);
  await runQemuImg(["create", "-q", "-f", format, unfinished, String(sizeBytes)], {
    doing: `make the image ${path}`,
    action: "Make it yourself with `qemu-img create`, and see what it says.",
  });
  const file = storage.open(unfinished, { kind: "image", create: "never" });
  try {
    await file.sync();
    storage.renameNew(unfinished, path);
  } finally {
    file.close();
  }
  await storage.syncDirectory(dirname(path));
}
