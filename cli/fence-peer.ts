import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { ColobusError } from "../proto/errors.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import type { Hook } from "./hook.ts";

export interface FencedPeer {
  readonly vm: string;
  readonly agentId: string | null;
  readonly address: string | null;
}

/** What the exit codes mean that let a promotion go on. */
const FENCED: Readonly<Record<number, string>> = {
  3: "the peer's disks are inconsistent",
  4: "the peer is outdated",
  5: "the peer cannot be reached, and is taken for dead",
  7: "the peer was powered off",
};
const PEER_IS_PRIMARY = 6;

/**
 * Runs the operator's hook that makes sure that the peer serves no more, before this side is promoted, with its output in the
 * log. Its exit codes are those of DRBD's fence-peer handlers, so that such scripts can be used as they are. Resolves with what it found when the promotion may go on.
 * Errors: `fence-failed` when it says that the peer is Primary, says nothing that is known, or takes too long.
 */
export async function fencePeer(hook: Hook, peer: FencedPeer, clock: Clock, log: Log): Promise<string> {
  log.info({ command: hook.command, peer: peer.address }, "the fence hook runs");
  const child = spawn("/bin/sh", ["-c", hook.command], {
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
    env: {
      ...process.env,
      COLOBUS_VM: peer.vm,
      COLOBUS_PEER: peer.agentId ?? "",
      COLOBUS_PEER_ADDRESS: peer.address ?? "",
      DRBD_RESOURCE: peer.vm,
      DRBD_PEER: peer.address ?? "",
    },
  });
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on("line", (line) => log.info({ line }, "fence hook"));
  }
  let isLate = false;
  const timer = clock.after(hook.timeoutMs, () => {
    isLate = true;
    // The whole process group: what the shell has started goes with it.
    if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
  });
  const outcome = await new Promise<number | string>((resolve) => {
    child.once("error", (error) => resolve(error.message));
    child.once("close", (code, signal) => resolve(code ?? signal ?? "unknown"));
  });
  timer.cancel();
  if (isLate) throw refused(`has not ended within ${hook.timeoutMs} ms`);
  const meaning = typeof outcome === "number" ? FENCED[outcome] : undefined;
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
    "See the log for its output; make sure that the peer does not serve, and say `colobus failover --force`.",
  );
}
