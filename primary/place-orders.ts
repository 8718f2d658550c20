/** What an operator's orders ask of the places for secondaries. */
import type { ResyncAnswer } from "../proto/control-api.ts";
import { ColobusError } from "../proto/errors.ts";
import type { StateRecord } from "../proto/state-record.ts";
import { mainSlotOf } from "../shared/replication/peer-slots.ts";
import { lostPeer } from "./no-peer.ts";
import type { Judged, SecondaryPlace } from "./secondary-place.ts";

/**
 * The place of the secondary that an order is for: `peer` is its agent id, or whom this side dials for it; it need not be
 * named where one is connected. Errors: `no-peer`, `usage`.
 */
export function placeToOrder(places: readonly SecondaryPlace[], peer: string | undefined): SecondaryPlace {
  const used = places.filter(({ isUsed }) => isUsed);
  const named = peer === undefined ? used : [namedPlace(used, peer)];
  const connected = named.filter(({ replicator }) => replicator.isConnected);
  const [chosen, another] = connected.length === 0 ? named : connected;
  if (another !== undefined) {
    throw new ColobusError(
      "usage",
      "this primary has several secondaries",
      "Name the one that is meant with --peer: its agent id, or the URL that this side dials; see `colobus status`.",
    );
  }
  const place = chosen ?? places[0];
  if (place === undefined) throw new RangeError("there is a place for a secondary");
  if (!place.replicator.isConnected) void place.replicator.session; // which says why there is none
  return place;
}

/**
 * The place of one of several secondaries that is gone for good; `peer` as for `placeToOrder`. Errors: `no-peer`; `not-applicable`
 * where it is the only one; `peer-connected`.
 */
export function placeToForget(places: readonly SecondaryPlace[], peer: string): SecondaryPlace {
  const used = places.filter(({ isUsed }) => isUsed);
  const place = namedPlace(used, peer);
  if (used.length === 1) {
    throw new ColobusError(
      "not-applicable",
      "this primary has no other secondary",
      "Have another one take its place: `colobus connect --accept-new-peer`.",
    );
  }
  assertLost(place);
  return place;
}

/**
 * The place of a secondary that another one is to take; it need not be named where there is only one, or only one that is not
 * connected. Errors: `no-peer`; `usage` where several could be meant; `peer-connected`.
 */
export function placeToReplace(places: readonly SecondaryPlace[], peer: string | undefined): SecondaryPlace {
  const used = places.filter(({ isUsed }) => isUsed);
  if (peer !== undefined) {
    const place = namedPlace(used, peer);
    assertLost(place);
    return place;
  }
  const lost = used.filter(({ replicator }) => !replicator.isTaken);
  const [place = used[0] ?? places[0], another] = lost;
  if (another !== undefined) {
    throw new ColobusError(
      "usage",
      "this primary has several secondaries that are not connected",
      "Name the one that is lost with --instead-of: its agent id, or the URL that this side dials; see `colobus status`.",
    );
  }
  if (place === undefined) throw new RangeError("there is a place for a secondary");
  assertLost(place);
  return place;
}

/** Where this side dials the secondaries of the places: those that are known, and that it dials. */
export function dialledPeers(places: readonly SecondaryPlace[]): { readonly agentId: string; readonly url: string }[] {
  return places.flatMap(({ peerId, replicator: { url } }) =>
    peerId === undefined || url === null ? [] : { agentId: peerId, url },
  );
}

/** Errors: `no-peer`. */
function namedPlace(places: readonly SecondaryPlace[], peer: string): SecondaryPlace {
  const place = places.find(({ peerId, replicator }) => peerId === peer || replicator.url === peer);
  if (place !== undefined) return place;
  throw new ColobusError("no-peer", `this primary has no secondary ${peer}`, "See `colobus status`.");
}

/** A peer whose session is opening may be the newcomer of the last such order. Errors: `peer-connected`. */
function assertLost({ replicator }: SecondaryPlace): void {
  if (!replicator.isTaken) return;
  throw new ColobusError(
    "peer-connected",
    replicator.isConnected
      ? "the peer is connected: it is not lost"
      : "the peer is connecting just now: it is not lost",
    "If another host is to take its place, stop its agent first.",
  );
}

/** The URLs that a primary dials, in the order of the slots at its next start: one that has become free is behind the others. */
export function withPeerUrl(urls: readonly string[], former: string | null, url: string | undefined): string[] {
  const kept = urls.filter((one) => one !== former && one !== url);
  return url === undefined ? kept : [...kept, url];
}

/** The places, that of the record's own peer first. */
export function mainFirst<T extends { readonly slot: number }>(
  places: readonly T[],
  record: StateRecord,
): readonly T[] {
  const main = mainSlotOf(record);
  return [...places.filter(({ slot }) => slot === main), ...places.filter(({ slot }) => slot !== main)];
}

/** Lets paused syncs go on. Errors: `no-peer`; why a secondary takes no writes. */
export function resyncAll(places: readonly SecondaryPlace[]): ResyncAnswer {
  const connected = places.filter(({ replicator }) => replicator.isConnected);
  const answers = connected.map((place) => place.resync());
  const answer = answers.find(({ outcome }) => outcome !== "nothing-to-do") ?? answers[0];
  if (answer === undefined) throw lostPeer();
  return answer;
}

/** The last handshake with a peer that is no pair with this side; undefined: there is none. */
export function gravestOf(places: readonly SecondaryPlace[]): Judged | undefined {
  return places.map(({ judged }) => judged).find((judged) => judged !== undefined && judged.verdict.kind !== "sync");
}

/**
 * Why guests who wait are not to go on: by the last handshake with one of the peers, that one was written to as well. `last`: what
 * this side's last handshake came to. undefined: nothing of the kind is known.
 */
export function splitBrainKnown(places: readonly SecondaryPlace[], last: Judged | undefined): ColobusError | undefined {
  const known = places.map(({ judged }) => judged);
  // One that has no place, for it was given up, may have been promoted all the same.
  if (last?.url !== undefined) known.push(last);
  const split = known.find((judged) => judged?.verdict.kind === "split-brain");
  if (split === undefined) return undefined;
  const { agentId, role, changedBytes } = split.peer;
  const here = changedBytesFor(places, agentId);
  return new ColobusError(
    "split-brain",
    `the peer ${agentId}, which is ${role}, was written to as well: one side's changes will be given up, ${here} bytes here or ${changedBytes} bytes there by the last handshake, and more if guests go on`,
    "Choose the side whose changes are given up, and on it: `colobus connect --discard-my-data`. When the other side is gone for good: `colobus start-alone --force`.",
  );
}

/** Whether a handshake may have been with the peer at `url`: of several, only with whom this side has dialled there. */
export function mayBeAt(places: readonly SecondaryPlace[], judged: Judged, url: string): boolean {
  if (places.length === 1 || judged.url === url) return true;
  return places.some((place) => place.judged === judged && place.replicator.url === url);
}

/** Bytes that were changed here and that the peer may lack. */
export function changedBytesFor(places: readonly SecondaryPlace[], peer: string): number {
  const place = places.find(({ peerId }) => peerId === peer) ?? places[0];
  return place?.tracking.bytes ?? 0;
}
