/**
 * The agent's metrics: what its status says at the moment they are asked for, what its exports have counted, and what it
 * has counted of its own events since it was started. A change of the role does not begin them anew.
 */
import type { AgentEvent, PeerStatus, Status } from "../proto/status.ts";
import {
  CHECKPOINT_OUTCOMES,
  GUEST_OPERATIONS,
  LATENCY_BOUNDS_SECONDS,
  SESSION_OUTCOMES,
  VM_STATE_BOUNDS_SECONDS,
  type CheckpointOutcome,
  type SessionOutcome,
} from "../proto/metrics.ts";
import {
  ARBITER_STATES,
  CONNECTION_STATES,
  DISK_STATES,
  EVENT_TYPES,
  PROTECTION_REASONS,
  REPLICATION_STATES,
  ROLES,
  type EventType,
} from "../proto/words.ts";
import { Exposition } from "../shared/control/exposition.ts";
import { Histogram } from "../shared/host/histogram.ts";
import type { ProcessFigures } from "../shared/host/process-figures.ts";
import type { GuestFigures } from "../shared/nbd/guest-figures.ts";

/** An export's name, and what its guests' requests came to. */
export interface ExportFigures {
  readonly name: string;
  readonly figures: GuestFigures;
}

const CHECKPOINT_OUTCOME_OF: Partial<Record<EventType, CheckpointOutcome>> = {
  "checkpoint-prepared": "prepared",
  "checkpoint-committed": "committed",
  "checkpoint-discarded": "discarded",
  "checkpoint-failed": "failed",
  "checkpoint-given-up": "given-up",
};

const SESSION_OUTCOME_OF: Partial<Record<EventType, SessionOutcome>> = {
  "peer-connected": "opened",
  "peer-disconnected": "lost",
  "peer-refused": "refused",
};

const MS_PER_SECOND = 1000;

export class AgentMetrics {
  readonly #events = new Map<EventType, number>();
  readonly #prepareSeconds = new Histogram(LATENCY_BOUNDS_SECONDS);
  readonly #commitSeconds = new Histogram(LATENCY_BOUNDS_SECONDS);
  readonly #vmstateSeconds = new Histogram(VM_STATE_BOUNDS_SECONDS);

