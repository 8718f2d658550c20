/**
 * The replication protocol: the messages that two agents exchange over one link, and their encoding.
 *
 * A message is one binary WebSocket message:
 *
 * | offset | size | field |
 * |---|---|---|
 * | 0 | 4 | header length H, big-endian |
 * | 4 | 4 | number of the message: how many its sender has sent before it in this session, modulo 2^32, big-endian |
 * | 8 | H | header: one msgpack map whose `type` names the message |
 * | 8+H | … | payload: in `data` the bytes of its `write` and `original` operations one after the other, in `vmstate` a chunk, in `content` what a range holds |
 *
 * The encoding functions leave the number 0, and the decoding function passes it over: the session knows it.
 *
 * Order of a session: both sides send `greeting`. Who has dialled sends `proof`, then the other one does, each with `hello` and
 * `seal` once it has accepted the other's proof; the primary sends `begin`, the secondary `differs` as often as it takes, and
 * `ready`; the primary `united`. Then the primary sends `data`, `sync`, `lineage`, `barrier`, `vmstate`, `vmstate-end`,
 * `commit`, `discard`, `takeover`, `verify`, `checksum` and `read`; the secondary sends `ack`, `answer`, `content`, `vmstate-ack`, `stall`,
 * `unstall`, `wanted` and `given-up`; both send `ping`. A side that finds fault sends `refuse` and closes. A side whose `greeting` says `probe` closes
 * after the seals, and may measure the link with a `ping` or some before.
 */
import assert from "node:assert/strict";
import { Packr } from "msgpackr";
import { z } from "zod";
import { ColobusError, isErrorCode, oneLine } from "./errors.ts";
import {
  ANCESTORS_MAX,
  BATCH_MAX_OPERATIONS,
  CONTENT_MAX_BYTES,
  DIFFERS_RUNS_MAX,
  DISKS_MAX,
  EPOCH_MAX,
  HANDSHAKE_MESSAGE_MAX_BYTES,
  LINK_MEASURE_CHUNK_BYTES,
  OPERATION_COST_BYTES,
  PREPARED_EPOCHS_MAX,
  REPLACED_PEERS_MAX,
  SECONDARIES_MAX,
  VERIFY_HOLE_BYTES,
  VMSTATE_CHUNK_BYTES,
} from "./limits.ts";
import { vmStateMarkSchema } from "./state-record.ts";
import { REPLICATION_PROTOCOL_OLDEST, REPLICATION_PROTOCOL_VERSION } from "./versions.ts";
import { ACK_POLICIES, MODES, ROLES, SYNC_EXTENTS } from "./words.ts";

const NUMBER_OFFSET = 4;
const HEAD_BYTES = 8;
/** Of a `data` message with all operations that one may have; others as a whole are shorter. */
const HEADER_MAX_BYTES = OPERATION_COST_BYTES * BATCH_MAX_OPERATIONS;

/** What a `sync` message says of the sync. */
export const SYNC_PHASES = ["begin", "pause", "end"] as const;
export type SyncPhase = (typeof SYNC_PHASES)[number];

/**
 * What one operation of a `data` message does to a range of a disk, or, in mode `shared`, tells of it: what whole
 * clusters hold that the primary is about to overwrite.
 */
export const OPERATION_KINDS = { "write": 0, "discard": 1, "zero": 2, "original": 3, "zero-original": 4 } as const;
export type OperationKind = keyof typeof OPERATION_KINDS;
const KIND_NAMES: readonly OperationKind[] = ["write", "discard", "zero", "original", "zero-original"];
const HAS_PAYLOAD: Readonly<Record<OperationKind, boolean>> = {
  "write": true,
  "discard": false,
  "zero": false,
  "original": true,
  "zero-original": false,
};

export interface Operation {
  /** `discard` and `zero` both make the range read as zeroes; `discard` frees its space. */
  readonly kind: OperationKind;
  /** Index into the disks of the primary's `hello`. */
  readonly disk: number;
  readonly offset: number;
  readonly length: number;
  /** The bytes of a `write` or an `original`, `length` long; empty otherwise. A view of the received message. */
  readonly payload: Buffer;
}

