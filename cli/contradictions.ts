import { ColobusError } from "../proto/errors.ts";
import type { AckPolicy, Mode } from "../proto/words.ts";
import type { AgentKeys } from "./agent-keys.ts";
import { impossible } from "./flag-errors.ts";

/** Originals are acknowledged as soon as they are stable; where there are no epochs, what guests are told is what counts. */
export const ACK_BY_MODE = {
  colo: "async",
  mc: "async",
  shared: "applied",
  mirror: "applied",
} as const satisfies Record<Mode, AckPolicy>;
/** Keys that exclude each other. Errors: `usage`, naming both. */
export function refuseContradictions(options: AgentKeys): void {
  if (options.mode === "mirror") refuseOnMirror(options);
  if (options.mode === "shared") refuseOnShared(options);
  else if (options["shared-mark"] !== undefined) {
    throw impossible("--shared-mark", options["shared-mark"], "It is for --mode shared.");
  }
  if (options["buffer-memory"] !== undefined && options.mode !== "mc") {
    throw impossible("--buffer-memory", options["buffer-memory"], "It is for --mode mc.");
  }
  if (options["on-congestion"] !== "detach") return;
  const contradictions: [string, string | undefined, string][] = [
    ["--ack", options.ack ?? ACK_BY_MODE[options.mode ?? "colo"], "async"],
    ["--on-peer-loss", options["on-peer-loss"], "continue"],
  ];
  for (const [flag, value, required] of contradictions) {
    if (value === undefined || value === required) continue;
    throw new ColobusError(
      "usage",
      `--on-congestion detach and ${flag} ${value} contradict each other`,
      `Detaching lets writes go on that ${flag} ${value} has wait: leave one out.`,
    );
  }
}

/** What is about checkpoints means nothing where there are none. */
function refuseOnMirror(options: AgentKeys): void {
  const noCheckpoints = "There are no checkpoints: a failover returns the last write that is stable on the secondary.";
  const refused: [string, boolean, string][] = [
    ["--checkpoint-every", isOn(options["checkpoint-every"]), noCheckpoints],
    ["--max-checkpoint-age", isOn(options["max-checkpoint-age"]), noCheckpoints],
    ["--retain", options.retain !== undefined && options.retain !== "0", noCheckpoints],
    [
      "--secondary-export read-write",
      options["secondary-export"] === "read-write",
      "The export is the disk that the primary writes: read-only, or off.",
    ],
    ["--arbiter", options.arbiter !== undefined, "Nobody takes over by itself in this mode in this release."],
  ];
  for (const [flag, isGiven, why] of refused) {
    if (isGiven) throw new ColobusError("usage", `--mode mirror and ${flag} contradict each other`, why);
  }
}

function isOn(duration: string | undefined): boolean {
  return duration !== undefined && duration !== "off";
}

/** What is about copies of a disk means nothing where there is one disk. */
function refuseOnShared(options: AgentKeys): void {
  const refused: [string, boolean, string][] = [
    ["--ack", options.ack !== undefined, "A write waits until the secondary has the original, and for nothing else."],
    [
      "--on-peer-loss continue without --shared-mark",
      options["on-peer-loss"] === "continue" && options["shared-mark"] === undefined,
      "What is overwritten without the secondary voids its checkpoint, and the mark has to say so: give both agents a --shared-mark.",
    ],
    ["--on-congestion detach", options["on-congestion"] === "detach", "Writes wait for the secondary."],
    ["--create", options.create === true, "The shared disk is there already."],
    ["--assume-in-sync", options["assume-in-sync"] === true, "There is nothing to sync."],
    [
      "--failover automatic without --fence-peer",
      options.failover === "automatic" && options["fence-peer"] === undefined,
      "Two hosts that write one disk destroy it: name the command that powers the other one off, or cuts it off from the disk.",
    ],
    ["--adopt-image", options["adopt-image"] === true, "Start both agents with empty state directories instead."],
  ];
  for (const [flag, isGiven, why] of refused) {
    if (isGiven) throw new ColobusError("usage", `--mode shared and ${flag} contradict each other`, why);
  }
}
