/**
 * The agent's state record: role, lineage, epochs and merge state of one VM's disks, the one thing that recovery reads
 * first. It lies in a file of two slots; a new record goes to the slot that does not hold the newest one, so that a
 * torn write leaves the older record whole.
 *
 * Slot layout (big-endian; STATE_SLOT_BYTES each, slot = sequence mod 2):
 *
 * | offset | size | field |
 * |---|---|---|
 * | 0 | 8 | magic "COLOSTAT" |
 * | 8 | 4 | version |
 * | 12 | 4 | body length |
 * | 16 | 8 | sequence, from 1 |
 * | 24 | 4 | CRC-32 of the body |
 * | 28 | 4 | CRC-32 of bytes 0–27 |
 * | 32 | 32 | reserved, zero |
 * | 64 | … | body: one msgpack map (`stateRecordSchema`) |
 */
import assert from "node:assert/strict";
import { crc32 } from "node:zlib";
import { Packr } from "msgpackr";
import { z } from "zod";
import {
  ANCESTORS_MAX,
  BITMAPS_MAX,
  KNOWN_PEERS_MAX,
  REPLACED_PEERS_MAX,
  SECONDARIES_MAX,
  STATE_SLOT_BYTES,
} from "./limits.ts";
import { STATE_RECORD_VERSION } from "./versions.ts";
import {
  BITMAP_FAULTS,
  COPY_MODES,
  DURABILITIES,
  JOB_ERROR_POLICIES,
  JOB_OUTCOMES,
  LINEAGE_ORIGINS,
  MIRROR_SYNCS,
  MODES,
  READ_PATTERNS,
  ROLES,
} from "./words.ts";

const MAGIC = Buffer.from("COLOSTAT", "latin1");
const HEADER_BYTES = 64;
/** Writes of whole blocks never make the kernel read what they do not overwrite. */
const BLOCK_BYTES = 4096;

const epoch = z.int().nonnegative();

/** A VM state that is stored as a whole: `checksum` is that of its chunks' heads (`vmstate-format.ts`). */
export const vmStateMarkSchema = z.object({
  chunks: z.int().positive(),
  bytes: z.int().positive(),
  checksum: z.int().nonnegative(),
});
export type VmStateMark = z.infer<typeof vmStateMarkSchema>;

/** `vmstate` is left out where the checkpoint is one of the disks alone. */
const checkpointSchema = z.object({ epoch, atMs: z.number(), vmstate: vmStateMarkSchema.optional() });

const speedSchema = z.union([z.number().nonnegative(), z.literal("dynamic")]);

/** What an operator has set for a job that a later process goes on with. `speed` is left out where none is set for it. */
const operatorSettingsSchema = z.object({ speed: speedSchema.optional(), isPaused: z.boolean() });
export type OperatorSettings = z.infer<typeof operatorSettingsSchema>;

/** A mirror job: how it was asked for, and what it came to. */
export const mirrorMarkSchema = z.object({
  /** The job's id. */
  id: z.string(),
  disk: z.string(),
  target: z.string(),
  /** Which of the mirrors' dirty bitmaps is its own. */
  slot: z.int().nonnegative(),
  /** Whether that bitmap can be believed; otherwise everything is copied. */
  isTracked: z.boolean(),
  sync: z.enum(MIRROR_SYNCS),
  copyMode: z.enum(COPY_MODES),
  granularityBytes: z.int().positive(),
  unmap: z.boolean(),
  speed: speedSchema,
  /** It waits to be resumed; `error` is why, where no operator has paused it. */
  isPaused: z.boolean().default(false),
  onSourceError: z.enum(JOB_ERROR_POLICIES),
  onTargetError: z.enum(JOB_ERROR_POLICIES),
  startedAtMs: z.number(),
  /** null: it goes on, in this process or the next one. */
  outcome: z.enum(JOB_OUTCOMES).nullable(),
  endedAtMs: z.number().nullable(),
  doneBytes: z.int().nonnegative(),
  error: z.object({ code: z.string(), message: z.string(), action: z.string() }).nullable(),
  /** As that of a disk, of the target; absent: it was not left in good order. */
  cleanMark: z.string().optional(),
});
export type MirrorMark = z.infer<typeof mirrorMarkSchema>;
/** One of several copies of a disk on the primary's side. */
const childSchema = z.object({
  name: z.string(),
  /** null: the disk's own image. */
  image: z.string().nullable(),
  /** The copy whose place this one takes, under its name, once it has everything. It is never recorded as sound before. */
  replaces: z.string().optional(),
  /** What its dirty bitmap is called, where that is not its name. */
  bitmap: z.string().optional(),
  /** It has everything that any of the copies has. At least one is sound. */
  sound: z.boolean(),
  /** What it may lack is in its dirty bitmap; otherwise it may lack anything. */
  tracked: z.boolean(),
  /** A flush of it has failed, and not everything that it covered was written again: no flush of it is to succeed. */
  lostSync: z.boolean().default(false),
  /** As that of a disk; of the disk's own image it is there. */
  cleanMark: z.string().nullable(),
});
export type RecordedChild = z.infer<typeof childSchema>;