/** 0 where there is none. */
const epoch = z.int().nonnegative().max(EPOCH_MAX);
const someEpoch = epoch.positive();
const byteString = (accepts: (length: number) => boolean): z.ZodType<Uint8Array> =>
  z.custom<Uint8Array>((value) => value instanceof Uint8Array && accepts(value.length));
const text = z.string().max(1024);
/** Of an agent, a lineage, a session. They are recorded, many of them in one record, and named to hooks. */
const id = z.string().regex(/^[\x21-\x7e]{0,64}$/);
/** One that can be recorded and dialled; whether this side may is its own configuration's to say. */
const peerUrl = text.refine((url) => URL.canParse(url));
const ERROR_TEXT_MAX = 4096;
const errorBody = z.object({
  code: text,
  message: z.string().max(ERROR_TEXT_MAX),
  action: z.string().max(ERROR_TEXT_MAX),
});
const CHECKSUM_BYTES = 32;
export const NONCE_BYTES = 16;
const MAC_BYTES = 32;
const isMac = (length: number): boolean => length === 0 || length === MAC_BYTES;
/** What of a validator's findings is told: a hostile message can have thousands of faults. */
const FINDINGS_MAX = 300;

/** What is said to whoever is on the line, before anybody has proved anything. Its form is that of every version of the protocol. */
const greetingSchema = z.object({
  type: z.literal("greeting"),
  /** The newest version of the protocol that this side speaks, and the oldest where that is another one. */
  protocol: z.int().positive(),
  protocolOldest: z.int().positive().optional(),
  /** Random, so that no `proof` and no `seal` can be used twice. */
  nonce: byteString((length) => length === NONCE_BYTES),
  /** Whether this side holds a pre-shared token. */
  hasToken: z.boolean(),
  /** This side only asks what the two would do: it closes once both have said hello, and nothing follows. */
  probe: z.boolean(),
});
export type Greeting = Omit<z.infer<typeof greetingSchema>, "type">;

const helloSchema = z.object({
  type: z.literal("hello"),
  agentVersion: text,
  agentId: id,
  vm: text,
  mode: z.enum(MODES),
  role: z.enum(ROLES),
  ack: z.enum(ACK_POLICIES),
  clusterBytes: z.int().positive(),
  /** The send window that this side is configured with; the smaller one of the two counts. */
  windowBytes: z.int().positive(),
  /**
   * `sizeBytes` is null where the secondary is to make the image at the primary's size. A secondary's disk that was grown
   * for a primary which may not have grown itself has its size before as `formerSizeBytes`.
   */
  disks: z
    .array(
      z.object({
        name: text,
        sizeBytes: z.int().positive().nullable(),
        formerSizeBytes: z.int().positive().optional(),
      }),
    )
    .max(DISKS_MAX),
  lineage: id.nullable(),
  /** Whether a peer may know the lineage; it is durable before one can. */
  shared: z.boolean(),
  ancestors: z.array(id).max(ANCESTORS_MAX),
  heard: z.array(id).max(ANCESTORS_MAX),
  /** On a secondary that was rolled back: the newest checkpoint that it has had; left out where it was not. */
  rolledBackFrom: epoch.optional(),
  pairing: z.object({ peer: id, sessions: z.array(id).max(2) }).nullable(),
  /** Agents that another one has taken the place of, by an operator's word; left out where there are none. */
  replaced: z.array(id).max(REPLACED_PEERS_MAX).optional(),
  /** The agent whose copy this side's dirty bitmaps count from. */
  tracks: id.nullable(),
  outdated: z.boolean(),
  discardsOwn: z.boolean(),
  /** For which peer, where one is named: it is nothing to any other one. */
  discardsOwnFor: id.optional(),
  handOver: id.nullable(),
  /** Bytes that this side's dirty bitmaps name: what it would lose if its data were given up. */
  changedBytes: z.int().nonnegative(),
  committed: epoch,
  /** On a secondary: the checkpoint that was told to be committed and that it lacks, so that it is promoted by force only. */
  lacks: epoch.optional(),
  prepared: z.array(epoch).max(PREPARED_EPOCHS_MAX),
  /** On a secondary: which of these, and whether the committed one, have a VM state; left out where none has. */
  vmstates: z
    .array(someEpoch)
    .max(PREPARED_EPOCHS_MAX + 1)
    .optional(),
  /** The highest epoch number that this side has seen used. */
  epochSeen: epoch,
  /** On a primary: the operator says that the copies are identical (`--assume-in-sync`), and it has everything that it wrote since in a bitmap. */
  assumeInSync: z.boolean(),
  /** On a primary of several secondaries: what counts instead of the fields above for the peer that one of them is about. */
  otherPeers: z
    .array(
      z.object({
        pairing: z.object({ peer: id, sessions: z.array(id).max(2) }).nullable(),
        tracks: id.nullable(),
        changedBytes: z.int().nonnegative(),
        committed: epoch,
      }),
    )
    .max(SECONDARIES_MAX)
    .optional(),
});
export type Hello = Omit<z.infer<typeof helloSchema>, "type">;

