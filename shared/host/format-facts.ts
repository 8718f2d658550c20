import { execFile } from "node:child_process";
import { ColobusError } from "../../proto/errors.ts";
import { FORMAT_SERVER_START_MS } from "../../proto/limits.ts";
import { foreignImageOptions, formatFault, type FormatImage } from "./format-fault.ts";

/** What qemu-img says of an image of a format. */
export interface FormatFacts {
  /** Of the disk that the image holds. */
  readonly sizeBytes: number;
  /** The format places the disk's content in units of this length. */
  readonly unitBytes: number;
}

/**
 * Looks at an image that two hosts use, without writing or locking it, past the page cache. Errors: `not-found` without
 * qemu-img, `image-missing`, `image-format`, `not-supported` without O_DIRECT, and the other reasons not to open it.
 */
export function readFormatFacts(image: FormatImage): Promise<FormatFacts> {
  const args = ["info", "--force-share", "--output=json", foreignImageOptions(image)];
  return new Promise((resolve, reject) => {
    execFile("qemu-img", args, { timeout: FORMAT_SERVER_START_MS }, (error, stdout, stderr) => {
      if (error === null) {
        const facts = tryParseFacts(stdout);
        if (facts === undefined) reject(unknownUnits(image));
        else resolve(facts);
      } else if (error.code === "ENOENT") {
        reject(
          new ColobusError(
            "not-found",
            `${image.format}:${image.path} needs qemu-img, which is not installed`,
            "Install it (Debian: qemu-utils).",
          ),
        );
      } else {
        const said = stderr.trim() === "" ? error.message : stderr.trim();
        reject(
          formatFault(image, said) ??
            new ColobusError("io-error", `qemu-img cannot look at ${image.path}: ${said}`, "Try it by hand."),
        );
      }
    });
  });
}

function tryParseFacts(json: string): FormatFacts | undefined {
  const found = JSON.parse(json) as { "virtual-size"?: unknown; "cluster-size"?: unknown };
  const sizeBytes = found["virtual-size"];
  const unitBytes = found["cluster-size"];
  if (typeof sizeBytes === "number" && typeof unitBytes === "number" && isPowerOfTwo(unitBytes)) {
    return { sizeBytes, unitBytes };
  }
  return undefined;
}

function unknownUnits({ format, path }: FormatImage): ColobusError {
  return new ColobusError(
    "not-supported",
    `qemu-img does not say in what units ${format} places the content of ${path}, and two hosts that use it have to know`,
    "Use a qcow2 image, a raw file or a block device.",
  );
}

function isPowerOfTwo(value: number): boolean {
  return Number.isSafeInteger(value) && value > 0 && Number.isInteger(Math.log2(value));
}
