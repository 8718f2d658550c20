/** What `colobus doctor` looks at of an agent: its sockets' permissions, its status, and the way to its peer. */
import { lstatSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import type { Status } from "../proto/status.ts";
import { AGENT_VERSION } from "../proto/versions.ts";
import type { Clock } from "../shared/host/clock.ts";
import { failed, ok, warning, type Finding } from "./finding.ts";
import { formatBytes, formatDuration } from "./quantities.ts";

const OTHERS = 0o077;
const PROBES = 3;
const CONNECT_TIMEOUT_MS = 2_000;
/** Of a connection: a checkpoint takes at least one round trip more. */
const SLOW_LINK_MS = 20;

/** `directory`: the run directory of an agent that runs. */
export function checkSockets(directory: string): Finding[] {
  const findings = ["control.sock", "nbd.sock", "vmstate.sock"].flatMap((name) => {
    const path = join(directory, name);
    const found = lstatSync(path, { throwIfNoEntry: false });
    const mode = (found?.mode ?? 0) & OTHERS;
    return mode === 0 ? [] : [failed("sockets", `others may connect to ${path}`, `Run \`chmod 600 ${path}\`.`)];
  });
  return findings.length > 0 ? findings : [ok("sockets", `only their owner may connect to those in ${directory}`)];
}

export function checkStatus(status: Status): Finding[] {
  const { protection, agentVersion, peers, disks, eventLoopDelay, role, vm } = status;
  const broken = disks.filter(({ state }) => state === "Failed").map(({ name }) => name);
  const peerVersions = new Set(peers.flatMap((peer) => (peer.agentVersion === null ? [] : [peer.agentVersion])));
  peerVersions.delete(agentVersion);
  return [
    protection.state === "Protected"
      ? ok("protection", `VM ${vm} is protected; this side is ${role}`)
      : failed(
          "protection",
          `VM ${vm} is not protected: ${protection.reason ?? "no reason given"}`,
          protection.nextAction,
        ),
    agentVersion === AGENT_VERSION
      ? ok("version", `the agent and this command are of version ${AGENT_VERSION}`)
      : warning(
          "version",
          `the agent runs ${agentVersion}, this command is ${AGENT_VERSION}`,
          isLater(agentVersion, AGENT_VERSION)
            ? "Use the agent's release: an agent of this one may refuse what that one has written."
            : "Restart the agent.",
        ),
    ...(peerVersions.size === 0
      ? []
      : [
          warning("peer version", `the peer runs ${[...peerVersions].join(", ")}`, "Update both sides to one release."),
        ]),
    broken.length === 0
      ? ok("disks", disks.map(({ name, state }) => `${name} ${state}`).join(", "))
      : failed("disks", `${broken.join(", ")} failed`, "See docs/disk-errors.md, and `colobus events`."),
    ...(eventLoopDelay === null || eventLoopDelay.stalls === 0
      ? []
      : [
          warning(
            "held up",
            `the agent was held up ${eventLoopDelay.stalls === 1 ? "once" : `${eventLoopDelay.stalls} times`} for a second or longer, ${formatDuration(eventLoopDelay.maxMs)} at most in the last minute`,
            "Give it a processor, and disks that do not hang; see docs/operations.md.",
          ),
        ]),
    ...peers.map((peer) =>
      peer.connection === "Connected"
        ? ok("peer", `connected, ${peer.replication}, ${formatBytes(peer.lagBytes)} behind`)
        : failed(
            "peer",
            `${peer.url ?? "the peer"} is not connected: ${peer.lastError?.message ?? peer.connection}`,
            peer.lastError?.action ?? "Start the other agent.",
          ),
    ),
  ];
}

/** Of two releases, `1.10.0` and `1.9.0`. */
function isLater(version: string, than: string): boolean {
  return version.localeCompare(than, "en", { numeric: true }) > 0;
}

/** How long a connection to the peer takes, at best of a few. Nothing is sent. */
export async function checkLink(url: string, clock: Clock): Promise<Finding> {
  const { hostname, port, protocol } = new URL(url);
  const host = hostname.replace(/^\[|\]$/g, "");
  const times: number[] = [];
  for (let probe = 0; probe < PROBES; probe += 1) {
    const startedMs = clock.nowMs();
    const fault = await tryConnect(host, Number(port === "" ? (protocol === "wss:" ? 443 : 80) : port));
    if (fault !== undefined) {
      return failed("link", `${url} cannot be reached: ${fault}`, "Start the peer; check its --listen, and firewalls.");
    }
    times.push(clock.nowMs() - startedMs);
  }
  const bestMs = Math.min(...times);
  const message = `a connection to ${url} takes ${formatDuration(bestMs)}`;
  if (bestMs < SLOW_LINK_MS) return ok("link", message);
  return warning(
    "link",
    message,
    "Checkpoints and --ack applied wait for each round trip; use a nearer host or async.",
  );
}

function tryConnect(host: string, port: number): Promise<string | undefined> {
  return new Promise((resolve) => {
    const socket = connect({ host, port, timeout: CONNECT_TIMEOUT_MS });
    const finish = (fault: string | undefined) => (): void => {
      socket.destroy();
      resolve(fault);
    };
    socket.once("connect", finish(undefined));
    socket.once("timeout", finish("nobody answers"));
    socket.once("error", (error) => finish(error.message)());
  });
}