/**
 * Where a side's images are, for status only. It is told once both sides have proved themselves; an `image` is null where
 * its name is too long to be told.
 */
const siteSchema = z.object({
  /** The host's own name. */
  host: text,
  /** Two agents under the same one run on one machine. */
  bootId: text,
  disks: z.array(z.object({ name: text, image: text.nullable() })).max(DISKS_MAX),
});
export type Site = z.infer<typeof siteSchema>;

/** What each message without a payload is made of. */
export const MESSAGE_SCHEMAS = {
  "greeting": greetingSchema,
  /** HMAC-SHA-256 under the pre-shared token over both greetings; empty without a token. */
  "proof": z.object({ type: z.literal("proof"), mac: byteString(isMac) }),
  "hello": helloSchema,
  /** The same over both greetings and the sender's `hello`, which it follows. */
  "seal": z.object({ type: z.literal("seal"), mac: byteString(isMac) }),
  "begin": z.object({
    type: z.literal("begin"),
    /** Identifies the session; both sides record it before data flows. */
    session: id,
    /**
     * `delta`: the primary waits for what the secondary knows to differ. Else it knows already what it will send; with
     * `rearm` the secondary gives its checkpoint up before it is ready.
     */
    extent: z.enum(SYNC_EXTENTS),
    lineage: id,
    /** The epoch that the writes to come belong to. */
    openEpoch: epoch,
    /** Sizes of the disks, in the order of the primary's `hello`. */
    diskSizes: z.array(z.int().positive()).max(DISKS_MAX),
    site: siteSchema.optional(),
  }),
  /** Clusters that the secondary has changed by itself, before `ready`: index of the first and count, in turns. */
  "differs": z.object({
    type: z.literal("differs"),
    disk: z.int().nonnegative(),
    runs: z.array(z.int().nonnegative()).max(2 * DIFFERS_RUNS_MAX),
  }),
  "ready": z.object({ type: z.literal("ready"), differs: z.int().nonnegative(), site: siteSchema.optional() }),
  /** The primary has recorded what `differs` named: the secondary may forget it. */
  "united": z.object({ type: z.literal("united") }),
  /** The primary starts, pauses, or ends, sending the clusters that the secondary may lack. */
  "sync": z.object({
    type: z.literal("sync"),
    phase: z.enum(SYNC_PHASES),
    totalBytes: z.int().nonnegative(),
    /** The primary's history: heard of at the beginning, and adopted at the end. */
    lineage: id,
    ancestors: z.array(id).max(ANCESTORS_MAX),
    /** The newest checkpoint that was told to be committed, where the secondary, one of several, lacks it. */
    told: someEpoch.optional(),
  }),
  /**
   * A new lineage of the primary's, which has gone on without another secondary. Behind everything that was sent before it
   * is heard of, or adopted where everything has arrived.
   */
  "lineage": z.object({
    type: z.literal("lineage"),
    id: z.int().positive(),
    lineage: id,
    ancestors: z.array(id).max(ANCESTORS_MAX),
  }),
  /** A checkpoint is about to be told to be committed, which this one of several secondaries lacks. */
  "told": z.object({ type: z.literal("told"), id: z.int().positive(), epoch: someEpoch }),
  "barrier": z.object({
    type: z.literal("barrier"),
    id: z.int().positive(),
    epoch: someEpoch,
    /** Whether the epoch is committed with the same record that closes it. */
    commit: z.boolean(),
    /** The epoch is prepared only when its VM state has followed. */
    vmstate: z.literal(true).optional(),
  }),
  /** All chunks of the VM state of `epoch` were sent: `checksum` is that of their heads. */
  "vmstate-end": z.object({
    type: z.literal("vmstate-end"),
    id: z.int().positive(),
    epoch: someEpoch,
    ...vmStateMarkSchema.shape,
  }),
  /** So many chunks of the VM state of `epoch` are taken; or no more are, for a reason. */
  "vmstate-ack": z.object({
    type: z.literal("vmstate-ack"),
    epoch: someEpoch,
    chunks: z.int().nonnegative(),
    error: errorBody.nullable(),
  }),
  "commit": z.object({ type: z.literal("commit"), id: z.int().positive(), epoch: someEpoch }),
  "discard": z.object({
    type: z.literal("discard"),
    id: z.int().positive(),
    epochs: z.array(someEpoch).max(PREPARED_EPOCHS_MAX),
  }),
  /** The primary has stopped serving, and asks the secondary, which has everything, to take its role under `lineage`. */
  "takeover": z.object({
    type: z.literal("takeover"),
    id: z.int().positive(),
    lineage: id,
    /** Where the primary dials its other secondaries: who takes over dials them there. */
    siblings: z.array(peerUrl).max(SECONDARIES_MAX).optional(),
  }),
  /** A disk is to have at least `sizeBytes`: the primary's is about to grow. */
  "resize": z.object({
    type: z.literal("resize"),
    id: z.int().positive(),
    disk: z.int().nonnegative(),
    sizeBytes: z.int().positive(),
  }),
  /** The primary begins, or ends, asking for checksums. */
  "verify": z.object({ type: z.literal("verify"), active: z.boolean() }),
  /** Asks what a range holds once everything sent before this is applied, and nothing that is sent later. */
  "checksum": z.object({
    type: z.literal("checksum"),
    id: z.int().positive(),
    disk: z.int().nonnegative(),
    offset: z.int().nonnegative(),
    length: z.int().positive().max(VERIFY_HOLE_BYTES),
  }),
  /** Asks for what a range holds, at the same place in the stream as `checksum`; ended by `content`, or by an `answer` with an error. */
  "read": z.object({
    type: z.literal("read"),
    id: z.int().positive(),
    disk: z.int().nonnegative(),
    offset: z.int().nonnegative(),
    length: z.int().positive().max(CONTENT_MAX_BYTES),
  }),
  /**
   * Ends the request `id` (`lineage`, `barrier`, `vmstate-end`, `commit`, `discard`, `takeover`, `resize`, `checksum`): done, or failed for
   * a reason; of a `read`: failed.
   */
  "answer": z.object({
    type: z.literal("answer"),
    id: z.int().positive(),
    error: errorBody.nullable(),
    /** How long the secondary was at it, from when everything before it was stable. */
    tookMs: z.number().nonnegative(),
    /** Of a `checksum`: SHA-256 of the range, empty where it holds nothing but zeroes. */
    checksum: byteString((length) => length === 0 || length === CHECKSUM_BYTES).optional(),
  }),
  /** Operations up to `received` have arrived; those up to `stable` survive what the secondary's durability names. */
  "ack": z.object({ type: z.literal("ack"), received: z.int().nonnegative(), stable: z.int().nonnegative() }),
  /** The secondary cannot take writes now, and says why; `unstall` when it can again. */
  "stall": z.object({ type: z.literal("stall"), error: errorBody }),
  "unstall": z.object({ type: z.literal("unstall") }),
  /** A checkpoint would free `freeableBytes` of the overlays, which may take `limitBytes`. */
  "wanted": z.object({
    type: z.literal("wanted"),
    freeableBytes: z.int().nonnegative(),
    limitBytes: z.int().nonnegative(),
  }),
  /** An operator has given the committed checkpoint up: none of an epoch up to this one is committed or prepared now. */
  "given-up": z.object({ type: z.literal("given-up"), throughEpoch: epoch }),
  /**
   * Says that its sender lives. With an arbiter the primary's has its clock in `at`, and the secondary answers each of
   * those at once: `heard` is that clock, and it will not take over by itself for `promiseMs` from when it has heard it.
   * Who only asks (`probe`) may measure the link with pings of an `at`, with `padding` or without, and `wallMs` of the
   * answer is the peer's time of day.
   */
  "ping": z.object({
    type: z.literal("ping"),
    at: z.number().optional(),
    heard: z.number().optional(),
    promiseMs: z.number().nonnegative().optional(),
    wallMs: z.number().nonnegative().optional(),
    padding: byteString((length) => length <= LINK_MEASURE_CHUNK_BYTES).optional(),
  }),
  "refuse": z.object({ type: z.literal("refuse"), error: errorBody }),
} as const;

