import { ColobusError } from "../proto/errors.ts";
import type { SecondaryPlace } from "./secondary-place.ts";

/**
 * The place of the secondary that an order is for: `peer` is its agent id, or whom this side dials for it; it need not be
 * named where one is connected. Errors: `no-peer`, `usage`.
 */
export function placeToOrder(places: readonly SecondaryPlace[], peer: string | undefined): SecondaryPlace {
  const used = places.filter(({ isUsed }) => isUsed);
  const named = used.filter((place) => peer === undefined || place.peerId === peer || place.replicator.url === peer);
  const connected = named.filter(({ replicator }) => replicator.isConnected);
  const [chosen, another] = connected.length === 0 ? named : connected;
  if (peer !== undefined && chosen === undefined) {
    throw new ColobusError("no-peer", `this primary has no secondary ${peer}`, "See `colobus status`.");
  }
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
