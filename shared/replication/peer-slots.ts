import type { StateRecord } from "../../proto/state-record.ts";
import { NOTHING_SET, withSyncSettings } from "../journal/operator-settings.ts";

/**
 * What the state record says of each peer of a primary. One is named by the record's own fields, as the only peer of a
 * secondary, or of most primaries, is; the others are in a list beside it. A *slot* is the number under which the dirty
 * bitmaps about a peer lie: it stays with them, whichever of the peers the record's own fields name.
 */
export interface PeerEntry {
  /** The peer of the last session, and the ids of the last sessions with it. */
  readonly pairing: StateRecord["pairing"];
  /** The peer whose copy the slot's dirty bitmaps count from. */
  readonly tracks: string | null;
  /** The subject of the certificate with which the peer has proved itself. */
  readonly peerSubject?: string | undefined;
  /** The last checkpoint that the peer is known to have committed. */
  readonly committed: number;
}

/** The slot of the peer that the record's own fields name. */
export function mainSlotOf({ peerSlot }: StateRecord): number {
  return peerSlot ?? 0;
}

/** The slots of which the record says something, that of its own fields first. */
export function slotsOf(record: StateRecord): readonly number[] {
  return [mainSlotOf(record), ...(record.otherPeers ?? []).map(({ slot }) => slot)];
}

export function peerEntryOf(record: StateRecord, slot: number): PeerEntry {
  if (slot === mainSlotOf(record)) {
    const { pairing, tracks, peerSubject, committed } = record;
    return { pairing, tracks, peerSubject, committed: committed.epoch };
  }
  const entry = record.otherPeers?.find((other) => other.slot === slot);
  return entry ?? { pairing: null, tracks: null, committed: 0 };
}

/** The epoch that the record's own peer has committed is beside the others, and stays as it is. */
export function withPeerEntry(record: StateRecord, slot: number, change: Partial<PeerEntry>): StateRecord {
  if (slot === mainSlotOf(record)) {
    const { committed: _, peerSubject, ...fields } = change;
    return { ...record, ...fields, ...(peerSubject === undefined ? {} : { peerSubject }) };
  }
  const { peerSubject, ...entry } = { ...peerEntryOf(record, slot), ...change };
  const others = (record.otherPeers ?? []).filter((other) => other.slot !== slot);
  const changed = { slot, ...entry, ...(peerSubject === undefined ? {} : { peerSubject }) };
  return { ...record, otherPeers: [...others, changed].sort((left, right) => left.slot - right.slot) };
}

/** Nothing is known of the slot's peer any more. The record's own fields name another one then, if there is one. */
export function withoutPeerEntry(record: StateRecord, slot: number): StateRecord {
  const { otherPeers, ...own } = withSyncSettings(record, slot, NOTHING_SET);
  const others = (otherPeers ?? []).filter((other) => other.slot !== slot);
  if (slot !== mainSlotOf(record)) return others.length === 0 ? own : { ...own, otherPeers: others };
  const { peerSubject: _, ...rest } = own;
  const [next, ...left] = others;
  if (next === undefined) return { ...rest, pairing: null, tracks: null };
  const { slot: peerSlot, committed, ...entry } = next;
  return {
    ...rest,
    ...entry,
    peerSlot,
    committed: committed === record.committed.epoch ? record.committed : { epoch: committed, atMs: 0 },
    ...(left.length === 0 ? {} : { otherPeers: left }),
  };
}

/** The record's own fields name `peer` from here on, where anything is known of it, and nothing of the others is kept. */
export function onlyWith(record: StateRecord, peer: string | undefined): StateRecord {
  const { otherPeers: _, ...own } = record;
  const slot = slotsOf(record).find((one) => {
    const { pairing, tracks } = peerEntryOf(record, one);
    return peer !== undefined && (pairing?.peer ?? tracks) === peer;
  });
  if (slot === undefined || slot === mainSlotOf(record)) return record.otherPeers === undefined ? record : own;
  const { pairing, tracks, peerSubject } = peerEntryOf(record, slot);
  const { peerSubject: __, ...rest } = own;
  return { ...rest, pairing, tracks, peerSlot: slot, ...(peerSubject === undefined ? {} : { peerSubject }) };
}

/** Nothing is known of any peer's copy any more. */
export function withoutPeers(record: StateRecord): StateRecord {
  const { otherPeers: _, ...own } = record;
  return { ...own, pairing: null, tracks: null };
}

/** The checkpoint that a primary's own peer is known to have committed. That of one that was given up is gone with it. */
export function committedByPeer({ pairing, replaced, committed }: StateRecord): number {
  return pairing === null && replaced !== undefined ? 0 : committed.epoch;
}

/** The peers of which the record says something. */
export function peersOf(record: StateRecord): string[] {
  return slotsOf(record).flatMap((slot) => peerEntryOf(record, slot).pairing?.peer ?? []);
}
