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
