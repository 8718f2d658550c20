import type { Hello } from "../../proto/replication-messages.ts";
import type { StateRecord } from "../../proto/state-record.ts";
import { AGENT_VERSION } from "../../proto/versions.ts";
import { historyFieldsOf } from "./lineage.ts";
import type { PeerTracking } from "./peer-tracking.ts";

/** The parts of a hello in which what a side says depends on its role. */
type RoleFields = "role" | "ack" | "disks" | "committed" | "prepared" | "epochSeen" | "assumeInSync";

export interface OwnHelloOptions {
  readonly tracking: PeerTracking;
  readonly windowBytes: number;
}

/** What an agent says of itself in either role. */
export function ownHello(record: StateRecord, options: OwnHelloOptions): Omit<Hello, RoleFields> {
  const { tracking, windowBytes } = options;
  return {
    ...historyFieldsOf(record),
    // A bitmap that could not be read or written proves nothing, whatever the record says.
    tracks: tracking.peer,
    changedBytes: tracking.bytes,
    agentVersion: AGENT_VERSION,
    vm: record.vm,
    mode: record.mode,
    clusterBytes: record.clusterBytes,
    windowBytes,
  };
}