/** Operations `firstSequence`, `firstSequence + 1` … of the session, in the order in which they are to be applied. */
export interface DataMessage {
  readonly type: "data";
  readonly firstSequence: number;
  readonly operations: readonly Operation[];
}

/** Chunk `index`, from 0, of the VM state of the prepared checkpoint `epoch`. `payload` is a view of the received message. */
export interface VmStateMessage {
  readonly type: "vmstate";
  readonly epoch: number;
  readonly index: number;
  /** CRC-32 of the payload. */
  readonly crc: number;
  readonly payload: Buffer;
}

/** What the range of the `read` with this id holds. `payload` is a view of the received message. */
export interface ContentMessage {
  readonly type: "content";
  readonly id: number;
  readonly payload: Buffer;
}

export type Message =
  | { [Type in keyof typeof MESSAGE_SCHEMAS]: z.infer<(typeof MESSAGE_SCHEMAS)[Type]> }[keyof typeof MESSAGE_SCHEMAS]
  | DataMessage
  | VmStateMessage
  | ContentMessage;
export type MessageType = Message["type"];
/** A message whose header is all there is of it. */
export type HeaderMessage = Exclude<Message, DataMessage | VmStateMessage | ContentMessage>;
/** What a secondary tells without being asked, and without an answer. */
export type Notice = Extract<Message, { type: "wanted" | "given-up" }>;

