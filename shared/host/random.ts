/** Randomness as the agents see it. In production it is the kernel's; in the simulator it is seeded. */
export interface Random {
  /** `length` random bytes, fit for identifiers and nonces. */
  bytes(length: number): Buffer;
  /** A number in [0, 1), for jitter. */
  fraction(): number;
}
