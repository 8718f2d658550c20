import { createHash, createHmac, timingSafeEqual } from "node:crypto";

/** Who dials, and who is dialled: what one has proved is no proof of the other's. */
export type LinkEnd = "dialler" | "listener";

const NOTHING = Buffer.alloc(0);

/**
 * What the two sides of one session prove to each other of a pre-shared token, which never crosses the link: a MAC is bound to both
 * greetings, and by their nonces to this session, and to the side that has made it. Without a token all of them are empty.
 */
export class TokenProofs {
  readonly #token: Buffer | undefined;
  readonly #greetings: Buffer;

  /** `dialler` and `listener` are the two greetings as they were sent. */
  constructor(token: Buffer | undefined, greetings: Readonly<Record<LinkEnd, Buffer>>) {
    this.#token = token;
    this.#greetings = Buffer.concat([digestOf(greetings.dialler), digestOf(greetings.listener)]);
  }

  /** That this end holds the token. */
  proof(of: LinkEnd): Buffer {
    return this.#mac(`colobus proof 1 ${of}`, NOTHING);
  }

  /** That this end, and nobody else, has said `hello`, and in this session. */
  seal(of: LinkEnd, hello: Buffer): Buffer {
    return this.#mac(`colobus seal 1 ${of}`, digestOf(hello));
  }

  #mac(what: string, said: Buffer): Buffer {
    if (this.#token === undefined) return NOTHING;
    return createHmac("sha256", this.#token).update(what).update(this.#greetings).update(said).digest();
  }
}

/** Whether the two MACs are the same, in a time that does not tell where they differ. */
export function isSameMac(left: Uint8Array, right: Uint8Array): boolean {
  return left.length === right.length && timingSafeEqual(left, right);
}

function digestOf(bytes: Buffer): Buffer {
  return createHash("sha256").update(bytes).digest();
}
