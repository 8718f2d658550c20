/**
 * Every metric of `/metrics`: its name, type, labels and meaning. Units are Prometheus' base units, seconds and bytes.
 *
 * A metric that means what one of DRBD's (drbd-reactor's Prometheus exporter) does has its name, with `colobus_` in the
 * place of `drbd_`, so that what is known of the one holds for the other and both can be scraped by one server.
 * Every series has the label `vm` as well. Names and labels stay; later versions may add some.
 */
export const GUEST_OPERATIONS = ["read", "write", "discard", "flush"] as const;
export type GuestOperation = (typeof GUEST_OPERATIONS)[number];

/** What a checkpoint came to. */
export const CHECKPOINT_OUTCOMES = ["prepared", "committed", "discarded", "failed", "given-up"] as const;
export type CheckpointOutcome = (typeof CHECKPOINT_OUTCOMES)[number];

/** What an attempt at a session came to, and that an open one was lost. */
export const SESSION_OUTCOMES = ["opened", "lost", "refused"] as const;
export type SessionOutcome = (typeof SESSION_OUTCOMES)[number];

/** Of requests and of checkpoints' phases: from below what a cached write takes to above the peer timeout. */
export const LATENCY_BOUNDS_SECONDS: readonly number[] = [
  0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10,
];

/** A VM state takes from moments to many minutes. */
export const VM_STATE_BOUNDS_SECONDS: readonly number[] = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];

export interface MetricRow {
  readonly type: "gauge" | "counter" | "histogram";
  readonly labels: readonly string[];
  readonly help: string;
  /** The metric of DRBD's exporter that means the same. */
  readonly drbd?: string;
}

