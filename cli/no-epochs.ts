import { ColobusError } from "../proto/errors.ts";
import type { Mode } from "../proto/words.ts";

/** Errors: `no-epochs`, where the mode has none for `command` to be about. */
export function assertEpochs(mode: Mode, command: string): void {
  if (mode !== "mirror") return;
  throw new ColobusError(
    "no-epochs",
    `"${command}" is about checkpoints, and mode mirror has none: a failover returns the last write that is stable on the secondary`,
    "Nothing has to be taken: see `protection` in `colobus status`. Start both agents with --mode colo or mc, and new state directories, for checkpoints.",
  );
}
