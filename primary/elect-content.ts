/** What a vote over the contents of several copies came to; `losers` are indexes of copies that read something else. */
export type Election =
  | { readonly kind: "elected"; readonly content: Uint8Array; readonly losers: readonly number[] }
  | { readonly kind: "failed"; readonly versions: number };

/**
 * The content that most copies have, if at least `threshold` do, and no other has as many. undefined stands for a copy that
 * could not be read.
 */
export function electContent(contents: readonly (Uint8Array | undefined)[], threshold: number): Election {
  const versions: { readonly content: Uint8Array; readonly voters: number[] }[] = [];
  for (const [index, content] of contents.entries()) {
    if (content === undefined) continue;
    const same = versions.find((version) => Buffer.compare(version.content, content) === 0);
    if (same === undefined) versions.push({ content, voters: [index] });
    else same.voters.push(index);
  }
  versions.sort((one, other) => other.voters.length - one.voters.length);
  const [winner, second] = versions;
  const isTie = second !== undefined && second.voters.length === winner?.voters.length;
  if (winner === undefined || winner.voters.length < threshold || isTie)
    return { kind: "failed", versions: versions.length };
  return { kind: "elected", content: winner.content, losers: versions.slice(1).flatMap(({ voters }) => voters) };
}

/** Where two contents of the same length begin to differ. */
export function firstDifference(one: Uint8Array, other: Uint8Array): number {
  return one.findIndex((byte, at) => byte !== other[at]);
}
