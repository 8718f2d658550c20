/**
 * The closed lists of words that status, events, the command line and the configuration use.
 * Roles, disk states, connection and replication states are DRBD's; job states are QEMU's.
 */
export const ROLES = ["Primary", "Secondary"] as const;
export type Role = (typeof ROLES)[number];

/** What a handshake comes to. */
export const VERDICT_KINDS = ["sync", "outdated", "hand-over", "split-brain", "refused"] as const;
export type VerdictKind = (typeof VERDICT_KINDS)[number];

/** The rule that a handshake was decided by. */
export const VERDICT_RULES = [
  "same-agent",
  "no-primary",
  "blank-target",
  "same-lineage",
  "target-behind",
  "own-data-discarded",
  "checkpoint-stands",
  "checkpoint-void",
  "source-outdated",
  "primary-behind",
  "hand-over-arrived",
  "two-primaries",
  "diverged",
  "put-back",
  "replaced-peer",
  "rolled-back",
  "unrelated",
] as const;
export type VerdictRule = (typeof VERDICT_RULES)[number];

/**
 * What a source sends when a session begins: everything, the clusters that either side's bitmap names, or nothing,
 * because the operator vouches for the copy, or because the disk is shared: the target's checkpoint stands then
 * (`keep`), or is void (`rearm`).
 */
export const SYNC_EXTENTS = ["full", "delta", "assumed", "keep", "rearm"] as const;
export type SyncExtent = (typeof SYNC_EXTENTS)[number];

/** How a lineage began on the side that records it. */
export const LINEAGE_ORIGINS = ["created", "promotion", "alone", "adopted", "rollback"] as const;

export const MODES = ["colo", "mc", "shared", "mirror"] as const;
export type Mode = (typeof MODES)[number];

/** What the mark beside a shared disk says of it. */
export const SHARED_MARK_STATES = ["protected", "unprotected", "merging"] as const;
export type SharedMarkState = (typeof SHARED_MARK_STATES)[number];

export const DISK_STATES = ["UpToDate", "Consistent", "Inconsistent", "Outdated", "Failed"] as const;
export type DiskState = (typeof DISK_STATES)[number];

/** Whether one of several copies of a disk has everything. */
export const CHILD_STATES = ["sound", "syncing", "broken"] as const;
export type ChildState = (typeof CHILD_STATES)[number];

/** Whether a copy of a disk, wherever it is, has everything, as far as the agent that says so knows. */
export const COPY_STATES = ["sound", "syncing", "stale", "broken", "unknown"] as const;
export type CopyState = (typeof COPY_STATES)[number];

/** What becomes of the VM when a host is lost. */
export const HOST_LOSSES = ["protected", "unprotected", "frozen", "failover", "copies", "lost"] as const;
export type HostLoss = (typeof HOST_LOSSES)[number];

/** Which copies of a disk are read: the first sound one, or all, and the majority wins. */
export const READ_PATTERNS = ["fifo", "quorum"] as const;
export type ReadPattern = (typeof READ_PATTERNS)[number];

export const CONNECTION_STATES = ["StandAlone", "Connecting", "Connected"] as const;
export type ConnectionState = (typeof CONNECTION_STATES)[number];

export const REPLICATION_STATES = [
  "Off",
  "Established",
  "SyncSource",
  "SyncTarget",
  "PausedSyncS",
  "PausedSyncT",
  "VerifyS",
  "VerifyT",
] as const;
export type ReplicationState = (typeof REPLICATION_STATES)[number];

/** Whether a peer lacks nothing: it may be compared meanwhile. */
export function isInSync(replication: ReplicationState): boolean {
  return replication === "Established" || replication === "VerifyS" || replication === "VerifyT";
}

export const PROTECTION_REASONS = [
  "no-peer",
  "connecting",
  "initial-sync",
  "resync",
  "no-checkpoint",
  "checkpoint-too-old",
  "overlay-full",
  "disk-failed",
  "image-away",
  "outdated",
  "split-brain",
  "held",
] as const;
export type ProtectionReason = (typeof PROTECTION_REASONS)[number];

export const JOB_STATES = [
  "created",
  "running",
  "paused",
  "ready",
  "standby",
  "waiting",
  "pending",
  "aborting",
  "concluded",
] as const;
export type JobState = (typeof JOB_STATES)[number];

export const JOB_TYPES = ["full-sync", "resync", "merge", "verify", "mirror"] as const;
export type JobType = (typeof JOB_TYPES)[number];

/** What a job came to. */
export const JOB_OUTCOMES = ["completed", "pivoted", "cancelled", "failed"] as const;
export type JobOutcome = (typeof JOB_OUTCOMES)[number];

