/** Each kind of character, and how many there are of it. */
const KINDS: readonly (readonly [RegExp, number])[] = [
  [/[0-9]/, 10],
  [/[a-z]/, 26],
  [/[A-Z]/, 26],
  [/[^0-9a-zA-Z]/, 33],
];
const HEXADECIMAL = /^([0-9a-f]+|[0-9A-F]+)$/;
const HEXADECIMAL_DIGITS = 16;

/**
 * How many bits of chance a secret can have at most, for what can be seen of it. A character counts as one of its secret's
 * kinds; where it follows the one before as it did earlier, or goes on in a row (`aaa`, `345`), it counts nothing. So what is
 * short, repeated or typed in a row is found out. A sentence is taken for more than it is: that can only be asked not to be used.
 */
export function chanceBits(secret: string): number {
  const kinds = KINDS.filter(([kind]) => kind.test(secret));
  const symbols = HEXADECIMAL.test(secret) ? HEXADECIMAL_DIGITS : kinds.reduce((sum, [, count]) => sum + count, 0);
  const seen = new Set<string>();
  let surprising = 0;
  for (let index = 0; index < secret.length; index += 1) {
    const pair = secret.slice(Math.max(index - 1, 0), index + 1);
    if (!seen.has(pair) && !isInRow(secret, index)) surprising += 1;
    seen.add(pair);
  }
  return surprising * Math.log2(symbols);
}

/** Whether the character is as far from the one before as that was from the one before it, and that is next to nothing. */
function isInRow(secret: string, index: number): boolean {
  if (index < 2) return false;
  const step = secret.charCodeAt(index) - secret.charCodeAt(index - 1);
  return Math.abs(step) <= 1 && step === secret.charCodeAt(index - 1) - secret.charCodeAt(index - 2);
}
