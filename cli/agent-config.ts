import { z } from "zod";
import { jobSpeedSchema } from "../proto/status.ts";
import { OVERLAY_LIMIT_MIN_BYTES, RETAINED_MAX, SECONDARIES_MAX } from "../proto/limits.ts";
import {
  ACK_POLICIES,
  CONGESTION_POLICIES,
  DURABILITIES,
  FAILOVER_KINDS,
  MODES,
  PEER_LOSS_POLICIES,
  READ_PATTERNS,
  ROLES,
  SECONDARY_EXPORTS,
} from "../proto/words.ts";

/**
 * Everything that one agent is started with; `checked-config.ts` makes it from flags and the configuration file. What
 * `LiveSettings` names may change while it runs, and is read anew each time that it is needed.
 */
export const agentConfigSchema = z.object({
  /** The command's role word: what a new state directory begins with. */
  role: z.enum(ROLES),
  vm: z.string(),
  mode: z.enum(MODES),
  stateDirectory: z.string(),
  disks: z.array(z.object({ name: z.string(), image: z.string() })).min(1),
  /** On a primary: the copies beside the images that a new state directory begins with. */
  children: z.array(z.object({ disk: z.string(), name: z.string(), image: z.string() })).optional(),
  /** So many sound copies must take each write; undefined: one. */
  voteThreshold: z.int().positive().optional(),
  readPattern: z.enum(READ_PATTERNS).optional(),
  rewriteCorrupted: z.boolean().optional(),
  blkverify: z.boolean().optional(),
  /** A copy that takes longer for a request is broken; undefined: CHILD_TIMEOUT_DEFAULT_MS. */
  childTimeoutMs: z.number().positive().optional(),
  /** URLs of the peers that the agent dials. */
  peers: z.array(z.string()),
  /** How many secondaries it may have as a primary; undefined: one. */
  secondaries: z.int().positive().max(SECONDARIES_MAX).optional(),
  ack: z.enum(ACK_POLICIES),
  durability: z.enum(DURABILITIES),
  peerTimeoutMs: z.number().positive(),
  onPeerLoss: z.enum(PEER_LOSS_POLICIES),
  onCongestion: z.enum(CONGESTION_POLICIES),
  /** How fast syncs and merges go. */
  resyncSpeed: jobSpeedSchema,
  windowBytes: z.int().positive(),
  clusterBytes: z.int().positive(),
  /** The unit in which a write makes the dirty bitmap durable before it. */
  extentBytes: z.int().positive(),
  /** How often the dirty bitmap is told what has become equal. */
  settleEveryMs: z.number().positive(),
  /** The dirty bitmap's file is written anew from this length on; undefined: DIRTY_FILE_MIN_BYTES. */
  dirtyFileMinBytes: z.int().positive().optional(),
  secondaryExport: z.enum(SECONDARY_EXPORTS),
  /** Committed checkpoints that a secondary keeps beside the last one. */
  retain: z.int().nonnegative().max(RETAINED_MAX),
  /** What a secondary's overlays may take; undefined: what their file system has. */
  overlayLimitBytes: z.int().min(OVERLAY_LIMIT_MIN_BYTES).optional(),
  /** What a secondary's block buffers hold in memory (mode `mc`); undefined: BUFFER_MEMORY_DEFAULT_BYTES. */
  bufferMemoryBytes: z.int().nonnegative().optional(),
  /** On a secondary: make missing images at the primary's size. */
  createImages: z.boolean(),
  /** Mode `shared`: a file beside the shared disk that both hosts can reach, where the mark lies. */
  sharedMark: z.string().optional(),
  assumeInSync: z.boolean(),
  /** On a primary: take images that are not the recorded ones, or were changed meanwhile, as they are. */
  adoptImages: z.boolean(),
  checkpointEveryMs: z.number().positive().optional(),
  maxCheckpointAgeMs: z.number().positive().optional(),
  /** Whether a secondary takes over by itself; it needs an arbiter for that. */
  failover: z.enum(FAILOVER_KINDS).optional(),
  /** How long a lease, or a promise, lasts that is not renewed; undefined: LEASE_TTL_DEFAULT_MS. */
  arbiterTtlMs: z.number().positive().optional(),
});
export type AgentConfig = z.infer<typeof agentConfigSchema>;
