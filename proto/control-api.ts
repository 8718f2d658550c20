/**
 * The control API: HTTP and JSON under `/v1/` on the agent's unix socket. Requests and answers are declared here, and
 * both the server and the command line are built from these schemas.
 *
 * All sizes are bytes and all times milliseconds; keys are camelCase. Fields may be added in later versions.
 */
import { z } from "zod";
import { COMMAND_TIMEOUT_DEFAULT_MS, COMMAND_TIMEOUT_MAX_MS } from "./limits.ts";
import {
  ACK_POLICIES,
  ARBITER_STATES,
  BITMAP_FAULTS,
  BITMAP_STATES,
  CHILD_STATES,
  CONNECTION_STATES,
  COPY_MODES,
  COPY_STATES,
  DISK_STATES,
  DURABILITIES,
  EVENT_TYPES,
  FAILOVER_KINDS,
  HOST_LOSSES,
  JOB_ERROR_POLICIES,
  JOB_OUTCOMES,
  JOB_STATES,
  JOB_TYPES,
  MIRROR_SYNCS,
  MODES,
  PROTECTION_REASONS,
  REPLICATION_STATES,
  RESYNC_OUTCOMES,
  ROLES,
  SYNC_EXTENTS,
  VERDICT_KINDS,
  VERDICT_RULES,
  WAIT_CONDITIONS,
} from "./words.ts";

const bytes = z.int().nonnegative();
const ms = z.number().nonnegative();
const epoch = z.int().nonnegative();

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
const wouldLose = z.object({ writes: z.int().nonnegative(), bytes, atLeast: z.boolean() });

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
  /** What a failover would return to; null where there is no committed checkpoint. */
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

/** One event and its fields. */
export const eventSchema = z.object({
  sequence: z.int(),
  at: z.string(),
  type: z.enum(EVENT_TYPES),
  data: z.record(z.string(), z.unknown()),
});
export type AgentEvent = z.infer<typeof eventSchema>;

const timeoutMs = z.number().positive().max(COMMAND_TIMEOUT_MAX_MS).default(COMMAND_TIMEOUT_DEFAULT_MS);
const epochNumber = z.int().positive();

export const checkpointRequestSchema = z.strictObject({
  prepare: z.boolean().default(false),
  /** With `prepare`: a VM state follows, and is part of the checkpoint. */
  vmstate: z.boolean().optional(),
  timeoutMs,
});
export type CheckpointRequest = z.infer<typeof checkpointRequestSchema>;
export const checkpointAnswerSchema = z.object({
  epoch: epochNumber,
  state: z.enum(["committed", "prepared"]),
  /** Barrier sent to barrier acknowledged, measured in the agent. */
  prepareMs: ms,
  /** Commit sent to commit acknowledged, measured in the agent; null where nothing was committed. */
  commitMs: ms.nullable(),
  /** Size of the VM state; left out where the checkpoint has none. */
  vmstateBytes: bytes.optional(),
});
export type CheckpointAnswer = z.infer<typeof checkpointAnswerSchema>;

const timeoutText = z.coerce.number().pipe(timeoutMs.unwrap()).default(COMMAND_TIMEOUT_DEFAULT_MS);
const flagText = z
  .enum(["true", "false"])
  .transform((text) => text === "true")
  .default(false);

/** The query of a request whose body is a VM state, for a new checkpoint. */
export const vmStateRequestSchema = z.strictObject({ prepare: flagText, timeoutMs: timeoutText });
export type VmStateRequest = z.infer<typeof vmStateRequestSchema>;

/** The same, for a checkpoint that awaits its state. */
export const awaitedVmStateRequestSchema = z.strictObject({ timeoutMs: timeoutText });
export interface VmStateAnswer {
  readonly epoch: number;
  readonly bytes: number;
}

/** The query of a request for a stored VM state. */
export const storedVmStateRequestSchema = z.strictObject({
  /** Left out: that of the committed checkpoint. */
  epoch: z.coerce.number().pipe(epochNumber).optional(),
  /** Also where the disks may have been written since. */
  force: flagText,
});
export type StoredVmStateRequest = z.infer<typeof storedVmStateRequestSchema>;

