/** How many lives a test lives: what its variable says, else more in CI than here. */
export function livesToLive(
  variable: string,
  { inCi, here }: { readonly inCi: number; readonly here: number },
): number {
  return Number(process.env[variable] ?? (process.env.CI === "true" ? inCi : here));
}

/** The seeds from 1 on in groups, so that each test ends in good time. */
export function lifeGroups(lives: number, size: number): { readonly from: number; readonly to: number }[] {
  return Array.from({ length: Math.ceil(lives / size) }, (_, index) => ({
    from: 1 + index * size,
    to: Math.min(lives, (index + 1) * size),
  }));
}