const packr = new Packr({ useRecords: false });

/** The message as buffers to be sent one after the other. */
export function encodeMessage(message: HeaderMessage): Buffer[] {
  return [encodeHeader(message)];
}

/**
 * A `data` message as buffers to be sent one after the other; the payloads are not copied.
 * `ranges` is flat: kind, disk, offset, length of each operation.
 */
export function encodeData(firstSequence: number, ranges: readonly number[], payloads: readonly Buffer[]): Buffer[] {
  return [encodeHeader({ type: "data", firstSequence, ranges }), ...payloads];
}

/** A `vmstate` message as buffers to be sent one after the other; the payload is not copied. */
export function encodeVmState({ payload, ...header }: VmStateMessage): Buffer[] {
  return [encodeHeader({ ...header, length: payload.length }), payload];
}

/** A `content` message as buffers to be sent one after the other; the payload is not copied. */
export function encodeContent({ payload, ...header }: ContentMessage): Buffer[] {
  return [encodeHeader({ ...header, length: payload.length }), payload];
}

function encodeHeader(header: object): Buffer {
  const body = packr.pack(header);
  const head = Buffer.allocUnsafe(HEAD_BYTES + body.length);
  head.writeUInt32BE(body.length, 0);
  head.writeUInt32BE(0, NUMBER_OFFSET);
  body.copy(head, HEAD_BYTES);
  return head;
}