/** A VM state as it is read back; its bytes fail where their checksums do. */
export interface StoredVmState extends VmStateAnswer {
  readonly content: AsyncIterable<Uint8Array>;
}

export const commitRequestSchema = z.strictObject({ epoch: epochNumber, timeoutMs });
export type CommitRequest = z.infer<typeof commitRequestSchema>;
export const commitAnswerSchema = z.object({
  epoch: epochNumber,
  state: z.literal("committed"),
  commitMs: ms,
  vmstateBytes: bytes.optional(),
});
export type CommitAnswer = z.infer<typeof commitAnswerSchema>;

/** Without an epoch: every prepared one. */
export const discardRequestSchema = z.strictObject({ epoch: epochNumber.optional(), timeoutMs });
export type DiscardRequest = z.infer<typeof discardRequestSchema>;
export const discardAnswerSchema = z.object({ discarded: z.array(epochNumber) });
export type DiscardAnswer = z.infer<typeof discardAnswerSchema>;

export const failoverRequestSchema = z.strictObject({
  force: z.boolean().default(false),
  dryRun: z.boolean().default(false),
  discardActive: z.boolean().default(false),
  /** The operator has made sure that the peer serves no more: mode `shared` asks for that, or for the fence hook. */
  fenced: z.boolean().optional(),
  /** Whoever asks starts the VM: the agent's `--on-failover` is not run. */
  startsVm: z.boolean().optional(),
  timeoutMs,
});
export type FailoverRequest = z.infer<typeof failoverRequestSchema>;
export const failoverAnswerSchema = z.object({
  /** True when the agent was Primary already and nothing was done. */
  already: z.boolean(),
  dryRun: z.boolean(),
  /** In `mirror` nothing is returned to: what is stable is served, and `epoch` counts syncs only. */
  mode: z.enum(MODES),
  epoch,
  /** Age of the checkpoint that is served; null where it is not known. */
  ageMs: ms.nullable(),
  wouldLose,
  discardedActiveBytes: bytes,
  mergeBytes: bytes,
  jobs: z.array(z.string()),
});
export type FailoverAnswer = z.infer<typeof failoverAnswerSchema>;

/** What a side would give up: bytes of clusters that it has changed and the other has not. */
const changedBytes = z.object({ here: bytes, there: bytes });

/** What a handshake with the peer came to, or would come to. */
export const verdictSchema = z.object({
  kind: z.enum(VERDICT_KINDS),
  /** The rule that decided. */
  rule: z.enum(VERDICT_RULES),
  /** A sentence for the operator. */
  meaning: z.string(),
  peer: z.string(),
  /** The agent that sends, and what; null where nothing is sent. */
  source: z.string().nullable(),
  extent: z.enum(SYNC_EXTENTS).nullable(),
  /** What is left to be sent, or would be given up. */
  changedBytes,
});
export type VerdictAnswer = z.infer<typeof verdictSchema>;

export const rejoinRequestSchema = z.strictObject({ peer: z.string(), timeoutMs });
export type RejoinRequest = z.infer<typeof rejoinRequestSchema>;
export const rejoinAnswerSchema = z.object({
  /** True when the agent was Secondary already and nothing was done but to dial the peer. */
  already: z.boolean(),
  peer: z.string(),
  /** This side's own last state, which `failover --force` returns to until a newer checkpoint is committed. */
  epoch,
});
export type RejoinAnswer = z.infer<typeof rejoinAnswerSchema>;

