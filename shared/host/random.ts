/** Randomness as the agents see it. In production it is the kernel's; in the simulator it is seeded. */
export interface Random {
  /** `length` random bytes, fit for identifiers and nonces. */
  bytes(length: number): Buffer;
  /** A number in [0, 1), for jitter. */
  fraction(): number;
}

/** 128 random bits in hexadecimal: what an agent, a lineage or a pairing is told apart by. */
export function newId(random: Random): string {
  return random.bytes(16).toString("hex");
}
