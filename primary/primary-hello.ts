import assert from "node:assert/strict";
import type { Hello } from "../proto/replication-messages.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { ownHello, type OwnHelloOptions } from "../shared/replication/own-hello.ts";
import type { EpochSessions } from "./epoch-sessions.ts";
import { mainFirst } from "./place-orders.ts";
import type { PrimaryCheckpoints } from "./primary-checkpoints.ts";
import type { PrimaryOptions } from "./primary-options.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";
import type { SecondaryPlace } from "./secondary-place.ts";

export interface PrimaryHelloParts
  extends Omit<OwnHelloOptions, "tracking">, Pick<PrimaryOptions, "ack" | "assumeInSync"> {
  readonly state: Pick<StateFile, "record">;
  readonly places: readonly SecondaryPlace[];
  readonly epochs: EpochSessions;
  readonly checkpoints: Pick<PrimaryCheckpoints, "prepared" | "openEpoch">;
  readonly disks: readonly ReplicatedDisk[];
}

/** What a primary says of itself to a peer. */
export function primaryHello(parts: PrimaryHelloParts): Hello {
  const { state, places, epochs, checkpoints, disks, ack, assumeInSync } = parts;
  const { record } = state;
  const [main] = mainFirst(places, record);
  assert(main !== undefined, "there is a place for a secondary");
  const otherPeers = epochs.helloToOthers();
  return {
    ...ownHello(record, { ...parts, tracking: main.tracking }),
    role: "Primary",
    ack,
    disks: disks.map(({ name, sizeBytes }) => ({ name, sizeBytes })),
    committed: epochs.committedBy(main),
    prepared: [...checkpoints.prepared],
    epochSeen: checkpoints.openEpoch - 1,
    assumeInSync: assumeInSync && places.some(({ tracking }) => tracking.hasEverything),
    ...(otherPeers === undefined ? {} : { otherPeers }),
  };
}
