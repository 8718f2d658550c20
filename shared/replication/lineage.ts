import { bitmapsLost } from "../journal/bitmap-entry.ts";
import { ColobusError } from "../../proto/errors.ts";
import { ANCESTORS_MAX, KNOWN_PEERS_MAX, REPLACED_PEERS_MAX, SECONDARIES_MAX } from "../../proto/limits.ts";
import type { Hello } from "../../proto/replication-messages.ts";
import type { StateRecord } from "../../proto/state-record.ts";
import { mainSlotOf, peerEntryOf, peersOf, slotsOf, withoutPeerEntry, withPeerEntry } from "./peer-slots.ts";

/**
 * What happens to a side's history, as pure changes of its state record; `verdict.ts` reads the outcome. Each change is
 * durable before anything that relies on it is told or done.
 */

/** What a side says of its history in its hello. */
export type HistoryFields = Pick<
  Hello,
  | "agentId"
  | "lineage"
  | "shared"
  | "ancestors"
  | "heard"
  | "rolledBackFrom"
  | "pairing"
  | "replaced"
  | "tracks"
  | "outdated"
  | "discardsOwn"
  | "discardsOwnFor"
  | "handOver"
>;

export function historyFieldsOf(record: StateRecord): HistoryFields {
  const { agentId, lineage, history, pairing, tracks, outdated, discardsOwn, handOver } = record;
  return {
    agentId,
    lineage,
    shared: history.shared,
    ancestors: history.ancestors,
    heard: history.heard,
    pairing,
    tracks,
    outdated,
    discardsOwn,
    handOver,
    ...(history.rolledBackFrom === undefined ? {} : { rolledBackFrom: history.rolledBackFrom }),
    ...(record.replaced === undefined ? {} : { replaced: record.replaced }),
    ...(record.discardsOwnFor === undefined ? {} : { discardsOwnFor: record.discardsOwnFor }),
  };
}

/**
 * The peers that may know a primary's lineage: a promotion of one supersedes it. The empty name is that of a peer of which
 * nothing else is known.
 */
export function knownBy({ history, pairing }: StateRecord): readonly string[] {
  return history.shared ? (history.knownBy ?? [pairing?.peer ?? ""]) : [];
}

/**
 * The peers that may have this side's lineage, or one that it goes back to, as far as the record says: each might be promoted
 * under it.
 */
export function relatedPeersOf(record: StateRecord): ReadonlySet<string> {
  const left = (record.history.left ?? []).map(({ peer }) => peer);
  const related = new Set([...peersOf(record), ...knownBy(record), ...left, ...(record.replaced ?? [])]);
  related.delete("");
  return related;
}

/**
 * Whether a peer may have begun `lineage` by a takeover from this primary, in the history that it has now: it knows, or has known,
 * this side's, and that one is none which this side's goes back to.
 */
export function mayHaveSucceeded(record: StateRecord, peer: string, lineage: string): boolean {
  const { ancestors, heard: known, left = [] } = record.history;
  if ([record.lineage, ...ancestors, ...known].includes(lineage)) return false;
  return knownBy(record).includes(peer) || left.some((one) => one.peer === peer);
}

/**
 * The lineages whose state a secondary has as a whole: its own, and those before it, where it has got that from a primary. One
 * that was rolled back has none.
 */
export function succeededBy({ lineage, history, pairing }: StateRecord): readonly string[] {
  if (lineage === null || pairing === null || history.origin === "rollback") return [];
  return history.origin === "adopted" ? [lineage, ...history.ancestors] : [lineage];
}

/** Before the record's peer is another one: who may know the lineage is named, and not taken for the peer any more. */
export function namingKnown(record: StateRecord): StateRecord {
  const { history } = record;
  if (!history.shared || history.knownBy !== undefined) return record;
  return { ...record, history: { ...history, knownBy: [...knownBy(record)] } };
}

/**
 * An operator has given the peer of a slot up: the next one that is blank takes its place, whoever its certificate names, and
 * that one is refused.
 */
export function peerGivenUp(record: StateRecord, slot = mainSlotOf(record)): StateRecord {
  const { pairing, tracks } = peerEntryOf(record, slot);
  const peer = pairing?.peer ?? tracks;
  const freed = withoutPeerEntry(namingKnown(record), slot);
  if (peer === null) return freed;
  const replaced = [...new Set([peer, ...(record.replaced ?? [])])].slice(0, REPLACED_PEERS_MAX);
  return { ...freed, replaced };
}

