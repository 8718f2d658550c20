import type { Status } from "../../proto/status.ts";

/** Counts the pairs of states that the two sides of a pair were seen in, side by side. */
export class PairStates {
  readonly counts: Record<string, number> = {};

  /** Takes the present states; undefined is a side that does not run. */
  look(one: Status | undefined, other: Status | undefined): void {
    const pair = `${stateOf(one)} | ${stateOf(other)}`;
    this.counts[pair] = (this.counts[pair] ?? 0) + 1;
  }
}

/** What a side says of itself, in the words of its status. */
function stateOf(status: Status | undefined): string {
  if (status === undefined) return "down";
  const [peer] = status.peers;
  const disks = [...new Set(status.disks.map(({ state }) => state))].sort().join("+");
  const reason = status.protection.reason ?? "Protected";
  return [status.role, disks, peer?.connection ?? "-", peer?.replication ?? "-", reason].join(" ");
}
