/**
 * The closed lists of words that status, events, the command line and the configuration use.
 * Roles, disk states, connection and replication states are DRBD's; job states are QEMU's.
 */
export const ROLES = ["Primary", "Secondary"] as const;
export type Role = (typeof ROLES)[number];

export const MODES = ["colo", "mc", "shared", "mirror"] as const;
export type Mode = (typeof MODES)[number];

export const DISK_STATES = ["UpToDate", "Consistent", "Inconsistent", "Outdated", "Failed"] as const;
export type DiskState = (typeof DISK_STATES)[number];

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

export const PROTECTION_REASONS = [
  "no-peer",
  "connecting",
  "initial-sync",
  "resync",
  "no-checkpoint",
  "checkpoint-too-old",
  "overlay-full",
  "disk-failed",
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

export const JOB_TYPES = ["full-sync", "resync", "merge"] as const;
export type JobType = (typeof JOB_TYPES)[number];

export const ACK_POLICIES = ["async", "received", "applied"] as const;
export type AckPolicy = (typeof ACK_POLICIES)[number];

export const DURABILITIES = ["process", "power"] as const;
export type Durability = (typeof DURABILITIES)[number];

export const SECONDARY_EXPORTS = ["off", "read-only", "read-write"] as const;
export type SecondaryExport = (typeof SECONDARY_EXPORTS)[number];

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
  "peer-connected",
  "peer-disconnected",
  "peer-refused",
  "sync-started",
  "sync-finished",
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
  "disk-error",
  "failover",
  "merged",
  "job-changed",
  "protection-changed",
] as const;
export type EventType = (typeof EVENT_TYPES)[number];
