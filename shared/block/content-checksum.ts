import { hash } from "node:crypto";
import { isZero } from "./zeroes.ts";

/** That of zeroes, however many. */
export const CHECKSUM_OF_ZEROES = Buffer.alloc(0);

/**
 * What two copies of a range are compared by: SHA-256, of which processors have instructions, so that it is the fastest of
 * Node's besides CRC-32, and no two contents of one disk have the same. Zeroes have none: a hole need not be read.
 */
export function checksumOf(content: Uint8Array): Buffer {
  return isZero(content) ? CHECKSUM_OF_ZEROES : hash("sha256", content, "buffer");
}
