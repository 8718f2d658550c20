/** What a disk should hold, byte for byte, under the operations of NBD clients. */
import type { SeededRandom } from "../sim/seeded-random.ts";
import type { NbdClient } from "./nbd-tools.ts";

export interface DiskChange {
  readonly kind: "write" | "zero" | "trim";
  readonly offset: number;
  readonly length: number;
  readonly pattern: Buffer;
}

/** A change of an odd range, now and then a long one. */
export function randomChange(random: SeededRandom, sizeBytes: number): DiskChange {
  const length = 1 + random.below(random.chance(0.2) ? 200_000 : 20_000);
  const offset = random.below(sizeBytes - length);
  const kind = random.pick(["write", "write", "write", "zero", "trim"] as const);
  return { kind, offset, length, pattern: Buffer.of(1 + random.below(255)) };
}

export function applyToModel(content: Buffer, { kind, offset, length, pattern }: DiskChange): void {
  content.fill(kind === "write" ? pattern : 0, offset, offset + length);
}

export async function applyToDisk(client: NbdClient, { kind, offset, length, pattern }: DiskChange): Promise<void> {
  if (kind === "write") await client.write({ offset, length }, pattern);
  else if (kind === "zero") await client.zero({ offset, length });
  else await client.trim({ offset, length });
}