const quorumSchema = z.object({
  voteThreshold: z.int().positive(),
  readPattern: z.enum(READ_PATTERNS),
  rewriteCorrupted: z.boolean(),
  blkverify: z.boolean(),
  /** The disk's own image is one of them. */
  children: z.array(childSchema).min(1),
});
export type RecordedQuorum = z.infer<typeof quorumSchema>;

const pairing = z.object({ peer: z.string(), sessions: z.array(z.string()).max(2) }).nullable();

/**
 * Set by a promotion until every overlay has been merged into its base: `epoch` is the checkpoint on which the overlays lie,
 * `activeEpoch` names the active disks. Early records of 0.1.0 lack `epoch`.
 */
const mergeSchema = z.object({
  epoch: epoch.optional(),
  activeEpoch: epoch,
  settings: operatorSettingsSchema.optional(),
});

const recordedSchema = z.object({
  agentId: z.string().length(32),
  vm: z.string(),
  mode: z.enum(MODES),
  role: z.enum(ROLES),
  durability: z.enum(DURABILITIES),
  /** A start that takes `process` in the place of `power` has not succeeded yet: the boot id of the last one that has tried. */
  loweredOn: z.string().optional(),
  clusterBytes: z.int().positive(),
  /** The history that this side's disks belong to; null on a secondary that has not yet committed anything. */
  lineage: z.string().nullable(),
  history: z.object({
    origin: z.enum(LINEAGE_ORIGINS),
    /** A peer may know the lineage, and supersede it: going on without that peer begins a new one. */
    shared: z.boolean(),
    /**
     * On a primary: the peers that may know it. Left out where `shared` says that there is one: that of `pairing`, or
     * nobody knows which.
     */
    knownBy: z.array(z.string()).max(KNOWN_PEERS_MAX).optional(),
    /** On a primary: peers that may know no later lineage than the one that is named, where there are later ones. */
    left: z
      .array(z.object({ peer: z.string(), lineage: z.string() }))
      .max(SECONDARIES_MAX)
      .optional(),
    /** The lineages that this one goes back to, newest first. */
    ancestors: z.array(z.string()).max(ANCESTORS_MAX),
    /** Lineages that a source has begun to send here, not adopted yet, newest first. */
    heard: z.array(z.string()).max(ANCESTORS_MAX),
    /** On a secondary that was rolled back: the newest checkpoint that it has had. Left out where it was not. */
    rolledBackFrom: epoch.optional(),
  }),
  /** The peer of the last session, and the ids of the last two sessions with it, newest first. */
  pairing,
  /** Agents that an operator had another one take the place of (`connect --accept-new-peer`), newest first: they are refused. */
  replaced: z.array(z.string()).max(REPLACED_PEERS_MAX).optional(),
  /** The subject of the certificate with which the peer of the last session has proved itself, where it has shown one. */
  peerSubject: z.string().optional(),
  /**
   * The peer whose copy the dirty bitmaps count from. On a primary null says that nothing is known of any copy; on a
   * secondary, that it has changed nothing by itself, and was not rolled back.
   */
  tracks: z.string().nullable(),
  /** Which place the dirty bitmaps of `tracks` have; left out: the first one, 0. */
  peerSlot: z.int().nonnegative().optional(),
  /** On a primary of several secondaries: what `pairing`, `tracks`, `peerSubject` and `committed` say of one, for each other one. */
  otherPeers: z
    .array(
      z.object({
        slot: z.int().nonnegative(),
        pairing,
        tracks: z.string().nullable(),
        peerSubject: z.string().optional(),
        committed: epoch,
      }),
    )
    .max(SECONDARIES_MAX)
    .optional(),
  /** On a primary: what is set for the sync of the peer of a slot, until that has everything; left out: nothing is for any. */
  syncs: z
    .array(operatorSettingsSchema.extend({ slot: z.int().nonnegative() }))
    .max(SECONDARIES_MAX)
    .optional(),
  /** On a primary: it has met a newer lineage, and serves nothing. On a secondary: the checkpoint is its own state, a former primary's or given up. */
  outdated: z.boolean(),
  /** The operator gave up what is here for the peer's. */
  discardsOwn: z.boolean(),
  /** The agent that it was given up for: with another peer nothing is given up. Left out where nobody is named. */
  discardsOwnFor: z.string().optional(),
  /**
   * What the last start as Primary came to that was given `--assume-in-sync`: whether it `counts`, or is `spent`, since the
   * start before had it too. Left out: the last one was not given it.
   */
  assumeInSync: z.enum(["counts", "spent"]).optional(),
  /** The agent to which this primary has handed its role, while it is not known whether that arrived. */
  handOver: z.string().nullable(),
  /**
   * On a primary whose promotion an operator has forced while the arbiter could not be told: whatever the arbiter's record says is
   * overwritten as soon as it answers. Left out: nothing is.
   */
  arbiterUntold: z.literal(true).optional(),
  /** Peers that this agent dials. */
  peers: z.array(z.string()),
  disks: z.array(
    z.object({
      name: z.string(),
      image: z.string(),
      sizeBytes: z.int().positive().nullable(),
      /** What tells a change of the image, written at a clean stop only; null: the agent runs, or has crashed. */
      cleanMark: z.string().nullable(),
      /** A growth of the image is under way: it has at least `sizeBytes`, and at most these, and is to have them. */
      growsTo: z.int().positive().optional(),
      /**
       * On a secondary: the size before it has grown for a primary that is not known to have grown as well, and may
       * still have any size from this one on.
       */
      formerSizeBytes: z.int().positive().optional(),
      /** What the command line names, where a mirror has put another image in its place. */
      formerImage: z.string().optional(),
      /** The copies beside the image, and the rules for them; left out where there were never any. */
      quorum: quorumSchema.optional(),
    }),
  ),
  /** No epoch above this number has ever been used. */
  epochReserved: epoch,
  /**
   * On a primary of shared disks: its host has lost its power since it placed the barriers up to this one, which nobody
   * has flushed the disks for.
   */
  unflushedThrough: epoch.default(0),
  /**
   * On a primary of shared disks that has written their mark, or was about to: the mark that was there before, which the
   * agent with that id had written; null: there was none. Any other mark of another agent tells that this one was promoted since.
   */
  markedOver: z.object({ agentId: z.string().nullable(), sequence: z.int().nonnegative() }).optional(),
  /**
   * The checkpoint that a failover returns to; 0 before the first. On a primary: the one that the peer of the record's own
   * fields is known to have, whatever this side was promoted from (`merge`).
   */
  committed: checkpointSchema,
  /**
   * On one of several secondaries: the newest checkpoint of which it has heard that it was told to be committed while it lacked
   * it. Until it has committed that one, or a later one, it is another one's to be promoted. On the primary of several: the
   * newest that it has told while one of them lacked it.
   */
  told: epoch.optional(),
  /** On a primary: the newest checkpoint that was told to be committed, where that has a VM state, as far as this has been recorded. */
  vmStateEpoch: epoch.optional(),
  /**
   * Prepared and neither committed nor discarded, ascending. One that `awaitsState` cannot be committed before its VM
   * state is stored.
   */
  prepared: z.array(checkpointSchema.extend({ awaitsState: z.literal(true).optional() })),
  /** Earlier checkpoints whose generations are kept, ascending: each can be exported and rolled back to (`--retain`). */
  retained: z.array(checkpointSchema).default([]),
  merge: mergeSchema.nullable(),
  /**
   * Files of which an fsync has failed since the host has booted: a disk's image where `active` is null, else the active
   * disk whose journal has that id. No flush of them is to succeed.
   */
  lostSyncs: z.array(z.object({ disk: z.string(), active: z.string().nullable() })).default([]),
  /** Disks whose image lies behind a server that has died, and whose next one has not been told again what it may have lost. */
  replaysOwed: z.array(z.string()).default([]),
  /** Mirror jobs, oldest first: those that go on, and the latest concluded ones. */
  mirrors: z.array(mirrorMarkSchema).default([]),
  /**
   * Mode `mirror`, on a secondary: its images take writes that guests do not wait to be fsynced for. After a loss of
   * power one may be missing there, and a later one not.
   */
  acksUnsynced: z.boolean().optional(),
  /**
   * The named bitmaps of a primary's disks: what guests have changed since a moment of `epoch` lies in `bitmaps/ID`; with a
   * `fault` it is not to be believed.
   */
  bitmaps: z
    .array(
      z.object({
        disk: z.string(),
        name: z.string(),
        id: z.int().positive(),
        epoch,
        fault: z.enum(BITMAP_FAULTS).nullable(),
      }),
    )
    .max(BITMAPS_MAX)
    .optional(),
  /** The kernel's boot id when this record was written. */
  bootId: z.string(),
});

