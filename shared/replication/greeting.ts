import { NONCE_BYTES, type Greeting } from "../../proto/replication-messages.ts";
import { REPLICATION_PROTOCOL_OLDEST, REPLICATION_PROTOCOL_VERSION } from "../../proto/versions.ts";
import type { Random } from "../host/random.ts";

/** What an agent says to whoever is on the line, with a new nonce. */
export function newGreeting(random: Random, says: Pick<Greeting, "hasToken" | "probe">): Greeting {
  return {
    ...says,
    protocol: REPLICATION_PROTOCOL_VERSION,
    ...(REPLICATION_PROTOCOL_OLDEST < REPLICATION_PROTOCOL_VERSION
      ? { protocolOldest: REPLICATION_PROTOCOL_OLDEST }
      : {}),
    nonce: random.bytes(NONCE_BYTES),
  };
}
