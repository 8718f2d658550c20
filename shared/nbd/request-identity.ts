import type { RequestHeader } from "../../proto/nbd-protocol.ts";

/** What a request that is still under way needs to be answered. */
export interface RequestIdentity {
  readonly type: number;
  readonly flags: number;
  readonly cookieHigh: number;
  readonly cookieLow: number;
  readonly length: number;
}

export function identityOf({ type, flags, cookieHigh, cookieLow, length }: Readonly<RequestHeader>): RequestIdentity {
  return { type, flags, cookieHigh, cookieLow, length };
}
