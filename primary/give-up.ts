import type { StateFile } from "../shared/journal/state-file.ts";
import { peerGivenUp, toldNothing } from "../shared/replication/lineage.ts";
import type { EpochSessions } from "./epoch-sessions.ts";
import { withPeerUrl } from "./place-orders.ts";
import type { PermitKeeper } from "./permit-keeper.ts";
import type { PrimaryCheckpoints } from "./primary-checkpoints.ts";
import type { SecondaryPlace } from "./secondary-place.ts";

export interface GiveUpContext {
  readonly state: StateFile;
  /** Whether the primary has no other place. */
  readonly isOnly: boolean;
  /** With an arbiter. */
  readonly keeper: PermitKeeper | undefined;
  readonly epochs: EpochSessions;
  readonly checkpoints: PrimaryCheckpoints;
}

/**
 * A secondary is gone for good: it is refused from now on, what only it had is no checkpoint any more, and its place is free,
 * for the agent at `url` before others. Returns who it was, as far as that is known. Errors: `io-error`.
 */
export async function giveUp(
  context: GiveUpContext,
  place: SecondaryPlace,
  url: string | undefined,
): Promise<{ readonly agentId: string | null; readonly url: string | null }> {
  const { state, isOnly, keeper, epochs, checkpoints } = context;
  const { peerId, slot } = place;
  const former = place.replicator.url;
  await state.update((record) => ({
    // What was told may have been its alone.
    ...toldNothing(peerGivenUp(record, slot)),
    peers: isOnly && url !== undefined ? [url] : withPeerUrl(record.peers, former, url),
    // Where it is the only one, the next secondary's session ends the hand-over.
    handOver: !isOnly && record.handOver === peerId ? null : record.handOver,
  }));
  place.release(url ?? null);
  if (peerId !== undefined) {
    checkpoints.left(epochs.forgotten(peerId));
    keeper?.givenUp(peerId);
  }
  return { agentId: peerId ?? null, url: former };
}
