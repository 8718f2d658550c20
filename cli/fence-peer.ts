import { asColobusError, ColobusError } from "../proto/errors.ts";
import type { Log } from "../shared/host/log.ts";
import { runHook, type Hook, type HookOptions } from "./hook.ts";

export interface FencedPeer {
  readonly vm: string;
  readonly agentId: string | null;
  readonly address: string | null;
  /** The two use one disk, which the peer must not write any more; else it only must not serve. */
  readonly sharesDisks: boolean;
}

/** What the exit codes mean that let a promotion go on. */
const FENCED: Readonly<Record<number, string>> = {
  3: "the peer's disks are inconsistent",
  4: "the peer is outdated",
  5: "the peer cannot be reached, and is taken for dead",
  7: "the peer was powered off",
};
/** Of those, what says that the peer writes no more: one that cannot be reached may still reach the disk. */
const WRITES_NO_MORE: readonly (string | number)[] = [4, 7];
const PEER_IS_PRIMARY = 6;

/**
 * Runs the operator's hook that makes sure that the peer serves no more, before this side is promoted, with its output in the
 * log. Its exit codes are those of DRBD's fence-peer handlers, so that such scripts can be used as they are. Resolves with what it found when the promotion may go on.
 * Errors: `fence-failed` when it says that the peer is Primary, says nothing that is known, takes too long, or is ended by `signal`.
 */
export async function fencePeer(
  hook: Hook,
  peer: FencedPeer,
  { clock, log, signal }: Pick<HookOptions, "clock" | "signal"> & { readonly log: Log },
): Promise<string> {
  log.info({ peer: peer.address }, "the fence hook runs");
  const env = {
    COLOBUS_VM: peer.vm,
    COLOBUS_PEER: peer.agentId ?? "",
    COLOBUS_PEER_ADDRESS: peer.address ?? "",
    DRBD_RESOURCE: peer.vm,
    DRBD_PEER: peer.address ?? "",
  };
  const output = (line: string): void => log.info({ line }, "fence hook");
  let outcome: number | string;
  try {
    outcome = await runHook(hook, { env, clock, output, leavesOthers: false, signal });
  } catch (error) {
    throw refused(asColobusError(error).message);
  }
  const meaning = typeof outcome === "number" ? FENCED[outcome] : undefined;
  if (meaning !== undefined && peer.sharesDisks && !WRITES_NO_MORE.includes(outcome)) {
    throw refused(
      `says that ${meaning} (exit code ${outcome}), and what it may still write would destroy the shared disk`,
    );
  }
  if (meaning !== undefined) {
    log.info({ exitCode: outcome }, `the fence hook has ended: ${meaning}`);
    return meaning;
  }
  if (outcome === PEER_IS_PRIMARY) throw refused("says that the peer is Primary (exit code 6)");
  throw refused(`ended with ${outcome}, which is none of the exit codes 3, 4, 5, 6 and 7`);
}

function refused(what: string): ColobusError {
  return new ColobusError(
    "fence-failed",
    `the fence hook ${what}`,
    "See the log for its output; make sure that the peer does not serve, and say `colobus failover --force`, or --fenced in mode shared.",
  );
}
