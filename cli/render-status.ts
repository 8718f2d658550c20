/**
 * The status screen: first whether the VM is protected and what to do, then where a failover would return to, then
 * the peers, disks, jobs and exports. It says nothing that `status --json` does not say.
 */
import type { DiskStatus, PeerStatus, Status } from "../proto/status.ts";
import { DELAY_SHOWN_MIN_MS, STALL_MIN_MS } from "../proto/limits.ts";
import type { DiskState } from "../proto/words.ts";
import { describeCopy, describeHostLoss, describeRecoverable } from "./describe-failover.ts";
import { describeProtection } from "./describe-protection.ts";
import type { Paint } from "./output.ts";
import { formatBytes, formatDuration } from "./quantities.ts";
import { renderJobLines } from "./render-jobs.ts";
import { renderTable } from "./render-table.ts";

const PEER_COLUMNS = [
  { title: "PEER" },
  { title: "CONNECTION" },
  { title: "REPLICATION" },
  { title: "LAG", align: "right" },
  { title: "LAST HEARD" },
] as const;

const DISK_COLUMNS = [
  { title: "DISK" },
  { title: "STATE" },
  { title: "SIZE", align: "right" },
  { title: "DIRTY", align: "right" },
  { title: "HIDDEN", align: "right" },
  { title: "ACTIVE", align: "right" },
  { title: "BUFFER", align: "right" },
  { title: "REPLICAS" },
] as const;

const COPY_COLUMNS = [
  { title: "DISK" },
  { title: "COPY" },
  { title: "HOST" },
  { title: "STATE" },
  { title: "LACKS", align: "right" },
  { title: "CHECKPOINT", align: "right" },
  { title: "IMAGE" },
] as const;

const EXPORT_COLUMNS = [
  { title: "EXPORT" },
  { title: "ACCESS" },
  { title: "CLIENTS", align: "right" },
  { title: "URI" },
] as const;

/** The parts of the status, each of its lines. */
export interface StatusSections {
  readonly headline: string[];
  readonly peers: string[];
  readonly disks: string[];
  readonly jobs: string[];
  readonly exports: string[];
}

export function statusSections(status: Status, paint: Paint): StatusSections {
  return {
    headline: renderHeadline(status, paint),
    peers: renderPeers(status.peers, paint),
    disks: renderDisks(status.disks, paint),
    jobs: renderUnfinishedJobs(status, paint),
    exports: renderExports(status, paint),
  };
}

export function renderStatus(status: Status, paint: Paint): string {
  const { headline, peers, disks, jobs, exports } = statusSections(status, paint);
  return [headline, peers, disks, renderCopies(status, paint), renderHosts(status, paint), jobs, exports]
    .filter((lines) => lines.length > 0)
    .map((lines) => lines.join("\n"))
    .join("\n\n");
}

function renderHeadline(status: Status, paint: Paint): string[] {
  const { protection, epoch } = status;
  const verdict = paint(protection.state === "Protected" ? "good" : "bad", describeProtection(protection));
  const prepared = epoch.prepared.length === 0 ? "" : `, prepared ${epoch.prepared.join(" ")}`;
  const retained = epoch.retained.length === 0 ? "" : `, retained ${epoch.retained.join(" ")}`;
  const committed = epoch.committed === 0 ? "none committed" : `committed ${epoch.committed}`;
  const lines = [`${paint("heading", status.vm)}  ${status.role}  ${status.mode}  ${verdict}`];
  if (protection.nextAction !== "") lines.push(field("next", protection.nextAction));
  lines.push(
    field("epochs", `open ${epoch.open}${prepared}, ${committed}${retained}`),
    field("failover", renderRecoverable(status, paint)),
    field(
      "agent",
      paint(
        "quiet",
        `${status.agentVersion}, pid ${status.pid}, ack ${status.ack}, durability ${status.durability}, failover ${status.failover.kind}, clusters of ${formatBytes(status.clusterBytes)}`,
      ),
    ),
  );
  if (status.failover.arbiter !== null) lines.push(field("arbiter", renderArbiter(status.failover.arbiter, paint)));
  if (status.eventLoopDelay !== null) lines.push(...renderDelay(status.eventLoopDelay, paint));
  return lines;
}

function renderArbiter(
  { state, holder, leaseMsLeft, lastError }: NonNullable<Status["failover"]["arbiter"]>,
  paint: Paint,
): string {
  switch (state) {
    case "own":
      return paint("good", `this side has the lease, for ${formatDuration(leaseMsLeft)}`);
    case "other":
      return `agent ${holder ?? "unknown"} has the lease`;
    case "free":
      return paint("warn", "nobody has the lease");
    case "unknown":
      return paint("warn", "not asked yet");
    case "unreachable":
      return paint("bad", lastError?.message ?? "unreachable");
  }
}