export const connectRequestSchema = z.strictObject({
  dryRun: z.boolean().default(false),
  discardMyData: z.boolean().default(false),
  /** On a primary whose peer is lost: another agent takes its place. */
  acceptNewPeer: z.boolean().optional(),
  /** With `acceptNewPeer`: whom to dial from now on. */
  peer: z.string().optional(),
  /** With `acceptNewPeer`, of several secondaries the one that is lost: its agent id, or the URL that this side dials for it. */
  insteadOf: z.string().optional(),
  timeoutMs,
});
export type ConnectRequest = z.infer<typeof connectRequestSchema>;
export const connectAnswerSchema = z.object({ dryRun: z.boolean(), connected: z.boolean(), verdict: verdictSchema });
export type ConnectAnswer = z.infer<typeof connectAnswerSchema>;

export const forgetRequestSchema = z.strictObject({
  /** The secondary: its agent id, or the URL that this side dials for it. */
  peer: z.string(),
  timeoutMs,
});
export type ForgetRequest = z.infer<typeof forgetRequestSchema>;
export const forgetAnswerSchema = z.object({
  /** null: it has never been met. */
  agentId: z.string().nullable(),
  /** Whom this side dials for it no more. */
  url: z.string().nullable(),
});
export type ForgetAnswer = z.infer<typeof forgetAnswerSchema>;

export const measureLinkRequestSchema = z.strictObject({ timeoutMs });
export type MeasureLinkRequest = z.infer<typeof measureLinkRequestSchema>;
export const measureLinkAnswerSchema = z.object({
  url: z.string(),
  roundTripMs: ms,
  /** By how much the peer's time of day is ahead; wrong by half a round trip at most. */
  clockAheadMs: z.number(),
  /** Of what was sent to the peer. */
  bytesPerSecond: z.number().nonnegative(),
  sentBytes: bytes,
});
export type MeasureLinkAnswer = z.infer<typeof measureLinkAnswerSchema>;

export const startAloneRequestSchema = z.strictObject({});
export const startAloneAnswerSchema = z.object({
  /** False when no guest was held. */
  released: z.boolean(),
});
export type StartAloneAnswer = z.infer<typeof startAloneAnswerSchema>;

export const switchoverRequestSchema = z.strictObject({
  closeClients: z.boolean().default(false),
  /** Of several secondaries, the one that is meant: its agent id, or the URL that this side dials for it. */
  peer: z.string().optional(),
  timeoutMs,
});
export type SwitchoverRequest = z.infer<typeof switchoverRequestSchema>;
export const switchoverAnswerSchema = z.object({
  role: z.literal("Secondary"),
  /** The lineage under which the peer serves. */
  lineage: z.string(),
});
export type SwitchoverAnswer = z.infer<typeof switchoverAnswerSchema>;
export const reloadRequestSchema = z.strictObject({});
export const reloadAnswerSchema = z.object({
  /** Keys of the configuration that have another value now, and are taken up. */
  applied: z.array(z.string()),
  /** Keys that have another value now than the agent was started with, and need a restart. */
  needsRestart: z.array(z.string()),
});
export type ReloadAnswer = z.infer<typeof reloadAnswerSchema>;

export const resyncRequestSchema = z.strictObject({ giveUpCheckpoint: z.boolean().default(false), timeoutMs });
export type ResyncRequest = z.infer<typeof resyncRequestSchema>;
export const resyncAnswerSchema = z.object({
  outcome: z.enum(RESYNC_OUTCOMES),
  /** The job that does it; null where there is none. */
  job: z.string().nullable(),
  /** The checkpoint that was given up; null where none was. */
  givenUpEpoch: epochNumber.nullable(),
});
export type ResyncAnswer = z.infer<typeof resyncAnswerSchema>;

export const verifyRequestSchema = z.strictObject({
  /** Left out: all disks. */
  disk: z.string().optional(),
  /** As for a switchover. */
  peer: z.string().optional(),
  repair: z.boolean().default(false),
  speed: jobSpeedSchema.default("dynamic"),
  /** Answer when the job is concluded. */
  wait: z.boolean().default(false),
  timeoutMs,
});
export type VerifyRequest = z.infer<typeof verifyRequestSchema>;

