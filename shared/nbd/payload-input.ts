/**
 * Where the payloads of one connection's writes lie while the disk works with them: each input buffer is held until the
 * requests are done whose payload, or a piece of it, is in it. That of a request that fails, or is given up, is never
 * released: the disk may still read it.
 */
import { COMMAND_FLAG } from "../../proto/nbd-protocol.ts";
import type { RequestHeader } from "../../proto/nbd-protocol.ts";
import type { OpenWrite, WriteFlags } from "../block/block-device.ts";
import type { InputBuffer } from "./input-buffers.ts";

type FlagsOfWrites = Readonly<Record<"plain" | "fua", WriteFlags>>;

const OWN: FlagsOfWrites = { plain: { fua: false }, fua: { fua: true } };
const LENT: FlagsOfWrites = { plain: { fua: false, isLent: true }, fua: { fua: true, isLent: true } };

/** Holds of one request. */
export type HeldInput = readonly InputBuffer[];

export const NO_INPUT: HeldInput = [];

export function releaseAll(input: HeldInput): void {
  for (const buffer of input) buffer.release();
}

export class PayloadInput {
  /** In which the bytes lie that are parsed now; undefined: in memory that nobody wants back, as all of this connection's. */
  #arriving: InputBuffer | undefined;
  /** In which the payload of the open write lies, as far as it has come. */
  #open: InputBuffer[] = [];

  flagsOf({ flags }: Readonly<RequestHeader>): WriteFlags {
    const { plain, fua } = this.#arriving === undefined ? OWN : LENT;
    return (flags & COMMAND_FLAG.FUA) === 0 ? plain : fua;
  }

  /** What is parsed from now on lies in `input`, which the caller holds meanwhile. */
  arrivesIn(input: InputBuffer | undefined): void {
    this.#arriving = input;
  }

  /** Holds what is parsed now, for a write whose payload lies in it as a whole. */
  hold(): HeldInput {
    if (this.#arriving === undefined) return NO_INPUT;
    this.#arriving.hold();
    return [this.#arriving];
  }

  /** Holds what is parsed now, for the open write. */
  holdForOpen(): void {
    const input = this.#arriving;
    if (input === undefined || this.#open.at(-1) === input) return;
    input.hold();
    this.#open.push(input);
  }

  /** The pieces of the open write so far are done with, unless the disk is still writing some. */
  pushed(open: OpenWrite): void {
    if (open.isBehind?.() !== true) releaseAll(this.takeOpen());
  }

  /** What is held for the open write, which needs it no longer. */
  takeOpen(): HeldInput {
    const input = this.#open;
    this.#open = [];
    return input;
  }
}