/** Nothing while the agent comes in time. */
function renderDelay({ maxMs, overMs }: NonNullable<Status["eventLoopDelay"]>, paint: Paint): string[] {
  if (maxMs < DELAY_SHOWN_MIN_MS) return [];
  const text = `for ${formatDuration(maxMs)} in the last ${formatDuration(overMs)}: requests had to wait`;
  return [field("held up", paint(maxMs < STALL_MIN_MS ? "warn" : "bad", text))];
}

function field(name: string, text: string): string {
  return `  ${name.padEnd(9)} ${text}`;
}

function renderRecoverable(status: Status, paint: Paint): string {
  const text = describeRecoverable(status);
  return status.recoverable === null ? paint("warn", text) : text;
}

function renderPeers(peers: readonly PeerStatus[], paint: Paint): string[] {
  if (peers.length === 0) return [];
  // An arbiter has a say in it.
  const areSuccessors = peers.some(({ mayTakeOver }) => mayTakeOver !== null);
  const columns = areSuccessors ? [...PEER_COLUMNS, { title: "MAY TAKE OVER" }] : PEER_COLUMNS;
  const rows = peers.map((peer) => [
    peer.url ?? peer.address ?? "not yet known",
    paint(
      peer.connection === "Connected" ? "good" : peer.connection === "Connecting" ? "warn" : "bad",
      peer.connection,
    ),
    peer.replication,
    formatBytes(peer.lagBytes),
    peer.lastContactMs === null ? "never" : `${formatDuration(peer.lastContactMs)} ago`,
    ...(areSuccessors ? [peer.mayTakeOver === true ? paint("good", "yes") : paint("warn", "no")] : []),
  ]);
  const errors = peers.flatMap(({ lastError }) =>
    lastError === null ? [] : [`  ${paint("bad", lastError.code)}: ${lastError.message}`, `  ${lastError.action}`],
  );
  return [...renderTable(columns, rows, paint), ...errors.filter((line) => line.trim() !== "")];
}

function renderDisks(disks: readonly DiskStatus[], paint: Paint): string[] {
  if (disks.length === 0) return [];
  const rows = disks.map((disk) => [
    disk.name,
    paint(diskTone(disk.state), disk.state),
    disk.sizeBytes === null ? "unknown" : formatBytes(disk.sizeBytes),
    formatBytes(disk.dirtyBytes),
    formatBytes(disk.hiddenBytes),
    formatBytes(disk.activeBytes),
    formatBytes(disk.bufferBytes),
    disk.children
      .map((child) => paint(child.state === "broken" ? "bad" : "quiet", `${child.name} ${child.state}`))
      .join(", "),
  ]);
  return renderTable(DISK_COLUMNS, rows, paint);
}

function diskTone(state: DiskState): "good" | "warn" | "bad" {
  switch (state) {
    case "UpToDate":
    case "Consistent":
      return "good";
    case "Inconsistent":
    case "Outdated":
      return "warn";
    case "Failed":
      return "bad";
  }
}

function renderCopies({ copies }: Status, paint: Paint): string[] {
  if (copies.length === 0) return [];
  const rows = copies.map(({ disk, role, name, host, state, dirtyBytes, epoch, image }) => [
    disk,
    describeCopy({ role, name }),
    host ?? "unknown",
    paint(state === "sound" ? "good" : state === "broken" ? "bad" : "warn", state),
    dirtyBytes === null ? "unknown" : formatBytes(dirtyBytes),
    epoch === null ? "none" : String(epoch),
    image ?? "unknown",
  ]);
  return renderTable(COPY_COLUMNS, rows, paint);
}

/** What is left of the VM without each of the hosts. */
function renderHosts({ hosts, mode }: Status, paint: Paint): string[] {
  return hosts.flatMap((host) => {
    const { outcome, nextAction } = host.ifLost;
    const tone = outcome === "protected" ? "good" : outcome === "lost" || outcome === "copies" ? "bad" : "warn";
    const name = host.isHere ? `${host.name} (this host)` : host.name;
    return [`if ${name} is lost, the VM ${paint(tone, describeHostLoss(host, mode))}`, `  ${nextAction}`];
  });
}

/** Jobs that are at work, and those that failed; `colobus jobs` lists every one. */
function renderUnfinishedJobs({ jobs }: Status, paint: Paint): string[] {
  const shown = jobs.filter((job) => job.state !== "concluded" || job.error !== null);
  return shown.length === 0 ? [] : renderJobLines(shown, paint);
}

function renderExports({ exports }: Status, paint: Paint): string[] {
  if (exports.length === 0) return [];
  const rows = exports.map(({ name, readOnly, clients, uri }) => [
    name,
    readOnly ? "read-only" : "read-write",
    String(clients),
    uri,
  ]);
  return renderTable(EXPORT_COLUMNS, rows, paint);
}
