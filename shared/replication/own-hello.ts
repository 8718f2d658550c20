import type { Hello } from "../../proto/replication-messages.ts";
import type { StateRecord } from "../../proto/state-record.ts";
import { AGENT_VERSION, REPLICATION_PROTOCOL_OLDEST, REPLICATION_PROTOCOL_VERSION } from "../../proto/versions.ts";
import type { Random } from "../host/random.ts";
import { historyFieldsOf } from "./lineage.ts";
import type { PeerTracking } from "./peer-tracking.ts";

/** The parts of a hello in which what a side says depends on its role. */
type RoleFields = "role" | "ack" | "disks" | "committed" | "prepared" | "epochSeen" | "assumeInSync";

export interface OwnHelloOptions {
  readonly tracking: PeerTracking;
  readonly random: Random;
  readonly token: Buffer | undefined;
  readonly windowBytes: number;
}

/** What an agent says of itself in either role, with a new nonce. */
export function ownHello(record: StateRecord, options: OwnHelloOptions): Omit<Hello, RoleFields> {
  const { tracking, random, token, windowBytes } = options;
  return {
    ...historyFieldsOf(record),
    // A bitmap that could not be read or written proves nothing, whatever the record says.
    tracks: tracking.peer,
    changedBytes: tracking.bytes,
    protocol: REPLICATION_PROTOCOL_VERSION,
    ...(REPLICATION_PROTOCOL_OLDEST < REPLICATION_PROTOCOL_VERSION
      ? { protocolOldest: REPLICATION_PROTOCOL_OLDEST }
      : {}),
    agentVersion: AGENT_VERSION,
    vm: record.vm,
    mode: record.mode,
    clusterBytes: record.clusterBytes,
    windowBytes,
    nonce: random.bytes(16),
    hasToken: token !== undefined,
    probe: false,
  };
}
