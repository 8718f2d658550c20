import { ColobusError } from "../../proto/errors.ts";

/** Why what needs the images alone has to wait after a failover. */
export function mergeUnfinished(): ColobusError {
  return new ColobusError(
    "merge-unfinished",
    "the overlays of the last failover are not merged into the images yet",
    "Wait for it: `colobus wait merged`.",
  );
}
