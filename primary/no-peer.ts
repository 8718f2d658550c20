import { ColobusError } from "../proto/errors.ts";

/** Why a primary that runs alone cannot do what needs a secondary. */
export function neverHadPeer(): ColobusError {
  return new ColobusError(
    "no-peer",
    "this primary has no secondary",
    "Set one up: it dials this agent's --listen address, or this agent dials it with --peer.",
  );
}

/** Why what needed the secondary's session was not done. */
export function lostPeer(): ColobusError {
  return new ColobusError(
    "no-peer",
    "the session with the secondary was lost",
    "It is tried again by itself; see `colobus status`.",
  );
}

/** Why the role is not handed to a secondary that had everything just before. */
export function syncBegun(): ColobusError {
  return new ColobusError(
    "no-peer",
    "a sync of the secondary has begun",
    "It goes on by itself; ask again, and the switchover waits for its end.",
  );
}

/** What is waited for where a secondary is to have everything first; `pausedBy`: why it takes no writes. */
export function stillSyncing(pausedBy: ColobusError | undefined): string {
  return pausedBy === undefined ? "the secondary is still being synced" : `the secondary waits: ${pausedBy.message}`;
}

/** Why guests who wait do not go on by an operator's word, and the role goes to nobody else, while it is being handed over. */
export function beingHandedOver(): ColobusError {
  return new ColobusError(
    "handed-over",
    "the role is being handed to the secondary",
    "Wait for the end of `colobus switchover`; guests go on by themselves when it fails.",
  );
}

/** Why a secondary is not taken while another one may have the role, and the disks, already. */
export function handedToAnother(action = "Nothing: it is tried again."): ColobusError {
  return new ColobusError(
    "handed-over",
    "the role is being handed to another secondary, or was, and it is not known whether that one has taken it",
    action,
  );
}