export const BITMAP_VERBS = ["add", "clear", "remove"] as const;
export const bitmapRequestSchema = z.strictObject({ disk: z.string(), name: z.string(), timeoutMs });
export type BitmapRequest = z.infer<typeof bitmapRequestSchema>;
export const bitmapSchema = z.object({
  disk: z.string(),
  name: z.string(),
  state: z.enum(BITMAP_STATES),
  /** Why it is inconsistent. */
  fault: z.enum(BITMAP_FAULTS).nullable(),
  /** It has every change that is in no checkpoint up to this epoch. */
  epoch,
  dirtyBytes: bytes,
  granularityBytes: bytes,
});
export type BitmapStatus = z.infer<typeof bitmapSchema>;

export const rollbackRequestSchema = z.strictObject({ epoch: epochNumber, timeoutMs });
export type RollbackRequest = z.infer<typeof rollbackRequestSchema>;
export const rollbackAnswerSchema = z.object({
  /** The checkpoint that is the committed one now. */
  epoch: epochNumber,
  /** The one that was before; the same where nothing was to be done. */
  fromEpoch: epochNumber,
});
export type RollbackAnswer = z.infer<typeof rollbackAnswerSchema>;

export const CHILD_VERBS = ["add", "remove", "replace"] as const;
export const childRequestSchema = z.strictObject({
  verb: z.enum(CHILD_VERBS),
  disk: z.string(),
  name: z.string(),
  /** Not for `remove`. */
  image: z.string().optional(),
  /** Make the image at the disk's size where it is not there. */
  create: z.boolean().default(false),
  timeoutMs,
});
export type ChildRequest = z.infer<typeof childRequestSchema>;
/** The copies of the disk from then on. */
export const childAnswerSchema = z.object({ disk: z.string(), children: z.array(childSchema) });
export type ChildAnswer = z.infer<typeof childAnswerSchema>;

export const resizeRequestSchema = z.strictObject({
  disk: z.string(),
  sizeBytes: z.int().positive(),
  /** Send the clients away when it is done: they see the new size when they connect again. */
  closeClients: z.boolean().default(false),
  timeoutMs,
});
export type ResizeRequest = z.infer<typeof resizeRequestSchema>;
export const resizeAnswerSchema = z.object({
  disk: z.string(),
  sizeBytes: bytes,
  /** The same where nothing was to be done. */
  formerSizeBytes: bytes,
  /** How many secondaries have grown as well; others follow when they connect. */
  grownPeers: z.int().nonnegative(),
});
export type ResizeAnswer = z.infer<typeof resizeAnswerSchema>;

export const waitRequestSchema = z.strictObject({ condition: z.enum(WAIT_CONDITIONS), timeoutMs });
export type WaitRequest = z.infer<typeof waitRequestSchema>;
export const waitAnswerSchema = z.object({ condition: z.enum(WAIT_CONDITIONS) });
export type WaitAnswer = z.infer<typeof waitAnswerSchema>;

export const JOB_VERBS = ["pause", "resume", "cancel", "complete"] as const;
export type JobVerb = (typeof JOB_VERBS)[number];
export const setSpeedRequestSchema = z.strictObject({ bytesPerSecond: jobSpeedSchema });
export const jobRequestSchema = z.strictObject({ force: z.boolean().default(false) });
export type JobRequest = z.infer<typeof jobRequestSchema>;

export const mirrorRequestSchema = z.strictObject({
  disk: z.string(),
  /** As `--disk` names images. */
  target: z.string(),
  sync: z.enum(MIRROR_SYNCS).default("full"),
  copyMode: z.enum(COPY_MODES).default("background"),
  speed: jobSpeedSchema.default(0),
  /** A power of two. Left out: that of the disks' clusters, at most MIRROR_GRANULARITY_DEFAULT_MAX_BYTES. */
  granularityBytes: z.int().positive().optional(),
  unmap: z.boolean().default(true),
  onSourceError: z.enum(JOB_ERROR_POLICIES).default("report"),
  onTargetError: z.enum(JOB_ERROR_POLICIES).default("report"),
  create: z.boolean().default(false),
  timeoutMs,
});
export type MirrorRequest = z.infer<typeof mirrorRequestSchema>;

