import type { Hello } from "../proto/replication-messages.ts";

/** What the primary knows of the secondary's checkpoints: what it was told last. */
export interface KnownEpochs {
  committed: number;
  prepared: number[];
  /** Commits without an answer: the next handshake tells what became of them. */
  readonly asked: Set<number>;
}

/**
 * Takes over what a secondary says as it opens a session. Returns whether it tells of a commit that is news: one that
 * this agent had asked for, or one that it finds.
 */
export function learnEpochs(
  known: KnownEpochs,
  peer: Pick<Hello, "committed" | "prepared" | "outdated">,
): "asked" | "found" | undefined {
  // A former primary's own last state, or what was given up, is no checkpoint of this side's.
  const committed = peer.outdated ? 0 : peer.committed;
  const isNews = committed > known.committed;
  const wasAsked = known.asked.has(committed);
  known.committed = committed;
  known.prepared = [...peer.prepared];
  // A later one may still be on its way in a session that has not ended on the other side.
  for (const epoch of known.asked) if (epoch <= committed) known.asked.delete(epoch);
  if (!isNews) return undefined;
  return wasAsked ? "asked" : "found";
}
