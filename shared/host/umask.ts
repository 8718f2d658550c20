/** Runs `begin` under the mask. Nobody else's files are made under it as long as `begin` makes its own, or starts its program, at once. */
export function withUmask<T>(mask: number, begin: () => T): T {
  const before = process.umask(mask);
  try {
    return begin();
  } finally {
    process.umask(before);
  }
}