/** What an error means for a job: it fails, it goes on and tries again later, or it pauses. */
export const JOB_ERROR_POLICIES = ["report", "ignore", "stop"] as const;
export type JobErrorPolicy = (typeof JOB_ERROR_POLICIES)[number];

/** What a mirror copies before it follows. */
export const MIRROR_SYNCS = ["full", "top", "none"] as const;
export type MirrorSync = (typeof MIRROR_SYNCS)[number];

/** How guests' writes get to the target of a mirror. */
export const COPY_MODES = ["background", "write-blocking"] as const;
export type CopyMode = (typeof COPY_MODES)[number];

/** Whether a named bitmap has every change since it began. */
export const BITMAP_STATES = ["recording", "inconsistent"] as const;

/** Why a named bitmap may lack changes. */
export const BITMAP_FAULTS = ["role-changed", "image-adopted", "power-lost", "write-failed", "unreadable"] as const;
export type BitmapFault = (typeof BITMAP_FAULTS)[number];

export const ACK_POLICIES = ["async", "received", "applied"] as const;
export type AckPolicy = (typeof ACK_POLICIES)[number];

/** What guests' writes do while the secondary is not there. */
export const PEER_LOSS_POLICIES = ["continue", "freeze"] as const;
export type PeerLossPolicy = (typeof PEER_LOSS_POLICIES)[number];

/** Whether a secondary takes over by itself. */
export const FAILOVER_KINDS = ["manual", "automatic"] as const;
export type FailoverKind = (typeof FAILOVER_KINDS)[number];

/** Whose lease the arbiter had when it was last heard, or that it is not heard. */
export const ARBITER_STATES = ["unknown", "free", "own", "other", "unreachable"] as const;
export type ArbiterStateWord = (typeof ARBITER_STATES)[number];

/** What the arbiter's record, its lease and a promise to the primary would make of a failover. */
export const ARBITER_OUTLOOKS = ["granted", "promised", "held", "overruled", "untold"] as const;
export type ArbiterOutlook = (typeof ARBITER_OUTLOOKS)[number];

/** What a guest's write does that finds the send window full: wait, or go on without the secondary for a while. */
export const CONGESTION_POLICIES = ["throttle", "detach"] as const;
export type CongestionPolicy = (typeof CONGESTION_POLICIES)[number];

export const DURABILITIES = ["process", "power"] as const;
export type Durability = (typeof DURABILITIES)[number];

export const SECONDARY_EXPORTS = ["off", "read-only", "read-write"] as const;
export type SecondaryExport = (typeof SECONDARY_EXPORTS)[number];

export const LOG_LEVELS = ["error", "warn", "info", "debug"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

export const WAIT_CONDITIONS = ["connected", "synced", "merged", "committed"] as const;
export type WaitCondition = (typeof WAIT_CONDITIONS)[number];

/** What `resync` found, or did. */
export const RESYNC_OUTCOMES = ["nothing-to-do", "running", "resumed", "given-up"] as const;
export type ResyncOutcome = (typeof RESYNC_OUTCOMES)[number];

/** Everything that `events` can report. */
export const EVENT_TYPES = [
  "agent-started",
  "agent-stopping",
  "role-changed",
  "lineage-changed",
  "guests-held",
  "guests-released",
  "outdated",
  "split-brain",
  "peer-connected",
  "peer-disconnected",
  "peer-refused",
  "peer-given-up",
  "sync-started",
  "sync-paused",
  "sync-finished",
  "verify-difference",
  "verify-finished",
  "checkpoint-prepared",
  "checkpoint-committed",
  "checkpoint-discarded",
  "checkpoint-failed",
  "checkpoint-wanted",
  "checkpoint-given-up",
  "retained-dropped",
  "rolled-back",
  "overlay-full",
  "overlay-freed",
  "congested",
  "disk-error",
  "disk-mended",
  "read-from-secondary",
  "image-away",
  "image-back",
  "child-broken",
  "child-syncing",
  "child-sound",
  "child-added",
  "child-removed",
  "child-replaced",
  "quorum-report-bad",
  "quorum-failure",
  "state-error",
  "state-mended",
  "failover",
  "merged",
  "job-changed",
  "job-ready",
  "disk-pivoted",
  "disk-resized",
  "stalled",
  "lease-acquired",
  "lease-lost",
  "lease-refused",
  "arbiter-unreachable",
  "arbiter-reachable",
  "takeover-started",
  "takeover-failed",
  "vm-started",
  "vm-start-failed",
  "protection-changed",
  "config-reloaded",
] as const;
export type EventType = (typeof EVENT_TYPES)[number];
