import { ColobusError } from "../../proto/errors.ts";
import type { Verdict } from "./verdict.ts";

/**
 * The verdict of a handshake as the reason for which the session ends on the side `self`; undefined when the two go on
 * as a pair. Both sides end it, each with its own sentence.
 */
export function refusalOf(verdict: Verdict, self: string): ColobusError | undefined {
  switch (verdict.kind) {
    case "sync":
      return undefined;
    case "outdated":
      return verdict.agent === self
        ? new ColobusError(
            "outdated",
            "this side is behind the peer's history, and serves nothing",
            "Make it the peer's secondary: `colobus rejoin --peer WS_URL` here.",
          )
        : new ColobusError(
            "outdated",
            "the peer is behind this side's history, and Primary",
            "On the peer's host: `colobus rejoin --peer WS_URL`, with this agent's --listen address.",
          );
    case "hand-over":
      return new ColobusError(
        "handed-over",
        verdict.from === self
          ? "the peer has taken over the role of Primary"
          : "this side has taken over from the peer",
        "Nothing: the two connect again in their new roles.",
      );
    case "split-brain":
      return new ColobusError(
        "split-brain",
        "this side and the peer were both written to since they parted",
        "Choose the side whose changes are given up, and on it: `colobus connect --discard-my-data`.",
      );
    case "refused":
      return refused(verdict.rule);
  }
}

/** Why a link is not taken, or not any more, as it is told to who has not proved to be the peer. */
export function takesNoSessions(): ColobusError {
  return new ColobusError("shutting-down", "the agent takes no sessions now", "Try again later.");
}

/** Why a secondary is no pair with a primary that knows the checkpoints after the one that it was rolled back to. */
export function rolledBack(): ColobusError {
  return new ColobusError(
    "rolled-back",
    "the secondary was rolled back to an earlier checkpoint, and nobody has said yet which of the two is to go on",
    "To go on from that checkpoint: stop the primary's VM, and `colobus failover` on the secondary. To undo the rollback: `colobus connect --discard-my-data` on the secondary.",
  );
}

function refused(rule: Extract<Verdict, { kind: "refused" }>["rule"]): ColobusError {
  switch (rule) {
    case "same-agent":
      return new ColobusError(
        "role-conflict",
        "the agent is connected to itself, or to a copy of its own state directory",
        "Check --peer and --listen; never copy a state directory.",
      );
    case "no-primary":
      return new ColobusError(
        "role-conflict",
        "the peer is Secondary, and so is this agent",
        "Where a third agent is Primary: `colobus rejoin --peer WS_URL` here, with its address. Else see `colobus status` on both, and `colobus failover` on the right one.",
      );
    case "two-primaries":
      return new ColobusError(
        "role-conflict",
        "the peer is Primary, and so is this agent, with one and the same history: a state directory was copied",
        "Stop one of them, and give it an empty state directory.",
      );
    case "replaced-peer":
      return new ColobusError(
        "peer-replaced",
        "another agent was to take this secondary's place, by an operator's word on the primary",
        "Stop this secondary. To have it back, give it an empty state directory: it is synced anew.",
      );
    case "rolled-back":
      return rolledBack();
    case "unrelated":
      return new ColobusError(
        "unrelated",
        "the peer's disks and this agent's have no common history",
        "Connect the right pair. To give up what one of them holds: `colobus connect --discard-my-data` on that one.",
      );
  }
}
