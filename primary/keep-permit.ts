import type { OwnLease } from "../shared/arbiter/own-lease.ts";
import type { EpochSessions } from "./epoch-sessions.ts";
import { PermitKeeper, type PermitKeeperOptions } from "./permit-keeper.ts";
import { dialledPeers } from "./place-orders.ts";
import type { SecondaryPlace } from "./secondary-place.ts";

export interface KeepPermitOptions extends Pick<
  PermitKeeperOptions,
  "clock" | "log" | "emit" | "state" | "committed" | "vouched" | "isOutdated"
> {
  readonly lease: OwnLease | undefined;
  readonly epochs: EpochSessions;
  readonly places: () => readonly SecondaryPlace[];
}

/** What keeps the permit of a primary with these places; undefined without an arbiter. */
export function keepPermit({ lease, epochs, places, ...options }: KeepPermitOptions): PermitKeeper | undefined {
  if (lease === undefined) return undefined;
  const placeOf = (peer: string): SecondaryPlace | undefined => places().find(({ peerId }) => peerId === peer);
  return new PermitKeeper({
    ...options,
    lease,
    isConnected: (peer) => placeOf(peer)?.replicator.isConnected === true,
    isEstablished: (peer) => placeOf(peer)?.replicator.isEstablished === true,
    committedBy: (peer) => epochs.committedByPeer(peer),
    dialled: () => dialledPeers(places()),
  });
}
