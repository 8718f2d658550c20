import { newChild, newLocalChild } from "../primary/recorded-quorum.ts";
import type { RecordedQuorum, StateRecord } from "../proto/state-record.ts";
import type { AgentConfig } from "./agent-config.ts";

/** The rules for a disk's copies that the configuration gives. */
export function quorumPolicyOf(config: AgentConfig): Omit<RecordedQuorum, "children"> {
  return {
    voteThreshold: config.voteThreshold ?? 1,
    readPattern: config.readPattern ?? "fifo",
    rewriteCorrupted: config.rewriteCorrupted ?? false,
    blkverify: config.blkverify ?? false,
  };
}

/** What a new record says of the copies of a disk. */
export function initialQuorum(config: AgentConfig, disk: string): Pick<StateRecord["disks"][number], "quorum"> {
  const further = (config.children ?? []).filter((child) => child.disk === disk);
  if (further.length === 0) return {};
  const children = [newLocalChild(), ...further.map(({ name, image }) => newChild(name, image))];
  return { quorum: { ...quorumPolicyOf(config), children } };
}