  /** Takes note of an event of this agent. */
  count({ type, data }: AgentEvent): void {
    this.#events.set(type, this.#counted(type) + 1);
    if (type === "checkpoint-prepared") {
      observeMs(this.#prepareSeconds, data.prepareMs);
      observeMs(this.#vmstateSeconds, data.vmstateMs);
    } else if (type === "checkpoint-committed") observeMs(this.#commitSeconds, data.commitMs);
  }

  /** Everything as Prometheus reads it. `ofProcess`: undefined where there is no process of its own. */
  render(status: Status, exports: readonly ExportFigures[], ofProcess: ProcessFigures | undefined): string {
    const exposition = new Exposition({ vm: status.vm });
    addProtection(exposition, status);
    for (const peer of status.peers) addPeer(exposition, peer, status);
    addDisks(exposition, status);
    for (const { name, figures } of exports) addGuest(exposition, name, figures);
    addJobs(exposition, status);
    this.#addEvents(exposition);
    addAgent(exposition, status, ofProcess);
    return exposition.render();
  }

  #addEvents(exposition: Exposition): void {
    exposition.addHistogram("colobus_checkpoint_prepare_seconds", {}, this.#prepareSeconds);
    exposition.addHistogram("colobus_checkpoint_commit_seconds", {}, this.#commitSeconds);
    exposition.addHistogram("colobus_checkpoint_vmstate_seconds", {}, this.#vmstateSeconds);
    for (const outcome of CHECKPOINT_OUTCOMES) {
      exposition.add("colobus_checkpoints_total", { outcome }, this.#countedAs(CHECKPOINT_OUTCOME_OF, outcome));
    }
    for (const outcome of SESSION_OUTCOMES) {
      exposition.add("colobus_sessions_total", { outcome }, this.#countedAs(SESSION_OUTCOME_OF, outcome));
    }
    for (const type of EVENT_TYPES) exposition.add("colobus_events_total", { type }, this.#counted(type));
  }

  #counted(type: EventType): number {
    return this.#events.get(type) ?? 0;
  }

  #countedAs<T>(outcomes: Partial<Record<EventType, T>>, outcome: T): number {
    const types = EVENT_TYPES.filter((type) => outcomes[type] === outcome);
    return types.reduce((sum, type) => sum + this.#counted(type), 0);
  }
}

function observeMs(histogram: Histogram, ms: unknown): void {
  if (typeof ms === "number") histogram.observe(ms / MS_PER_SECOND);
}

function addProtection(exposition: Exposition, status: Status): void {
  const { protection, epoch, recoverable } = status;
  exposition.addStates("colobus_resource_role", {}, "role", ROLES, status.role);
  exposition.add("colobus_protected", {}, protection.state === "Protected" ? 1 : 0);
  exposition.addStates("colobus_not_protected", {}, "reason", PROTECTION_REASONS, protection.reason);
  exposition.add("colobus_epoch_open", {}, epoch.open);
  exposition.add("colobus_epoch_committed", {}, epoch.committed);
  exposition.add("colobus_epochs_prepared", {}, epoch.prepared.length);
  exposition.add("colobus_epochs_retained", {}, epoch.retained.length);
  exposition.add("colobus_recoverable", {}, recoverable === null ? 0 : 1);
  if (recoverable !== null) {
    exposition.add("colobus_recoverable_age_seconds", {}, recoverable.ageMs / MS_PER_SECOND);
    exposition.add("colobus_failover_loss_bytes", {}, recoverable.wouldLose.bytes);
    exposition.add("colobus_failover_loss_writes", {}, recoverable.wouldLose.writes);
  }
  exposition.add("colobus_vmstate_bytes", {}, status.vmstate?.bytes ?? 0);
  const { arbiter } = status.failover;
  if (arbiter !== null) {
    exposition.addStates("colobus_arbiter_state", {}, "state", ARBITER_STATES, arbiter.state);
    exposition.add("colobus_lease_seconds", {}, arbiter.leaseMsLeft / MS_PER_SECOND);
  }
}

/** The peer's name stays from one session to the next: the port that it dials from does not. */
function addPeer(exposition: Exposition, peer: PeerStatus, { peers }: Status): void {
  const name = peer.url ?? peer.agentId ?? `peer ${peers.indexOf(peer) + 1}`;
  exposition.addStates("colobus_connection_state", { peer: name }, "state", CONNECTION_STATES, peer.connection);
  exposition.addStates("colobus_replication_state", { peer: name }, "state", REPLICATION_STATES, peer.replication);
  exposition.add("colobus_lag_bytes", { peer: name }, peer.lagBytes);
  if (peer.lastContactMs !== null) {
    exposition.add("colobus_last_contact_seconds", { peer: name }, peer.lastContactMs / MS_PER_SECOND);
  }
  if (peer.lastError !== null) exposition.add("colobus_connection_error", { peer: name, code: peer.lastError.code }, 1);
}

function addDisks(exposition: Exposition, { disks, exports }: Status): void {
  for (const disk of disks) {
    const labels = { disk: disk.name };
    if (disk.sizeBytes !== null) exposition.add("colobus_device_size_bytes", labels, disk.sizeBytes);
    exposition.addStates("colobus_device_state", labels, "state", DISK_STATES, disk.state);
    exposition.add("colobus_peerdevice_outofsync_bytes", labels, disk.dirtyBytes);
    exposition.add("colobus_device_hidden_bytes", labels, disk.hiddenBytes);
    exposition.add("colobus_device_active_bytes", labels, disk.activeBytes);
    exposition.add("colobus_device_buffer_bytes", labels, disk.bufferBytes);
    for (const child of disk.children) {
      exposition.add("colobus_device_child_sound", { ...labels, child: child.name }, child.state === "sound" ? 1 : 0);
    }
  }
  for (const { name, clients } of exports) exposition.add("colobus_export_clients", { export: name }, clients);
}

function addGuest(exposition: Exposition, disk: string, figures: GuestFigures): void {
  for (const operation of GUEST_OPERATIONS) {
    exposition.addHistogram("colobus_guest_request_seconds", { disk, operation }, figures.seconds(operation));
  }
  exposition.add("colobus_device_read_bytes_total", { disk }, figures.bytes("read"));
  exposition.add("colobus_device_written_bytes_total", { disk }, figures.bytes("write"));
  exposition.add("colobus_device_discarded_bytes_total", { disk }, figures.bytes("discard"));
  exposition.add("colobus_guest_errors_total", { disk }, figures.errors);
}

function addJobs(exposition: Exposition, { jobs }: Status): void {
  for (const job of jobs) {
    if (job.state === "concluded") continue;
    const labels = { job: job.id, type: job.type, disk: job.disk ?? "" };
    exposition.add("colobus_job_done_bytes", labels, job.progress.doneBytes);
    exposition.add("colobus_job_total_bytes", labels, job.progress.totalBytes);
    exposition.add("colobus_job_bytes_per_second", labels, job.bytesPerSecond);
    exposition.add("colobus_job_state", { ...labels, state: job.state }, 1);
  }
}

function addAgent(exposition: Exposition, status: Status, ofProcess: ProcessFigures | undefined): void {
  const { agentVersion: version, agentId: agent, mode, durability, ack } = status;
  exposition.add("colobus_info", { version, agent, mode, durability, ack }, 1);
  const delay = status.eventLoopDelay;
  if (delay !== null) {
    const quantiles = { "0.5": delay.p50Ms, "0.99": delay.p99Ms, "0.999": delay.p999Ms, "1": delay.maxMs };
    for (const [quantile, ms] of Object.entries(quantiles)) {
      exposition.add("colobus_event_loop_delay_seconds", { quantile }, ms / MS_PER_SECOND);
    }
    exposition.add("colobus_stalls_total", {}, delay.stalls);
  }
  if (ofProcess === undefined) return;
  exposition.add("process_cpu_seconds_total", {}, ofProcess.cpuSeconds);
  exposition.add("process_resident_memory_bytes", {}, ofProcess.residentBytes);
  if (ofProcess.openFiles !== undefined) exposition.add("process_open_fds", {}, ofProcess.openFiles);
  exposition.add("process_start_time_seconds", {}, ofProcess.startedAtMs / MS_PER_SECOND);
}
