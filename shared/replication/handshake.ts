import { ColobusError } from "../../proto/errors.ts";
import type { Hello } from "../../proto/replication-messages.ts";

/**
 * The decisions of the handshake: pure functions of both sides' hellos, so that both sides reach the same one.
 */

/** Why the two agents cannot form a pair, as a sentence that says what differs and what to do; undefined: they can. */
export function findMismatch(self: Hello, peer: Hello): ColobusError | undefined {
  if (self.vm !== peer.vm) {
    return new ColobusError(
      "vm-mismatch",
      `the peer belongs to VM "${peer.vm}", this agent to VM "${self.vm}"`,
      "Give both agents the same --vm, or connect to the right peer.",
    );
  }
  if (self.mode !== peer.mode) {
    return new ColobusError(
      "mode-mismatch",
      `the peer runs mode "${peer.mode}", this agent "${self.mode}"`,
      "Start both agents with the same --mode.",
    );
  }
  if (self.role === peer.role) {
    return new ColobusError(
      "role-conflict",
      `the peer is ${peer.role}, and so is this agent`,
      "Of a pair, one agent is Primary and the other Secondary: see `colobus status` on both.",
    );
  }
  if (self.clusterBytes !== peer.clusterBytes) {
    return new ColobusError(
      "cluster-size-mismatch",
      `the peer uses clusters of ${peer.clusterBytes} bytes, this agent of ${self.clusterBytes} bytes`,
      "Start both agents with the same --cluster-size.",
    );
  }
  return findDiskMismatch(self, peer);
}

function findDiskMismatch(self: Hello, peer: Hello): ColobusError | undefined {
  const names = (hello: Hello): string =>
    hello.disks
      .map((disk) => disk.name)
      .sort()
      .join(", ");
  if (names(self) !== names(peer)) {
    return new ColobusError(
      "disk-mismatch",
      `the peer has the disks ${names(peer)}; this agent has ${names(self)}`,
      "Give both agents a --disk of the same name for every disk of the VM.",
    );
  }
  for (const { name, sizeBytes } of self.disks) {
    const other = peer.disks.find((disk) => disk.name === name)?.sizeBytes ?? null;
    if (sizeBytes !== null && other !== null && sizeBytes !== other) {
      const larger = sizeBytes > other ? "peer's" : "local";
      return new ColobusError(
        "size-mismatch",
        `disk ${name} has ${other} bytes on the peer and ${sizeBytes} bytes here`,
        `Make the two images of one size (the ${larger} one is smaller: \`truncate -s ${Math.max(sizeBytes, other)} IMAGE\`), then restart that agent: a primary with --adopt-image, a secondary with an empty state directory.`,
      );
    }
  }
  return undefined;
}

/** What the primary must send so that the copies are equal. */
export type SyncDecision =
  | { readonly kind: "full" }
  /** Exactly the clusters of the primary's dirty bitmap. */
  | { readonly kind: "delta" }
  /** Nothing: the operator vouches for it. */
  | { readonly kind: "assumed" }
  | { readonly kind: "refused"; readonly reason: ColobusError };

export function decideSync(primary: Hello, secondary: Hello): SyncDecision {
  const tracked = primary.tracks === secondary.agentId;
  if (secondary.lineage === null) {
    if (tracked) return { kind: "delta" };
    return primary.assumeInSync ? { kind: "assumed" } : { kind: "full" };
  }
  if (secondary.lineage !== primary.lineage) {
    return {
      kind: "refused",
      reason: new ColobusError(
        "unrelated",
        `the secondary's disks belong to another history (${secondary.lineage}) than the primary's (${primary.lineage})`,
        "Connect the right pair. To make this secondary a replica of this primary, give it an empty state directory.",
      ),
    };
  }
  // A secondary that shows less than it once acknowledged was restored from a backup, or replaced.
  if (!tracked || secondary.committed < primary.committed) return { kind: "full" };
  return { kind: "delta" };
}