export const METRICS = {
  colobus_info: {
    type: "gauge",
    labels: ["version", "agent", "mode", "durability", "ack"],
    help: "Always 1; the labels say what runs",
  },
  colobus_resource_role: {
    type: "gauge",
    labels: ["role"],
    help: "1 for the role that the agent has, 0 for the other",
    drbd: "drbd_resource_role",
  },
  colobus_protected: {
    type: "gauge",
    labels: [],
    help: "1 while a failover would return to a committed checkpoint that is fresh enough",
  },
  colobus_not_protected: {
    type: "gauge",
    labels: ["reason"],
    help: "1 for the reason why the VM is not protected, 0 for every other",
  },
  colobus_epoch_open: { type: "gauge", labels: [], help: "Number of the open epoch" },
  colobus_epoch_committed: {
    type: "gauge",
    labels: [],
    help: "Number of the committed checkpoint, 0 before the first",
  },
  colobus_epochs_prepared: { type: "gauge", labels: [], help: "Prepared checkpoints, not committed yet" },
  colobus_epochs_retained: { type: "gauge", labels: [], help: "Earlier checkpoints that the secondary keeps" },
  colobus_recoverable: {
    type: "gauge",
    labels: [],
    help: "1 where a failover has a checkpoint to return to",
  },
  colobus_recoverable_age_seconds: {
    type: "gauge",
    labels: [],
    help: "Age of the checkpoint that a failover would return to; left out where there is none",
  },
  colobus_failover_loss_bytes: {
    type: "gauge",
    labels: [],
    help: "Bytes written since that checkpoint, as far as this side knows: what a failover would drop",
  },
  colobus_failover_loss_writes: { type: "gauge", labels: [], help: "The same in writes" },
  colobus_connection_state: {
    type: "gauge",
    labels: ["peer", "state"],
    help: "1 for the state of the connection to the peer, 0 for every other",
    drbd: "drbd_connection_state",
  },
  colobus_replication_state: {
    type: "gauge",
    labels: ["peer", "state"],
    help: "1 for the state of the replication, that of the worst disk, 0 for every other",
  },
  colobus_lag_bytes: {
    type: "gauge",
    labels: ["peer"],
    help: "Primary: what the secondary has not made stable yet. Secondary: applied since the committed checkpoint",
  },
  colobus_last_contact_seconds: {
    type: "gauge",
    labels: ["peer"],
    help: "Time since anything came from the peer; left out before the first time",
  },
  colobus_connection_error: {
    type: "gauge",
    labels: ["peer", "code"],
    help: "1 while there is no session, or the secondary takes no writes, for this reason; left out otherwise",
  },
  colobus_sessions_total: {
    type: "counter",
    labels: ["outcome"],
    help: "Sessions that were opened, that were lost, and that were refused",
  },
  colobus_device_size_bytes: {
    type: "gauge",
    labels: ["disk"],
    help: "Size of the disk",
    drbd: "drbd_device_size_bytes",
  },
  colobus_device_state: {
    type: "gauge",
    labels: ["disk", "state"],
    help: "1 for the state of the disk, 0 for every other",
    drbd: "drbd_device_state",
  },
  colobus_peerdevice_outofsync_bytes: {
    type: "gauge",
    labels: ["disk"],
    help: "Bytes in clusters that the secondary may lack",
    drbd: "drbd_peerdevice_outofsync_bytes",
  },
  colobus_device_hidden_bytes: { type: "gauge", labels: ["disk"], help: "Storage of the hidden disk's generations" },
  colobus_device_active_bytes: { type: "gauge", labels: ["disk"], help: "Storage of the active disk" },
  colobus_device_buffer_bytes: { type: "gauge", labels: ["disk"], help: "Storage of the block buffer" },
  colobus_device_child_sound: {
    type: "gauge",
    labels: ["disk", "child"],
    help: "1 while the image takes part, 0 while it is broken or being synced",
  },
  colobus_device_read_bytes_total: {
    type: "counter",
    labels: ["disk"],
    help: "Bytes that guests have read",
    drbd: "drbd_device_read_bytes_total",
  },
  colobus_device_written_bytes_total: {
    type: "counter",
    labels: ["disk"],
    help: "Bytes that guests have written",
    drbd: "drbd_device_written_bytes_total",
  },
  colobus_device_discarded_bytes_total: {
    type: "counter",
    labels: ["disk"],
    help: "Bytes that guests have trimmed or zeroed",
  },
  colobus_guest_request_seconds: {
    type: "histogram",
    labels: ["disk", "operation"],
    help: "Guests' requests: from when the agent takes one up until its reply is ready. Its count is that of the requests",
  },
  colobus_guest_errors_total: {
    type: "counter",
    labels: ["disk"],
    help: "Guests' requests that were refused, or failed",
  },
  colobus_export_clients: { type: "gauge", labels: ["export"], help: "NBD clients that have the export open" },
  colobus_checkpoint_prepare_seconds: {
    type: "histogram",
    labels: [],
    help: "Primary: barrier sent to checkpoint prepared",
  },
  colobus_checkpoint_commit_seconds: {
    type: "histogram",
    labels: [],
    help: "Primary: commit asked for to commit acknowledged",
  },
  colobus_checkpoint_vmstate_seconds: {
    type: "histogram",
    labels: [],
    help: "Primary: VM state begun to VM state stored",
  },
  colobus_checkpoints_total: { type: "counter", labels: ["outcome"], help: "Checkpoints by what they came to" },
  colobus_vmstate_bytes: {
    type: "gauge",
    labels: [],
    help: "Size of the VM state that a VM can be started from here; 0: there is none",
  },
  colobus_job_done_bytes: { type: "gauge", labels: ["job", "type", "disk"], help: "What an unfinished job has done" },
  colobus_job_total_bytes: { type: "gauge", labels: ["job", "type", "disk"], help: "All that it has to do" },
  colobus_job_bytes_per_second: {
    type: "gauge",
    labels: ["job", "type", "disk"],
    help: "Its rate of the last seconds",
  },
  colobus_job_state: {
    type: "gauge",
    labels: ["job", "type", "disk", "state"],
    help: "1 for the state of an unfinished job",
  },
  colobus_arbiter_state: {
    type: "gauge",
    labels: ["state"],
    help: "1 for whose lease it is; left out without an arbiter",
  },
  colobus_lease_seconds: {
    type: "gauge",
    labels: [],
    help: "For how long this side may rely on its own lease; left out without an arbiter",
  },
  colobus_event_loop_delay_seconds: {
    type: "gauge",
    labels: ["quantile"],
    help: "How late the agent got to what was due, over the last minute; 1 is the longest",
  },
  colobus_stalls_total: { type: "counter", labels: [], help: "Delays of a second or longer" },
  colobus_events_total: { type: "counter", labels: ["type"], help: "Events by type" },
  process_cpu_seconds_total: { type: "counter", labels: [], help: "Processor time of the agent" },
  process_resident_memory_bytes: { type: "gauge", labels: [], help: "Memory of the agent" },
  process_open_fds: { type: "gauge", labels: [], help: "Files and sockets that the agent has open" },
  process_start_time_seconds: { type: "gauge", labels: [], help: "When the agent was started, seconds since 1970" },
} as const satisfies Readonly<Record<string, MetricRow>>;
export type MetricName = keyof typeof METRICS;
