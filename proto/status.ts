/**
 * What an agent tells of itself: the answer of `GET /v1/status`, its jobs, and its events. Keys are camelCase, and fields may
 * be added in later versions.
 */
import { z } from "zod";
import {
  ACK_POLICIES,
  ARBITER_STATES,
  CHILD_STATES,
  CONNECTION_STATES,
  COPY_STATES,
  DISK_STATES,
  DURABILITIES,
  EVENT_TYPES,
  FAILOVER_KINDS,
  HOST_LOSSES,
  JOB_OUTCOMES,
  JOB_STATES,
  JOB_TYPES,
  MODES,
  PROTECTION_REASONS,
  REPLICATION_STATES,
  ROLES,
} from "./words.ts";

/** Sizes are bytes, times milliseconds. */
export const bytes = z.int().nonnegative();
export const ms = z.number().nonnegative();
export const epoch = z.int().nonnegative();

/** Bytes per second at most, 0 for no limit; or `dynamic`, which yields to guests. */
export const jobSpeedSchema = z.union([z.number().nonnegative(), z.literal("dynamic")]);
export type JobSpeed = z.infer<typeof jobSpeedSchema>;

const verifyResultSchema = z.object({
  /** The first ranges that differ, whole clusters each; `ranges` and `differingBytes` count all. */
  differences: z.array(z.object({ disk: z.string(), offset: bytes, length: bytes })),
  ranges: z.int().nonnegative(),
  differingBytes: bytes,
  checkedBytes: bytes,
  /** Whether what differs is sent again when everything is compared. */
  repairs: z.boolean(),
});
export type VerifyResult = z.infer<typeof verifyResultSchema>;

export const jobSchema = z.object({
  id: z.string(),
  type: z.enum(JOB_TYPES),
  state: z.enum(JOB_STATES),
  /** The disk the job works on; null for all disks of the VM. */
  disk: z.string().nullable(),
  /** The copy of that disk that a resync is for; null for the secondary's. */
  child: z.string().nullable().optional(),
  progress: z.object({ doneBytes: bytes, totalBytes: bytes }),
  bytesPerSecond: z.number().nonnegative(),
  etaMs: ms.nullable(),
  speedLimit: jobSpeedSchema,
  startedAt: z.string(),
  endedAt: z.string().nullable(),
  /** Where the job copies to; null where it copies nowhere but to the peer. */
  target: z.string().nullable().default(null),
  /** What it came to; null before it is concluded. */
  outcome: z.enum(JOB_OUTCOMES).nullable().default(null),
  error: z.object({ code: z.string(), message: z.string(), action: z.string() }).nullable(),
  /** Of a verify: what it has found so far. */
  verify: verifyResultSchema.optional(),
});
export type JobStatus = z.infer<typeof jobSchema>;

export const childSchema = z.object({
  name: z.string(),
  kind: z.enum(["image", "overlay"]),
  path: z.string(),
  /** The copy whose place it takes, under its name, once it has everything. */
  replaces: z.string().optional(),
  state: z.enum(CHILD_STATES),
  /** What it lacks, in clusters. */
  dirtyBytes: bytes.optional(),
  /** Why it is broken. */
  lastError: z.object({ code: z.string(), message: z.string(), action: z.string() }).nullable().optional(),
});
export type ChildStatus = z.infer<typeof childSchema>;

export const diskSchema = z.object({
  name: z.string(),
  sizeBytes: bytes.nullable(),
  state: z.enum(DISK_STATES),
  /** Bytes in clusters that a replica may lack. */
  dirtyBytes: bytes,
  /** Storage that the hidden disk's generations occupy. */
  hiddenBytes: bytes,
  activeBytes: bytes,
  bufferBytes: bytes,
  image: z.string(),
  /** Oldest first; those up to the committed epoch belong to retained, or pinned, checkpoints. */
  generations: z.array(z.object({ epoch, bytes })),
  children: z.array(childSchema),
});
export type DiskStatus = z.infer<typeof diskSchema>;

export const peerSchema = z.object({
  /** null where the peer dialled. */
  url: z.string().nullable(),
  address: z.string().nullable(),
  connection: z.enum(CONNECTION_STATES),
  /** That of the worst disk. */
  replication: z.enum(REPLICATION_STATES),
  /** Bytes that this side has sent, or written, and the secondary has not yet made stable. */
  lagBytes: bytes,
  agentId: z.string().nullable(),
  agentVersion: z.string().nullable(),
  lastContactMs: ms.nullable(),
  lastError: z.object({ code: z.string(), message: z.string(), action: z.string() }).nullable(),
  /** What it calls its host, else its address; null: nothing is known. */
  host: z.string().nullable().default(null),
  /** The checkpoint that a secondary is known to have committed; null of a primary, and before the first. */
  committed: epoch.nullable().default(null),
  /** Whether the arbiter would let this secondary take over by itself; null without an arbiter, and of a primary. */
  mayTakeOver: z.boolean().nullable().default(null),
  /** Its images, as it said last, and what a secondary lacks of each disk. */
  disks: z.array(z.object({ name: z.string(), image: z.string().nullable(), dirtyBytes: bytes })).default([]),
});
export type PeerStatus = z.infer<typeof peerSchema>;

