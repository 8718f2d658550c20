import type { Status } from "../proto/status.ts";

/** The protection in a word or two: `Protected`, `NotProtected: resync`. */
export function describeProtection({ state, reason }: Pick<Status["protection"], "state" | "reason">): string {
  return reason === null ? state : `${state}: ${reason}`;
}