/** Writes the number of an encoded message into its first part. */
export function numberMessage(parts: readonly Buffer[], number: number): void {
  const [head] = parts;
  assert(head !== undefined, "an encoded message has a head");
  head.writeUInt32BE(number, NUMBER_OFFSET);
}

/** The number of a message that was decoded without an error. */
export function numberOf(bytes: Buffer): number {
  return bytes.readUInt32BE(NUMBER_OFFSET);
}

/**
 * The message in `bytes`, every field checked. Payloads and other byte fields are views of `bytes`.
 * Errors: `protocol-error`; `protocol-mismatch` for a `greeting` of a release that speaks no version which this one does.
 */
export function decodeMessage(bytes: Buffer): Message {
  if (bytes.length < HEAD_BYTES) throw malformed("it is shorter than its head");
  const headerBytes = bytes.readUInt32BE(0);
  const headerEnd = HEAD_BYTES + headerBytes;
  if (headerEnd > bytes.length) throw malformed("its header reaches beyond its end");
  if (headerBytes > HEADER_MAX_BYTES) throw malformed("its header is too long");
  const header = unpackHeader(bytes.subarray(HEAD_BYTES, headerEnd));
  if (header.type === "data") {
    const message = decodeData(header, bytes.subarray(headerEnd));
    // A payload keeps the whole message in memory, of which the window counts so much.
    if (headerBytes > OPERATION_COST_BYTES * message.operations.length) throw malformed("data: its header is too long");
    return message;
  }
  if (header.type === "vmstate" || header.type === "content") {
    if (headerBytes > OPERATION_COST_BYTES) throw malformed(`${header.type}: its header is too long`);
    const payload = bytes.subarray(headerEnd);
    return header.type === "vmstate" ? decodeVmState(header, payload) : decodeContent(header, payload);
  }
  if (headerEnd !== bytes.length) throw malformed("messages of its type have no payload");
  if (bytes.length > HANDSHAKE_MESSAGE_MAX_BYTES) throw malformed("it is too long");
  if (typeof header.type !== "string" || !Object.hasOwn(MESSAGE_SCHEMAS, header.type))
    throw malformed("its type is unknown");
  if (header.type === "greeting" && !speaksOurs(header)) throw otherVersion(header);
  const parsed = MESSAGE_SCHEMAS[header.type as keyof typeof MESSAGE_SCHEMAS].safeParse(header);
  if (!parsed.success) throw malformed(`${header.type}: ${z.prettifyError(parsed.error).slice(0, FINDINGS_MAX)}`);
  return parsed.data;
}

/** A fault in the form in which messages carry it; sentences that are too long for that are cut. */
export type ErrorBody = z.infer<typeof errorBody>;

export function toErrorBody({ code, message, action }: ColobusError): ErrorBody {
  return { code, message: message.slice(0, ERROR_TEXT_MAX), action: action.slice(0, ERROR_TEXT_MAX) };
}

/**
 * The fault that a message carries; a code that this release does not know becomes `protocol-error`. Its sentences are
 * made to be one line each: they come from outside, and end on an operator's terminal.
 */
export function fromErrorBody(body: ErrorBody): ColobusError {
  const code = isErrorCode(body.code) ? body.code : "protocol-error";
  return new ColobusError(code, oneLine(body.message), oneLine(body.action));
}