export const stateRecordSchema = recordedSchema.transform(({ merge, ...record }) => ({
  ...record,
  merge:
    merge === null ? null : { ...merge, epoch: merge.epoch ?? mergedFrom(merge.activeEpoch, record.committed.epoch) },
}));
export type StateRecord = z.infer<typeof stateRecordSchema>;

/**
 * What a merge goes by whose record does not say: the committed epoch, unless that is surely the peer's by now. The active
 * disks are named after the same epoch, or, where they were discarded, after a later one.
 */
function mergedFrom(activeEpoch: number, committed: number): number {
  return committed === 0 || committed > activeEpoch ? activeEpoch : committed;
}

const packr = new Packr({ useRecords: false });

/** Whether a record fits its slot: that of an agent with many disks and jobs, whose names are long, may not. */
export function fitsStateSlot(record: StateRecord): boolean {
  return packr.pack(record).length <= STATE_SLOT_BYTES - HEADER_BYTES;
}

/** A record as the leading bytes of its slot, in whole blocks; what a longer record left behind them means nothing. */
export function encodeStateSlot(sequence: number, record: StateRecord): Buffer {
  assert(isExact(record), "a state record is read again: its numbers are finite, and whole ones exact");
  const body = packr.pack(record);
  assert(body.length <= STATE_SLOT_BYTES - HEADER_BYTES, "a state record fits its slot: names and counts are limited");
  const slot = Buffer.alloc(slotBytes(body.length));
  MAGIC.copy(slot, 0);
  slot.writeUInt32BE(STATE_RECORD_VERSION, 8);
  slot.writeUInt32BE(body.length, 12);
  slot.writeBigUInt64BE(BigInt(sequence), 16);
  slot.writeUInt32BE(crc32(body), 24);
  slot.writeUInt32BE(crc32(slot.subarray(0, 28)), 28);
  body.copy(slot, HEADER_BYTES);
  return slot;
}

