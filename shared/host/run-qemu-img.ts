import { execFile, type ExecFileException } from "node:child_process";
import { ColobusError } from "../../proto/errors.ts";
import { withUmask } from "./umask.ts";

/** What to say when it fails: `doing` completes "cannot …", and `action` is what to do by hand. */
export interface QemuImgTask {
  readonly doing: string;
  readonly action: string;
}

/**
 * Runs `qemu-img`. What it makes is its owner's alone, as every file with a disk's content. Errors: `not-found` where it is
 * not installed, `io-error`.
 */
export function runQemuImg(args: readonly string[], task: QemuImgTask): Promise<void> {
  return new Promise((resolve, reject) => {
    withUmask(0o077, () =>
      execFile("qemu-img", args, (error, _, stderr) => {
        if (error === null) resolve();
        else reject(qemuImgError(error, stderr.trim(), task));
      }),
    );
  });
}

function qemuImgError(error: ExecFileException, said: string, { doing, action }: QemuImgTask): ColobusError {
  if (error.code === "ENOENT") {
    return new ColobusError(
      "not-found",
      `to ${doing} takes qemu-img, which is not installed`,
      `Install it (Debian: qemu-utils). ${action}`,
    );
  }
  return new ColobusError("io-error", `cannot ${doing}: ${said === "" ? error.message : said}`, action);
}