function unpackHeader(bytes: Buffer): Record<string, unknown> {
  let value: unknown;
  try {
    value = packr.unpack(bytes);
  } catch (error) {
    throw malformed(`its header is no msgpack: ${error instanceof Error ? error.message : String(error)}`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw malformed("its header is no map");
  return value as Record<string, unknown>;
}

function decodeData(header: Record<string, unknown>, payload: Buffer): DataMessage {
  const { firstSequence, ranges } = header;
  if (!isCount(firstSequence) || firstSequence === 0) throw malformed("data: firstSequence");
  if (!Array.isArray(ranges) || ranges.length === 0 || ranges.length % 4 !== 0) throw malformed("data: ranges");
  if (ranges.length > 4 * BATCH_MAX_OPERATIONS) throw malformed("data: it has too many operations");
  const operations: Operation[] = [];
  let at = 0;
  for (let index = 0; index < ranges.length; index += 4) {
    const number: unknown = ranges[index];
    const kind = isCount(number) ? KIND_NAMES[number] : undefined;
    const disk: unknown = ranges[index + 1];
    const offset: unknown = ranges[index + 2];
    const length: unknown = ranges[index + 3];
    if (kind === undefined || !isCount(disk) || !isCount(offset) || !isCount(length) || length === 0) {
      throw malformed("data: an operation's fields");
    }
    const payloadEnd = HAS_PAYLOAD[kind] ? at + length : at;
    if (payloadEnd > payload.length) throw malformed("data: the payload is too short");
    operations.push({ kind, disk, offset, length, payload: payload.subarray(at, payloadEnd) });
    at = payloadEnd;
  }
  if (at !== payload.length) throw malformed("data: the payload is too long");
  return { type: "data", firstSequence, operations };
}

function decodeVmState(header: Record<string, unknown>, payload: Buffer): VmStateMessage {
  const { epoch, index, crc, length } = header;
  if (!isCount(epoch) || epoch === 0 || !isCount(index) || !isCount(crc)) throw malformed("vmstate: its fields");
  if (payload.length !== length || length === 0 || length > VMSTATE_CHUNK_BYTES)
    throw malformed("vmstate: its payload's length");
  return { type: "vmstate", epoch, index, crc, payload };
}

function decodeContent({ id, length }: Record<string, unknown>, payload: Buffer): ContentMessage {
  if (!isCount(id) || id === 0) throw malformed("content: its id");
  if (payload.length !== length || length === 0 || length > CONTENT_MAX_BYTES)
    throw malformed("content: its payload's length");
  return { type: "content", id, payload };
}

function isCount(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

function malformed(what: string): ColobusError {
  return new ColobusError(
    "protocol-error",
    `the peer sent a message that is not of the protocol: ${what}`,
    "Check what is connected to the replication port; both agents should run the same release.",
  );
}

/** What the peer sent as its version, if it can be one. */
function shown(version: unknown): string {
  return typeof version === "number" || typeof version === "string" ? oneLine(String(version).slice(0, 40)) : "unknown";
}

/** Whether the sender of a greeting speaks a version of the protocol that this release does: the newest such is spoken. */
function speaksOurs({ protocol, protocolOldest = protocol }: Record<string, unknown>): boolean {
  if (!isCount(protocol) || !isCount(protocolOldest)) return false;
  return protocolOldest <= REPLICATION_PROTOCOL_VERSION && protocol >= REPLICATION_PROTOCOL_OLDEST;
}

function otherVersion({ protocol, protocolOldest = protocol }: Record<string, unknown>): ColobusError {
  return new ColobusError(
    "protocol-mismatch",
    `the peer speaks replication protocol ${versionRange(protocolOldest, protocol)}, ` +
      `this agent speaks ${versionRange(REPLICATION_PROTOCOL_OLDEST, REPLICATION_PROTOCOL_VERSION)}`,
    "Run the same release of Colobus on both hosts, or two that follow one another.",
  );
}

function versionRange(oldest: unknown, newest: unknown): string {
  return oldest === newest ? shown(newest) : `${shown(oldest)} to ${shown(newest)}`;
}
