/** `colobus doctor`'s examination, of a machine, of a configuration, and of an agent that may run. */
import { dirname } from "node:path";
import type { Status } from "../proto/status.ts";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { parseImageLocation, type ImageLocation } from "../shared/block/image-location.ts";
import type { ControlClient } from "../shared/control/api-client.ts";
import type { Clock } from "../shared/host/clock.ts";
import { runDirectoryOfAgent } from "./agent-flags.ts";
import { assertAnswers } from "./answering-path.ts";
import type { ProcessConfig } from "./process-config.ts";
import { checkLink, checkSockets, checkStatus } from "./check-agent.ts";
import { checkPeer } from "./check-peer.ts";
import { checkDirectory } from "./check-directory.ts";
import { checkSecrets, checkStateAccess, userOfAgent } from "./check-private-files.ts";
import { checkNode, checkOpenFiles, checkProgram, readLimits, watchClock } from "./check-machine.ts";
import { failed, ok, warning, type Finding } from "./finding.ts";

/** For a directory behind one that has taken all the time. */
const LEAST_WAIT_MS = 1_000;

export interface Examination {
  /** The agent that is to be looked at; undefined: none. */
  readonly client: ControlClient | undefined;
  /** Why there is none. */
  readonly unreachable: ColobusError | undefined;
  /** What the agent is started with; undefined: it was not named. */
  readonly config: ProcessConfig | undefined;
  readonly clock: Clock;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
}

export async function examine(examination: Examination): Promise<Finding[]> {
  const { config, clock } = examination;
  const checkClock = watchClock(clock);
  const findings = [checkNode()];
  const status = await askAgent(examination, findings);
  findings.push(
    status === undefined
      ? checkOpenFiles("this shell", readLimits("self"))
      : checkOpenFiles("the agent", readLimits(status.pid)),
  );
  if (status !== undefined) findings.push(...checkStatus(status));
  const run = examination.client === undefined ? "" : runDirectoryOfAgent(examination.client);
  if (status !== undefined && run !== "") findings.push(...checkSockets(run));
  const silent = await findSilent(config, status, examination);
  findings.push(...silent.values());
  findings.push(...(await checkImages(status, config, clock, silent)));
  if (config !== undefined && !silent.has(config.agent.stateDirectory))
    findings.push(...checkPrivateFiles(config, run === "" ? config.runDirectory : run));
  const peers = new Set([...(config?.agent.peers ?? []), ...(status?.peers ?? []).flatMap(({ url }) => url ?? [])]);
  for (const url of peers) findings.push(await checkLink(url, clock));
  if (examination.client !== undefined && status !== undefined) {
    const { timeoutMs, signal } = examination;
    findings.push(...(await checkPeer(examination.client, status, { timeoutMs, signal })));
  }
  findings.push(checkClock());
  return findings;
}

function checkPrivateFiles(config: ProcessConfig, runDirectory: string): Finding[] {
  const { stateDirectory } = config.agent;
  const user = userOfAgent(runDirectory, stateDirectory);
  return [...checkSecrets(config, user), checkStateAccess(stateDirectory, user)];
}

async function askAgent(
  { client, unreachable, timeoutMs, signal }: Examination,
  findings: Finding[],
): Promise<Status | undefined> {
  try {
    if (client === undefined) throw unreachable ?? new ColobusError("agent-unreachable", "no agent is named");
    const status = await client.status({ timeoutMs, signal });
    findings.push(ok("agent", `the agent answers, process ${status.pid}`));
    return status;
  } catch (error) {
    const { code, message, action } = asColobusError(error);
    const isAbsent = code === "agent-unreachable";
    findings.push(
      isAbsent ? warning("agent", `no agent was looked at: ${message}`, action) : failed("agent", message, action),
    );
    return undefined;
  }
}

/** Of the directories that are to be looked at, those that do not answer within the time that is left. */
async function findSilent(
  config: ProcessConfig | undefined,
  status: Status | undefined,
  { clock, timeoutMs, signal }: Examination,
): Promise<Map<string, Finding>> {
  const endMs = clock.nowMs() + timeoutMs;
  const state = config?.agent.stateDirectory;
  const directories = locationsOf(config, status).flatMap(directoryOf);
  const silent = new Map<string, Finding>();
  for (const path of new Set(state === undefined ? directories : [state, ...directories])) {
    const leftMs = Math.max(LEAST_WAIT_MS, endMs - clock.nowMs());
    try {
      await assertAnswers(path, { clock, timeoutMs: leftMs, signal });
    } catch (error) {
      const { code, message, action } = asColobusError(error);
      if (code !== "timed-out") throw error;
      silent.set(path, failed(path === state ? "state" : "images", message, action));
    }
  }
  return silent;
}

function locationsOf(config: ProcessConfig | undefined, status: Status | undefined): ImageLocation[] {
  return (config?.agent.disks ?? status?.disks ?? []).map(({ image }) => parseImageLocation(image));
}

async function checkImages(
  status: Status | undefined,
  config: ProcessConfig | undefined,
  clock: Clock,
  silent: ReadonlyMap<string, Finding>,
): Promise<Finding[]> {
  const locations = locationsOf(config, status);
  const needsDirect = (config?.agent.mode ?? status?.mode) === "shared";
  const findings: Finding[] = [];
  const sizeBytes = (status?.disks ?? []).reduce((sum, disk) => sum + (disk.sizeBytes ?? 0), 0);
  const state = config?.agent.stateDirectory;
  if (state !== undefined && !silent.has(state)) {
    const neededBytes = (status?.role ?? config?.agent.role) === "Secondary" ? sizeBytes : 0;
    findings.push(...checkDirectory({ name: "state", path: state, clock, neededBytes, needsDirect: false }));
  }
  for (const path of new Set(locations.flatMap(directoryOf))) {
    if (silent.has(path)) continue;
    findings.push(...checkDirectory({ name: "images", path, clock, neededBytes: 0, needsDirect }));
  }
  if (locations.some(({ kind }) => kind === "format")) {
    for (const program of ["qemu-nbd", "qemu-img"]) findings.push(await checkProgram(program));
  }
  return findings;
}

/** Where an image's file lies: a device, or another host's image, has no directory to be looked at. */
function directoryOf(location: ImageLocation): string[] {
  if (location.kind === "nbd" || location.path.startsWith("/dev/")) return [];
  return [dirname(location.path)];
}