/** Whether a reader takes every number in it; one that it does not take would cost the whole record. */
function isExact(value: unknown): boolean {
  if (typeof value === "number") return Math.abs(value) <= Number.MAX_SAFE_INTEGER;
  if (typeof value !== "object" || value === null) return true;
  for (const part of Object.values(value)) if (!isExact(part)) return false;
  return true;
}

export type StateSlot =
  | {
      readonly kind: "valid";
      readonly sequence: number;
      readonly record: StateRecord;
      /** How many bytes hold it, as `encodeStateSlot` gave them. It may give others for what was decoded: keys have changed places. */
      readonly encodedBytes: number;
    }
  | { readonly kind: "empty" }
  | { readonly kind: "torn" }
  | { readonly kind: "newer"; readonly version: number }
  | { readonly kind: "unknown"; readonly reason: string };

/**
 * What one slot holds. `empty`: never written. `newer`: of a later version of the format. `unknown`: sound, and of this
 * version, but what it says is nothing that this release knows. Neither may be passed over for the other slot, which is older.
 */
export function decodeStateSlot(slot: Buffer): StateSlot {
  if (slot.every((byte) => byte === 0)) return { kind: "empty" };
  if (!slot.subarray(0, 8).equals(MAGIC) || slot.readUInt32BE(28) !== crc32(slot.subarray(0, 28))) {
    return { kind: "torn" };
  }
  const version = slot.readUInt32BE(8);
  if (version > STATE_RECORD_VERSION) return { kind: "newer", version };
  const length = slot.readUInt32BE(12);
  if (length > slot.length - HEADER_BYTES) return { kind: "torn" };
  const body = slot.subarray(HEADER_BYTES, HEADER_BYTES + length);
  if (slot.readUInt32BE(24) !== crc32(body)) return { kind: "torn" };
  const parsed = stateRecordSchema.safeParse(packr.unpack(body));
  if (!parsed.success) return { kind: "unknown", reason: describeIssue(parsed.error) };
  const sequence = Number(slot.readBigUInt64BE(16));
  return { kind: "valid", sequence, record: parsed.data, encodedBytes: slotBytes(length) };
}

function slotBytes(bodyBytes: number): number {
  return Math.ceil((HEADER_BYTES + bodyBytes) / BLOCK_BYTES) * BLOCK_BYTES;
}

function describeIssue({ issues: [issue] }: z.ZodError): string {
  return `${issue?.path.join(".") ?? ""}: ${issue?.message ?? ""}`;
}
