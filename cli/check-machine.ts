/** What `colobus doctor` looks at of the machine: the runtime, the limits of a process, and the clocks. */
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import type { Clock } from "../shared/host/clock.ts";
import { failed, ok, warning, type Finding } from "./finding.ts";
import { formatDuration } from "./quantities.ts";

/** As `engines` of package.json has it. */
const NODE_MIN = [20, 19] as const;
/** Each connection and each overlay takes a few; a VM with many disks and clients takes hundreds. */
const OPEN_FILES_MIN = 1024;
/** A time service that slews the clock stays far below this while a doctor is at work. */
const CLOCK_APART_MAX_MS = 50;
const PROGRAM_TIMEOUT_MS = 5_000;

export function checkNode(version: string = process.versions.node): Finding {
  const [major = 0, minor = 0] = version.split(".").map(Number);
  const isOld = major < NODE_MIN[0] || (major === NODE_MIN[0] && minor < NODE_MIN[1]);
  if (!isOld) return ok("node", `Node ${version}`);
  return failed("node", `Node ${version} is older than ${NODE_MIN.join(".")}`, "Install a later Node.");
}

/** `limits`: the text of /proc/PID/limits; undefined where the system does not tell. */
export function checkOpenFiles(of: string, limits: string | undefined): Finding {
  const [, soft = "", hard = ""] = /^Max open files\s+(\S+)\s+(\S+)/m.exec(limits ?? "") ?? [];
  if (soft === "") return warning("open files", `the limit of ${of} cannot be read`, "");
  if (soft === "unlimited" || Number(soft) >= OPEN_FILES_MIN) return ok("open files", `${of} may have ${soft} open`);
  return warning(
    "open files",
    `${of} may have ${soft} open (at most ${hard}), which is too few for many disks or clients`,
    `Set LimitNOFILE=${OPEN_FILES_MIN * 4} in its service, or \`ulimit -n\`.`,
  );
}

/** The text of /proc/PID/limits; undefined where it cannot be read. */
export function readLimits(pid: number | "self"): string | undefined {
  try {
    return readFileSync(`/proc/${pid}/limits`, "utf8");
  } catch {
    return undefined; // another user's process, or a system without /proc: the finding says so
  }
}

/**
 * Whether time runs evenly, from now until the function that is returned is called: a wall clock that is being set goes
 * another way than the monotonic one.
 */
export function watchClock(clock: Clock): () => Finding {
  const before = { now: clock.nowMs(), wall: clock.wallMs() };
  return () => {
    const tookMs = clock.nowMs() - before.now;
    const apartMs = Math.abs(clock.wallMs() - before.wall - tookMs);
    if (apartMs <= CLOCK_APART_MAX_MS) return ok("clock", "the wall clock and the monotonic clock agree");
    return warning(
      "clock",
      `the wall clock moved by ${formatDuration(apartMs)} within ${formatDuration(tookMs)}`,
      "Let a time service slew the clock instead of setting it; ages of checkpoints are told by it.",
    );
  };
}

/** Whether `program` can be run, which images of a format need. */
export async function checkProgram(program: string): Promise<Finding> {
  const version = await new Promise<string | undefined>((resolve) => {
    execFile(program, ["--version"], { timeout: PROGRAM_TIMEOUT_MS }, (error, stdout) =>
      resolve(error === null ? (stdout.split("\n", 1)[0] ?? "") : undefined),
    );
  });
  if (version !== undefined) return ok(program, version);
  return failed(program, `${program} cannot be run, and an image needs it`, "Install Debian's package qemu-utils.");
}
