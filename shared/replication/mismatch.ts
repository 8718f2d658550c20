import { ColobusError } from "../../proto/errors.ts";
import { EPOCH_LEAD_MAX } from "../../proto/limits.ts";
import type { Hello } from "../../proto/replication-messages.ts";

/** Why the configurations of the two agents do not fit, as a sentence that says what differs and what to do; undefined: they do. */
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
  if (self.clusterBytes !== peer.clusterBytes) {
    return new ColobusError(
      "cluster-size-mismatch",
      `the peer uses clusters of ${peer.clusterBytes} bytes, this agent of ${self.clusterBytes} bytes`,
      "Start both agents with the same --cluster-size.",
    );
  }
  return findFarEpoch(self.epochSeen, peer.epochSeen, peer.committed, ...peer.prepared) ?? findDiskMismatch(self, peer);
}

/**
 * Why a peer's epochs cannot be followed by a side that has seen `seen`; undefined: they can. A number that is recorded is never
 * given back, so a single wrong one could use up all that are left.
 */
export function findFarEpoch(seen: number, ...epochs: readonly number[]): ColobusError | undefined {
  const far = epochs.find((epoch) => epoch > seen + EPOCH_LEAD_MAX);
  if (far === undefined) return undefined;
  return new ColobusError(
    "protocol-error",
    `the peer names epoch ${far}, where ${seen} is the last one that this side has seen: nothing lives so long`,
    "The peer's state directory is faulty: replace that agent by one with an empty state directory.",
  );
}

/**
 * Whether sizes that differ are those of a disk that grows: a secondary that is not blank follows its primary, and one that
 * has grown first may be larger, as it says. Two primaries are told what is wrong by the verdict.
 */
function mayGrow(self: Hello, peer: Hello, name: string): boolean {
  if (self.mode === "shared") return false;
  if (self.role === peer.role) return true;
  const [primary, secondary] = self.role === "Primary" ? [self, peer] : [peer, self];
  const here = primary.disks.find((disk) => disk.name === name)?.sizeBytes ?? 0;
  const there = secondary.disks.find((disk) => disk.name === name);
  if (here > (there?.sizeBytes ?? 0)) return secondary.lineage !== null || secondary.pairing !== null;
  return here >= (there?.formerSizeBytes ?? Infinity);
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
    if (sizeBytes !== null && other !== null && sizeBytes !== other && !mayGrow(self, peer, name)) {
      const larger = sizeBytes > other ? "peer's" : "local";
      return new ColobusError(
        "size-mismatch",
        `disk ${name} has ${other} bytes on the peer and ${sizeBytes} bytes here`,
        `Make the two images of one size. The ${larger} one is smaller: on a primary, \`colobus resize ${name} ${Math.max(sizeBytes, other)}\`; a secondary that was never synced is started again, with an empty state directory and an image made longer (\`truncate -s ${Math.max(sizeBytes, other)} IMAGE\`).`,
      );
    }
  }
  return undefined;
}
