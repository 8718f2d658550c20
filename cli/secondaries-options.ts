/** The flags about several secondaries, and what they exclude. */
import { ColobusError } from "../proto/errors.ts";
import { SECONDARIES_MAX } from "../proto/limits.ts";
import type { Mode, Role } from "../proto/words.ts";
import { impossible } from "./flag-errors.ts";

interface SecondariesKeys {
  readonly "secondaries"?: string | undefined;
  readonly "peer"?: readonly string[] | undefined;
  readonly "mode"?: Mode | undefined;
  readonly "arbiter"?: readonly string[] | undefined;
  readonly "shared-mark"?: string | undefined;
}

/** How many secondaries the agent may have as a primary. Errors: `usage`. */
export function parseSecondaries(options: SecondariesKeys, role: Role): { readonly secondaries?: number } {
  const peers = options.peer?.length ?? 0;
  if (role === "Secondary" && peers > 1) {
    throw new ColobusError("usage", "a secondary has one primary", "Give --peer once: the agent that is Primary.");
  }
  const twice = options.peer?.find((url, index, all) => all.indexOf(url) !== index);
  if (twice !== undefined) {
    throw new ColobusError("usage", `--peer ${twice} is given twice`, "Give each secondary's address once.");
  }
  const count = options.secondaries === undefined ? Math.max(1, peers) : Number(options.secondaries);
  if (!Number.isInteger(count) || count < 1 || count > SECONDARIES_MAX) {
    throw impossible(
      "--secondaries",
      options.secondaries ?? String(peers),
      `Write a number from 1 to ${SECONDARIES_MAX}; each --peer of a primary is one.`,
    );
  }
  if (count < peers) {
    throw new ColobusError(
      "usage",
      `--secondaries ${count} and ${peers} --peer contradict each other`,
      "Leave --secondaries out, or make it as many.",
    );
  }
  if (count === 1) return {};
  if (options.mode === "shared" && options.arbiter !== undefined) {
    throw new ColobusError(
      "usage",
      "--mode shared, --arbiter and several secondaries contradict each other",
      "Give one --peer, and no --secondaries; or fail over by hand, without --arbiter.",
    );
  }
  if (options.mode === "shared" && options["shared-mark"] === undefined) {
    throw new ColobusError(
      "usage",
      "several secondaries on a shared disk need a place that says whose checkpoint stands, and which one was promoted",
      "Give every agent --shared-mark: one file beside the disk that all hosts can reach.",
    );
  }
  return { secondaries: count };
}
