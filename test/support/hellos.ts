import type { Greeting, Hello } from "../../proto/replication-messages.ts";
import { AGENT_VERSION, REPLICATION_PROTOCOL_VERSION } from "../../proto/versions.ts";

/** A greeting of somebody without a token, with `changes`. */
export function someGreeting(changes: Partial<Greeting> = {}): Greeting {
  return {
    protocol: REPLICATION_PROTOCOL_VERSION,
    nonce: Buffer.alloc(16, 1),
    hasToken: false,
    probe: false,
    ...changes,
  };
}

/** The hello of a primary of "vm1" with one disk of 1 MiB, with `changes`. */
export function primaryHello(changes: Partial<Hello> = {}): Hello {
  return {
    agentVersion: AGENT_VERSION,
    agentId: "a".repeat(32),
    vm: "vm1",
    mode: "colo",
    role: "Primary",
    ack: "async",
    clusterBytes: 4096,
    windowBytes: 1_048_576,
    disks: [{ name: "vda", sizeBytes: 1_048_576 }],
    lineage: "1".repeat(32),
    committed: 0,
    prepared: [],
    epochSeen: 0,
    shared: true,
    ancestors: [],
    heard: [],
    pairing: null,
    tracks: null,
    outdated: false,
    discardsOwn: false,
    handOver: null,
    changedBytes: 0,
    assumeInSync: false,
    ...changes,
  };
}

/** The hello of a new secondary that fits `primaryHello`, with `changes`. */
export function secondaryHello(changes: Partial<Hello> = {}): Hello {
  return primaryHello({
    agentId: "b".repeat(32),
    role: "Secondary",
    lineage: null,
    ...changes,
  });
}
