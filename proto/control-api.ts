/**
 * The control API: HTTP and JSON under `/v1/` on the agent's unix socket. Requests and answers are declared here, and
 * both the server and the command line are built from these schemas.
 *
 * All sizes are bytes and all times milliseconds; keys are camelCase. Fields may be added in later versions.
 */
import { z } from "zod";
import { COMMAND_TIMEOUT_DEFAULT_MS, COMMAND_TIMEOUT_MAX_MS } from "./limits.ts";
import {
  type AgentEvent,
  type JobSpeed,
  type JobStatus,
  type Status,
  bytes,
  childSchema,
  epoch,
  jobSpeedSchema,
  ms,
  wouldLose,
} from "./status.ts";
import {
  ARBITER_OUTLOOKS,
  BITMAP_FAULTS,
  BITMAP_STATES,
  COPY_MODES,
  JOB_ERROR_POLICIES,
  MIRROR_SYNCS,
  MODES,
  RESYNC_OUTCOMES,
  SYNC_EXTENTS,
  VERDICT_KINDS,
  VERDICT_RULES,
  WAIT_CONDITIONS,
} from "./words.ts";

const timeoutMs = z.number().positive().max(COMMAND_TIMEOUT_MAX_MS).default(COMMAND_TIMEOUT_DEFAULT_MS);
const epochNumber = z.int().positive();

export const checkpointRequestSchema = z.strictObject({
  prepare: z.boolean().default(false),
  /** With `prepare`: a VM state follows, and is part of the checkpoint. */
  vmstate: z.boolean().optional(),
  /** false: fails with `not-in-sync` at once where no barrier may be placed yet, as for a guest that is paused meanwhile. */
  wait: z.boolean().optional(),
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
  /** Whoever asks starts the VM when the answer says so: the agent's `--on-failover` is not run then. */
  startsVm: z.boolean().optional(),
  timeoutMs,
});
export type FailoverRequest = z.infer<typeof failoverRequestSchema>;
/** What an arbiter would make of a failover now; `waitMs`: how long that would wait at least, where it is known. */
const arbiterOutlookSchema = z.object({
  outlook: z.enum(ARBITER_OUTLOOKS),
  reason: z.string().nullable(),
  waitMs: ms.nullable(),
});
export type ForeseenClaim = z.infer<typeof arbiterOutlookSchema>;

export const failoverAnswerSchema = z.object({
  /** True when the agent was Primary already and nothing was done. */
  already: z.boolean(),
  dryRun: z.boolean(),
  /** Whoever has asked starts the VM, and nobody else does. */
  startsVm: z.boolean(),
  /** In `mirror` nothing is returned to: what is stable is served, and `epoch` counts syncs only. */
  mode: z.enum(MODES),
  epoch,
  /** Age of the checkpoint that is served; null where it is not known. */
  ageMs: ms.nullable(),
  wouldLose,
  discardedActiveBytes: bytes,
  /** Of the clusters that are to be put into the images, holes and zeroes among them. */
  mergeBytes: bytes,
  jobs: z.array(z.string()),
  /** Of a dry run on a secondary with an arbiter. */
  arbiter: arbiterOutlookSchema.optional(),
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
  /** With `acceptNewPeer` or `discardMyData`: whom to dial from now on. */
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

export const startAloneRequestSchema = z.strictObject({
  /** Also in a split brain that this side knows of. */
  force: z.boolean().default(false),
});
export type StartAloneRequest = z.infer<typeof startAloneRequestSchema>;
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
  startAlone(request: StartAloneRequest): Promise<StartAloneAnswer>;
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
