import type { Hello } from "../proto/replication-messages.ts";

/** What the primary knows of the secondary's checkpoints: what it was told last. */
export interface KnownEpochs {
  committed: number;
  committedAtMs: number | undefined;
  prepared: number[];
  /** The commit that was asked for last: where its answer is lost, the next handshake tells of it. */
  asked?: { readonly epoch: number; readonly atMs: number };
}

/** Takes over what a secondary says as it opens a session. Returns whether it tells of a commit that is news. */
export function learnEpochs(known: KnownEpochs, peer: Hello, nowMs: number): boolean {
  // A former primary's own last state is no checkpoint of this side's.
  const committed = peer.outdated ? 0 : peer.committed;
  const isNews = committed > known.committed;
  if (isNews) {
    // When a commit was that an earlier process had asked for is not known: the time before it stands.
    known.committedAtMs = known.asked?.epoch === committed ? known.asked.atMs : (known.committedAtMs ?? nowMs);
  }
  known.committed = committed;
  known.prepared = [...peer.prepared];
  return isNews;
}
