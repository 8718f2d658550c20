/**
 * What `colobus support-bundle` collects: everything that whoever helps would ask for, as files of one archive.
 *
 * It has no secret: the token file is not read, commands of hooks and what they print are left out, also of the log, and
 * what a URL says of a user is removed from every text. It has no content of a disk; names of hosts, VMs, paths and
 * addresses stay.
 */
import { execFile } from "node:child_process";
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { arch, cpus, freemem, platform, release, tmpdir, totalmem } from "node:os";
import { join, resolve } from "node:path";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { AGENT_VERSION } from "../proto/versions.ts";
import { putFile } from "../shared/host/content-files.ts";
import type { AgentKeys } from "./agent-keys.ts";
import { assertAnswers } from "./answering-path.ts";
import { examine, type Examination } from "./doctor.ts";
import { inspectFile } from "./inspection.ts";

const TAR_TIMEOUT_MS = 60_000;
/** The end of a log: what happened last is what is asked for. */
const LOG_MAX_BYTES = 4 * 1024 * 1024;

/** Also where the log ends within it. */
const HOOK_OUTPUT = /"line":"(?:[^"\\\n]|\\.)*(?:"|\\?$)/gm;

/** Commands of hooks may hold passwords. */
const KEPT_OUT: readonly (keyof AgentKeys)[] = ["fence-peer", "on-failover"];

export interface SupportBundle {
  readonly file: string;
  readonly entries: readonly string[];
}

export interface BundleOptions extends Examination {
  /** What is written; replaced where it exists. */
  readonly file: string;
  /** The configuration, as it was written. */
  readonly keys: AgentKeys | undefined;
  readonly stateDirectory: string | undefined;
  /** A file that the agent's log goes to. */
  readonly log: string | undefined;
}

/** Errors: `io-error` when the archive cannot be written; `outcome-unknown` when interrupted. What cannot be collected is told in its place. */
export async function collectBundle(options: BundleOptions): Promise<SupportBundle> {
  const scratch = mkdtempSync(join(tmpdir(), "colobus-support-"));
  const root = join(scratch, "colobus-support");
  try {
    mkdirSync(root, { mode: 0o700 });
    const entries: string[] = [];
    for (const [name, collect] of Object.entries(collectors(options))) {
      const text = await collected(collect);
      if (text === undefined) continue;
      writeFileSync(join(root, name), withoutUserInfo(text), { mode: 0o600 });
      entries.push(name);
    }
    if (options.signal.aborted) {
      throw new ColobusError("outcome-unknown", "it was interrupted, and nothing is written", "Start it again.");
    }
    const file = resolve(options.file);
    await archive(scratch, "colobus-support", file);
    return { file, entries };
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

type Collect = () => unknown;

function collectors(options: BundleOptions): Record<string, Collect> {
  const { client, timeoutMs, signal, keys, stateDirectory, log } = options;
  const call = { timeoutMs, signal };
  const record = stateDirectory === undefined ? undefined : join(stateDirectory, "state");
  return {
    "versions.json": () => describeMachine(),
    "status.json": () => client?.status(call),
    "jobs.json": () => client?.jobs(call),
    "events.json": () => client?.events(0, call),
    "metrics.txt": () => client?.metrics(call),
    "config.json": () => (keys === undefined ? undefined : withoutSecrets(keys)),
    "record.json": async () => {
      if (stateDirectory === undefined || record === undefined) return undefined;
      await assertAnswers(stateDirectory, options);
      return existsSync(record) ? inspectFile(record) : undefined;
    },
    "agent.log": async () => {
      if (log === undefined) return undefined;
      await assertAnswers(log, options);
      return readEnd(log);
    },
    "doctor.json": () => examine(options),
  };
}

/** The text of an entry; undefined: there is none. */
async function collected(collect: Collect): Promise<string | undefined> {
  try {
    const value = await collect();
    return value === undefined || typeof value === "string" ? value : JSON.stringify(value, null, 2);
  } catch (error) {
    return JSON.stringify({ error: asColobusError(error).toJSON() }, null, 2);
  }
}

function describeMachine(): unknown {
  return {
    colobus: AGENT_VERSION,
    versions: process.versions,
    platform: `${platform()} ${release()} ${arch()}`,
    processors: cpus().length,
    memoryBytes: totalmem(),
    freeBytes: freemem(),
    at: new Date().toISOString(),
  };
}

function withoutSecrets(keys: AgentKeys): unknown {
  const left: readonly string[] = KEPT_OUT;
  return Object.fromEntries(
    Object.entries(keys).map(([key, value]) => [key, left.includes(key) && value !== undefined ? "(left out)" : value]),
  );
}

/** `scheme://user:password@host` as `scheme://host`. */
function withoutUserInfo(text: string): string {
  return text.replaceAll(/([a-z][a-z0-9+.-]*:\/\/)[^/\s"'@]*@/gi, "$1");
}

/** The last lines of a log, without what hooks have printed, which the agent logs. */
function readEnd(path: string): string {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK); // a pipe that nobody writes to is an error, not a wait
  try {
    const { size } = fstatSync(fd);
    const bytes = Buffer.alloc(Math.min(size, LOG_MAX_BYTES));
    const position = size - bytes.length;
    let length = 0;
    for (let read = -1; read !== 0 && length < bytes.length; length += read) {
      read = readSync(fd, bytes, length, bytes.length - length, position + length);
    }
    const text = bytes.toString("utf8", 0, length);
    // Of a line whose beginning is missing nobody knows what it is.
    const lines = position === 0 ? text : text.slice(text.indexOf("\n") + 1 || text.length);
    return lines.replaceAll(HOOK_OUTPUT, '"line":"(left out)"');
  } finally {
    closeSync(fd);
  }
}

/** Nobody finds half of an archive under its name. */
async function archive(directory: string, name: string, file: string): Promise<void> {
  const packed = join(directory, "packed");
  try {
    await new Promise<void>((done, fail) => {
      execFile("tar", ["-C", directory, "-czf", packed, name], { timeout: TAR_TIMEOUT_MS }, (error, _, stderr) => {
        if (error === null) done();
        else fail(new Error(stderr.trim() === "" ? error.message : stderr.trim()));
      });
    });
    await putFile(packed, file);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new ColobusError("io-error", `${file} cannot be written: ${why}`, "Name another file.", { cause: error });
  }
}