/** What a failover drops. */
export const wouldLose = z.object({ writes: z.int().nonnegative(), bytes, atLeast: z.boolean() });

export const copySchema = z.object({
  disk: z.string(),
  /** `local`, the name of a child, or the id of a mirror; null: the one that a peer has. */
  name: z.string().nullable(),
  /** That of the agent which writes it. */
  role: z.enum(ROLES),
  agentId: z.string().nullable(),
  /** null: not known, or, of a shared disk, neither of the two hosts. */
  host: z.string().nullable(),
  image: z.string().nullable(),
  state: z.enum(COPY_STATES),
  /** What it lacks, in clusters; null: not known of it alone. */
  dirtyBytes: bytes.nullable(),
  /** The checkpoint that it can return to; null: none. */
  epoch: epoch.nullable(),
});
export type CopyStatus = z.infer<typeof copySchema>;

export const hostSchema = z.object({
  name: z.string(),
  /** Whether the agent that says so runs there. */
  isHere: z.boolean(),
  ifLost: z.object({
    outcome: z.enum(HOST_LOSSES),
    /** Where a failover can be; null: nowhere, or it is not needed. */
    failoverTo: z.string().nullable(),
    /** The checkpoint that it returns to. */
    epoch: epoch.nullable(),
    /** null where nothing is dropped. */
    wouldLose: wouldLose.nullable(),
    nextAction: z.string(),
  }),
});
export type HostStatus = z.infer<typeof hostSchema>;

/** How late the agent came to what was due, in the last minute or so. */
const eventLoopDelaySchema = z.object({
  overMs: ms,
  p50Ms: ms,
  p99Ms: ms,
  p999Ms: ms,
  maxMs: ms,
  /** Delays of a second or longer since the agent has started. */
  stalls: z.int().nonnegative(),
});

export const statusSchema = z.object({
  role: z.enum(ROLES),
  vm: z.string(),
  mode: z.enum(MODES),
  agentId: z.string(),
  agentVersion: z.string(),
  pid: z.int(),
  lineage: z.string().nullable(),
  durability: z.enum(DURABILITIES),
  ack: z.enum(ACK_POLICIES),
  clusterBytes: bytes,
  epoch: z.object({
    open: epoch,
    prepared: z.array(epoch),
    committed: epoch,
    /** Earlier checkpoints that are kept, ascending. */
    retained: z.array(epoch).default([]),
  }),
  peers: z.array(peerSchema),
  disks: z.array(diskSchema),
  jobs: z.array(jobSchema),
  exports: z.array(z.object({ name: z.string(), uri: z.string(), readOnly: z.boolean(), clients: z.int() })),
  protection: z.object({
    state: z.enum(["Protected", "NotProtected"]),
    reason: z.enum(PROTECTION_REASONS).nullable(),
    nextAction: z.string(),
  }),
  /** What a failover would return to; null where no secondary has the last one that was told to be committed. */
  recoverable: z
    .object({
      epoch,
      ageMs: ms,
      lastContactMs: ms.nullable(),
      wouldLose,
    })
    .nullable(),
  /** Where each disk's copies are. */
  copies: z.array(copySchema).default([]),
  /** The hosts that something of the VM is on, and what their loss would mean; empty while this side is not to be believed. */
  hosts: z.array(hostSchema).default([]),
  failover: z
    .object({
      kind: z.enum(FAILOVER_KINDS),
      /** null where none is configured: nobody takes over by itself then. */
      arbiter: z
        .object({
          state: z.enum(ARBITER_STATES),
          /** The agent that had the lease when the arbiter was last heard. */
          holder: z.string().nullable(),
          /** For how long this side may rely on its own lease. */
          leaseMsLeft: ms,
          lastError: z.object({ code: z.string(), message: z.string(), action: z.string() }).nullable(),
        })
        .nullable(),
    })
    .default({ kind: "manual", arbiter: null }),
  /** The VM state that a VM can be started from on this side's exports; null: none. */
  vmstate: z.object({ epoch, bytes }).nullable().default(null),
  /** null where it is not measured. */
  eventLoopDelay: eventLoopDelaySchema.nullable().default(null),
});
export type Status = z.infer<typeof statusSchema>;

/** The protection of a VM that could not be taken over now, or not to the state that was asked for. */
export function notProtected(
  reason: NonNullable<Status["protection"]["reason"]>,
  nextAction: string,
): Status["protection"] {
  return { state: "NotProtected", reason, nextAction };
}

/** The protection of a VM that nothing but the age of its checkpoint could speak against; `nextAction`: how to get a newer one. */
export function protectedAtAge(
  checkpointAgeMs: number,
  maxCheckpointAgeMs: number | undefined,
  nextAction: string,
): Status["protection"] {
  const isTooOld = maxCheckpointAgeMs !== undefined && checkpointAgeMs > maxCheckpointAgeMs;
  return isTooOld
    ? notProtected("checkpoint-too-old", nextAction)
    : { state: "Protected", reason: null, nextAction: "" };
}

/** One event and its fields. */
export const eventSchema = z.object({
  sequence: z.int(),
  at: z.string(),
  type: z.enum(EVENT_TYPES),
  data: z.record(z.string(), z.unknown()),
});
export type AgentEvent = z.infer<typeof eventSchema>;