/** A primary goes on without a peer that may know its lineage. `staying` are to hear of the new one before anything else. */
export function goneAlone(record: StateRecord, lineage: string, staying: readonly string[] = []): StateRecord {
  const left = leftBehind(record, staying);
  const history = {
    origin: "alone",
    shared: false,
    ancestors: keeping(behind(record), left),
    heard: record.history.heard,
    ...(left.length === 0 ? {} : { left }),
  } as const;
  return {
    ...record,
    lineage,
    history: staying.length === 0 ? history : { ...history, shared: true, knownBy: [...staying] },
  };
}

/** Peers that are left behind, with the last lineage that each may know. The newest are remembered. */
function leftBehind(record: StateRecord, staying: readonly string[]): { peer: string; lineage: string }[] {
  const { lineage, history } = record;
  const parting = knownBy(record).filter((peer) => !staying.includes(peer) && peer !== "");
  const now = lineage === null ? [] : parting.map((peer) => ({ peer, lineage }));
  const before = (history.left ?? []).filter(({ peer }) => !staying.includes(peer) && !parting.includes(peer));
  return [...now, ...before].slice(0, SECONDARIES_MAX);
}

/** The newest lineages, and of the older ones those that a peer may still have: one that parts often keeps them related. */
function keeping(lineages: readonly string[], left: readonly { readonly lineage: string }[]): string[] {
  const room = ANCESTORS_MAX - SECONDARIES_MAX;
  const older = lineages.slice(room).filter((lineage) => left.some((one) => one.lineage === lineage));
  return [...lineages.slice(0, room), ...older];
}

/** Errors: `role-conflict` where the record has no room for one more peer that may know the lineage. */
export function assertMayKnow(record: StateRecord, peer: string): void {
  const known = knownBy(record);
  if (known.includes(peer) || known.length < KNOWN_PEERS_MAX) return;
  throw new ColobusError(
    "role-conflict",
    `${known.length} agents have been this primary's secondary in its present history, and the peer is another one`,
    "Have the secondary keep its state directory. A switchover to one of them begins a new history, and so does `colobus start-alone`.",
  );
}

/** The peer may know the lineage from now on, and a promotion there supersede it. Errors: as `assertMayKnow`. */
export function shared(record: StateRecord, peer: string): StateRecord {
  assertMayKnow(record, peer);
  const known = [...new Set([...knownBy(record), peer])];
  const { left: before, ...history } = record.history;
  const left = (before ?? []).filter((one) => one.peer !== peer);
  return { ...record, history: { ...history, shared: true, knownBy: known, ...(left.length === 0 ? {} : { left }) } };
}

/** The peer has recorded the session as well: from now on none before it proves anything. */
export function confirmed(record: StateRecord, session: string): StateRecord {
  const slot = slotsOf(record).find((one) => peerEntryOf(record, one).pairing?.sessions[0] === session);
  const peer = slot === undefined ? undefined : peerEntryOf(record, slot).pairing?.peer;
  return slot === undefined || peer === undefined
    ? record
    : withPeerEntry(record, slot, { pairing: { peer, sessions: [session] } });
}

/** The arbiter knows that this side was promoted, or is not to be told any more. */
export function arbiterSettled({ arbiterUntold: _, ...record }: StateRecord): StateRecord {
  return record;
}

/** A checkpoint was told to be committed that a secondary, this one or one of this primary, lacks, or is about to be; undefined: none was. */
export function toldOf(record: StateRecord, epoch: number | undefined): StateRecord {
  return epoch === undefined || epoch <= (record.told ?? 0) ? record : { ...record, told: epoch };
}

/** Nothing that was told to be committed is lacked any more: it was given up, or is behind another history. */
export function toldNothing({ told: _, ...record }: StateRecord): StateRecord {
  return record;
}

/** The checkpoint that was told to be committed and that this secondary lacks, if there is one. */
export function lackedCheckpoint({ told, committed }: Pick<StateRecord, "told" | "committed">): number | undefined {
  return told === undefined || told <= committed.epoch ? undefined : told;
}

/** Another primary than the one that has told of it counts its epochs by itself: its next checkpoint is what this secondary lacks. */
export function lackingStill(record: StateRecord, peer: string): StateRecord {
  if (record.pairing?.peer === peer || lackedCheckpoint(record) === undefined) return record;
  return { ...record, told: record.committed.epoch + 1 };
}

/**
 * An operator gives up what is here for that peer's data. The checkpoint is kept, and is none of that peer's: outdated until one
 * of those is committed. What is only prepared can never become one.
 */
export function givenUpFor(record: StateRecord, peer: string): StateRecord {
  const outdated = record.outdated || record.committed.epoch > 0;
  return { ...record, outdated, prepared: [], discardsOwn: true, discardsOwnFor: peer };
}

