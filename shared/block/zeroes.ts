const ZEROES = Buffer.alloc(1024 * 1024);

/** Whether all bytes are zero. */
export function isZero(bytes: Uint8Array): boolean {
  for (let at = 0; at < bytes.length; at += ZEROES.length) {
    const length = Math.min(ZEROES.length, bytes.length - at);
    if (ZEROES.compare(bytes, at, at + length, 0, length) !== 0) return false;
  }
  return true;
}
