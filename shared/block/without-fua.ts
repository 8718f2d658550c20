import type { WriteFlags } from "./block-device.ts";

const OWN: WriteFlags = { fua: false, isLent: false };
const LENT: WriteFlags = { fua: false, isLent: true };

/** The flags of a part of a write, or of a copy of it, which is made durable as a whole. */
export function withoutFua({ isLent }: Pick<WriteFlags, "isLent">): WriteFlags {
  return isLent === true ? LENT : OWN;
}
