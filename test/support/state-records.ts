import type { StateRecord } from "../../proto/state-record.ts";

/** The record of a new secondary, with `changes`. */
export function stateRecord(changes: Partial<StateRecord> = {}): StateRecord {
  return {
    agentId: "0123456789abcdef0123456789abcdef",
    vm: "vm1",
    mode: "colo",
    role: "Secondary",
    durability: "process",
    clusterBytes: 4096,
    lineage: null,
    history: { origin: "created", shared: false, ancestors: [], heard: [] },
    pairing: null,
    tracks: null,
    outdated: false,
    discardsOwn: false,
    handOver: null,
    peers: [],
    disks: [],
    epochReserved: 0,
    unflushedThrough: 0,
    committed: { epoch: 0, atMs: 0 },
    prepared: [],
    retained: [],
    merge: null,
    lostSyncs: [],
    replaysOwed: [],
    mirrors: [],
    bootId: "boot-1",
    ...changes,
  };
}