export const errorAnswerSchema = z.object({
  error: z.object({ code: z.string(), message: z.string(), action: z.string() }),
});

/**
 * What an agent can be asked to do. The HTTP server calls it; the agent's composition implements it.
 * Every call ends within its `timeoutMs`, or when `signal` aborts (the client went away), and rejects with a ColobusError.
 */
export interface AgentControl {
  status(): Status;
  /** What Prometheus reads. */
  metrics(): string;
  checkpoint(request: CheckpointRequest, signal: AbortSignal): Promise<CheckpointAnswer>;
  commit(request: CommitRequest, signal: AbortSignal): Promise<CommitAnswer>;
  /** Takes a checkpoint with the VM state that `content` has; it is complete when that ends. */
  checkpointWithVmState(
    request: VmStateRequest,
    content: AsyncIterator<Uint8Array, unknown>,
    signal: AbortSignal,
  ): Promise<CheckpointAnswer>;
  /** Takes the VM state of a checkpoint that awaits one: without an epoch, of the newest. */
  receiveVmState(
    request: { readonly epoch?: number; readonly timeoutMs: number },
    content: AsyncIterator<Uint8Array, unknown>,
    signal: AbortSignal,
  ): Promise<VmStateAnswer>;
  /** A stored VM state. It is kept until `content` is read to its end, or left. */
  storedVmState(request: StoredVmStateRequest): StoredVmState;
  discard(request: DiscardRequest, signal: AbortSignal): Promise<DiscardAnswer>;
  failover(request: FailoverRequest, signal: AbortSignal): Promise<FailoverAnswer>;
  rejoin(request: RejoinRequest, signal: AbortSignal): Promise<RejoinAnswer>;
  connect(request: ConnectRequest, signal: AbortSignal): Promise<ConnectAnswer>;
  /** Measures the link to the peer that this side dials. */
  measureLink(request: MeasureLinkRequest, signal: AbortSignal): Promise<MeasureLinkAnswer>;
  startAlone(): Promise<StartAloneAnswer>;
  switchover(request: SwitchoverRequest, signal: AbortSignal): Promise<SwitchoverAnswer>;
  /** Reads the configuration file anew. */
  reload(): Promise<ReloadAnswer>;
  resync(request: ResyncRequest, signal: AbortSignal): Promise<ResyncAnswer>;
  rollback(request: RollbackRequest, signal: AbortSignal): Promise<RollbackAnswer>;
  /** Begins to compare the replicas. */
  verify(request: VerifyRequest, signal: AbortSignal): Promise<JobStatus>;
  /** Makes a disk longer, on both sides. */
  resize(request: ResizeRequest, signal: AbortSignal): Promise<ResizeAnswer>;
  forget(request: ForgetRequest, signal: AbortSignal): Promise<ForgetAnswer>;
  changeChild(request: ChildRequest, signal: AbortSignal): Promise<ChildAnswer>;
  bitmaps(): BitmapStatus[];
  bitmap(verb: (typeof BITMAP_VERBS)[number], request: BitmapRequest, signal: AbortSignal): Promise<BitmapStatus>;
  wait(request: WaitRequest, signal: AbortSignal): Promise<WaitAnswer>;
  jobs(): JobStatus[];
  /** Starts a mirror job, and resolves with it when what a crash would leave of it is durable. */
  mirror(request: MirrorRequest, signal: AbortSignal): Promise<JobStatus>;
  job(id: string, verb: JobVerb, request?: JobRequest): Promise<JobStatus>;
  setJobSpeed(id: string, speed: JobSpeed): Promise<JobStatus>;
  /** Events after `afterSequence` that are still kept, oldest first. */
  events(afterSequence: number): AgentEvent[];
  /** Calls `listener` with every later event, until the returned function is called. */
  follow(listener: (event: AgentEvent) => void): () => void;
}
