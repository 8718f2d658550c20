/** What a disk may hold: every state since the last flush, as after a loss of power each byte is from one of them. */
export class VolatileModel {
  #versions: Buffer[];

  constructor(content: Buffer) {
    this.#versions = [Buffer.from(content)];
  }

  /** What a reader must see. */
  get content(): Buffer {
    return this.#versions.at(-1) ?? Buffer.alloc(0);
  }

  change(bytes: Uint8Array, offset: number): void {
    const next = Buffer.from(this.content);
    next.set(bytes, offset);
    this.#versions.push(next);
  }

  flushed(): void {
    this.#versions = [this.content];
  }

  /** Takes `found` as what a loss of power has left; throws where it cannot be. */
  lostPower(found: Buffer): void {
    for (const [index, byte] of found.entries()) {
      if (!this.#versions.some((version) => version[index] === byte)) {
        throw new Error(`byte ${index} is ${byte}, which it never was since the last flush`);
      }
    }
    this.#versions = [Buffer.from(found)];
  }
}

/** Says where two buffers differ; undefined when they are equal. */
export function firstDifference(found: Buffer, expected: Buffer): string | undefined {
  if (found.equals(expected)) return undefined;
  const at = found.findIndex((byte, index) => byte !== expected[index]);
  return `byte ${at} is ${found[at]}, not ${expected[at]}`;
}
