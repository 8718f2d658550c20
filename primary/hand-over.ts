import { asColobusError, ColobusError } from "../proto/errors.ts";
import type { Deadline } from "../shared/host/deadline.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { Changing } from "./changing.ts";
import type { GuestPolicy } from "./guest-policy.ts";
import { lostPeer, stillSyncing, syncBegun } from "./no-peer.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";
import type { Replicator } from "./replicator.ts";
import type { SourceSession } from "./source-session.ts";

export interface HandOverContext {
  readonly state: StateFile;
  readonly session: SourceSession;
  readonly guests: GuestPolicy;
  readonly disks: readonly ReplicatedDisk[];
  readonly deadline: Deadline;
  /** Where this side dials its other secondaries, which the next primary is to dial. */
  readonly siblings: readonly string[];
  /** Has an arbiter know that the peer is to serve, where there is one, and takes that back. */
  readonly arbiter:
    | { readonly standDown: (peer: string, lineage: string) => Promise<void>; readonly resume: () => void }
    | undefined;
  /** Throws where the checkpoint would wait for a sync first. */
  readonly assertSynced: () => void;
  /** Commits what the guests have written. */
  readonly checkpoint: () => Promise<unknown>;
  /** Gives shared images back, durable, until the next request. */
  readonly letGo: () => Promise<void>;
  /** Throws when the secondary lacks anything, or is not there any more. */
  readonly assertInSync: () => void;
}

/** Resolves when the secondary has everything: guests go on until then. Errors: `no-peer`; `timed-out`. */
export async function untilSynced(
  replicator: Replicator,
  session: SourceSession,
  changing: Changing,
  deadline: Deadline,
): Promise<void> {
  const synced = changing.until(() => {
    if (replicator.session !== session) throw lostPeer();
    return replicator.establishedSession === session;
  });
  await deadline.race(synced, () => stillSyncing(replicator.pausedBy));
}

/**
 * To be called before a sync would be waited for while guests are held: it could not end, for held changes have their ranges,
 * and may lie where it has to read. Errors: `no-peer`.
 */
export function assertSynced(replicator: Replicator, session: SourceSession): void {
  if (replicator.establishedSession !== session) throw syncBegun();
}

/**
 * Hands the primary's role to the secondary of the session: holds the guests, commits what they have written, gives back
 * what both hosts use, and records whom the role goes to before it asks. Resolves when the secondary was asked; the next handshake tells what became of it.
 * Errors: those of the checkpoint, the secondary's refusal: guests go on then; `timed-out`.
 */
export async function handOver(context: HandOverContext, lineage: string): Promise<void> {
  const { state, session, guests, disks, deadline, siblings, arbiter } = context;
  const { checkpoint, letGo, assertInSync } = context;
  const wereHeld = guests.isHeld;
  guests.gate.hold();
  let isAsked = false;
  try {
    for (const disk of disks) await deadline.race(disk.drained(), "guests' writes are not done yet");
    context.assertSynced();
    await checkpoint();
    await deadline.race(letGo(), "the shared disks are not flushed yet");
    assertInSync();
    guests.assertHeld();
    const peer = session.peer?.agentId ?? null;
    await state.update((record) => ({ ...record, handOver: peer }));
    isAsked = true;
    // Whatever has let them go on meanwhile, what they write is not committed there.
    guests.assertHeld();
    if (peer !== null) await arbiter?.standDown(peer, lineage);
    await deadline.race(
      session.request((id) => ({ type: "takeover", id, lineage, siblings: [...siblings] })),
      "the secondary was asked to take the role, and has not answered yet",
    );
  } catch (error) {
    // The promotion ends the session, perhaps before its answer: the next handshake tells.
    if (isAsked && error instanceof ColobusError && error.code === "outcome-unknown") return;
    const isRefused = isAsked && error instanceof ColobusError && error.code !== "timed-out";
    if (isRefused) {
      await state
        .update((record) => ({ ...record, handOver: null }))
        .catch((fault: unknown) => {
          // The next handshake undoes the hand-over, and lets the guests go on.
          session.close(asColobusError(fault));
          throw fault;
        });
      arbiter?.resume();
    }
    if (!wereHeld && (!isAsked || isRefused)) guests.release();
    throw error;
  }
}