/** A session with that peer begins: what was given up for another one's data is not any more. */
export function givenUpForNoOther(record: StateRecord, peer: string): StateRecord {
  const { discardsOwnFor } = record;
  return discardsOwnFor === undefined || discardsOwnFor === peer ? record : givenUpForNobody(record);
}

export function givenUpForNobody({ discardsOwnFor: _, ...record }: StateRecord): StateRecord {
  return { ...record, discardsOwn: false };
}

/** A source of another lineage begins to send. */
export function heard(record: StateRecord, lineage: string): StateRecord {
  if (record.lineage === lineage || record.history.heard.includes(lineage)) return record;
  return { ...record, history: { ...record.history, heard: newest([lineage, ...record.history.heard]) } };
}

/**
 * Everything of the source has arrived: its history is this side's. What it has begun to send behind that (`later`) is heard
 * still, and no more than that.
 */
export function adopted(
  record: StateRecord,
  source: Pick<Hello, "lineage" | "ancestors">,
  later: readonly string[] = [],
): StateRecord {
  const stillHeard = record.history.heard.filter((lineage) => later.includes(lineage));
  return {
    ...record,
    lineage: source.lineage,
    history: { origin: "adopted", shared: true, ancestors: newest(source.ancestors), heard: stillHeard },
  };
}

/**
 * The secondary becomes Primary. Promoted from a checkpoint, it supersedes what it has heard: who sent that is merely
 * behind. Forced without one, or from a state that was outdated, it does not: the two have diverged.
 */
export function promoted(record: StateRecord, lineage: string, supersedesHeard: boolean): StateRecord {
  const { heard: known } = record.history;
  const ancestors = behind(record);
  return {
    ...toldNothing(givenUpForNobody(record)),
    role: "Primary",
    lineage,
    history: supersedesHeard
      ? { origin: "promotion", shared: false, ancestors: newest([...known, ...ancestors]), heard: [] }
      : { origin: "promotion", shared: false, ancestors, heard: known },
    outdated: false,
  };
}

/**
 * A secondary is back at one of its earlier checkpoints: that is the end of no history that a primary knows. What it has
 * heard of since stays heard, so that a promotion supersedes it. `isPeerTracked`: its bitmaps have what was rolled back.
 */
export function rolledBack(record: StateRecord, lineage: string, isPeerTracked: boolean): StateRecord {
  const { history, committed, mode } = record;
  return {
    ...toldNothing(givenUpForNobody(record)),
    lineage,
    history: {
      origin: "rollback",
      shared: false,
      ancestors: behind(record),
      heard: history.heard,
      rolledBackFrom: history.rolledBackFrom ?? committed.epoch,
    },
    // Of a shared disk there is one copy, of which nothing is compared.
    pairing: isPeerTracked || mode === "shared" ? record.pairing : null,
  };
}

/**
 * A primary becomes Secondary. What its images hold now is its checkpoint, under the last epoch number that it has
 * seen used, and is outdated until a newer one is committed.
 */
export function demoted(record: StateRecord, checkpoint: StateRecord["committed"], discardsOwn: boolean): StateRecord {
  // What was set for syncs, or told while another one lacked it, is nothing to the side that takes over.
  const { markedOver: _, syncs: __, ...rest } = arbiterSettled(toldNothing(record));
  return {
    ...bitmapsLost(rest, "role-changed"),
    role: "Secondary",
    committed: checkpoint,
    prepared: [],
    epochReserved: Math.max(record.epochReserved, checkpoint.epoch),
    outdated: true,
    discardsOwn,
    handOver: null,
    // What the images may have lost is sent and written again.
    lostSyncs: record.lostSyncs.filter(({ active }) => active !== null),
    // Where nothing is known of what it wrote, no bitmap of the peer proves anything.
    pairing: record.tracks === null ? null : record.pairing,
  };
}

/**
 * Whether a primary that starts must not serve before it knows that its peer was not promoted meanwhile. One that was
 * promoted itself, and whose lineage no peer has heard of, need not. Nor need one that never had a peer, unless it `may
 * have had` one all the same: then its record was put back to before their first session.
 */
export function mustHold({ role, history, outdated, handOver }: StateRecord, mayHaveHadPeer: boolean): boolean {
  if (role !== "Primary") return false;
  const { origin, shared: isShared } = history;
  return outdated || handOver !== null || isShared || origin === "alone" || (origin === "created" && mayHaveHadPeer);
}

function behind({ lineage, history }: StateRecord): string[] {
  return newest(lineage === null ? history.ancestors : [lineage, ...history.ancestors]);
}

/** Each once, and no more of them than a record keeps. */
export function newest(lineages: readonly string[]): string[] {
  return [...new Set(lineages)].slice(0, ANCESTORS_MAX);
}
