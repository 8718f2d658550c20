/** The tables of the replication protocol: its messages, and the fields of `greeting` and `hello`. */
import {
  MESSAGE_SCHEMAS,
  OPERATION_KINDS,
  type Greeting,
  type Hello,
  type MessageType,
} from "../proto/replication-messages.ts";
import { markdownTable } from "./markdown-table.ts";
import { schemaFields } from "./schema-fields.ts";

interface MessageMeaning {
  readonly from: "both" | "primary" | "secondary";
  readonly meaning: string;
}

/** The types make a message without a sentence, or a sentence without a message, a compile error. */
const MESSAGE_MEANINGS: Record<MessageType, MessageMeaning> = {
  "greeting": { from: "both", meaning: "What anybody may hear: the fields are listed below." },
  "proof": {
    from: "both",
    meaning:
      "That this side holds the pre-shared token. Who has dialled sends it first; empty without a token, as that of `seal`.",
  },
  "hello": { from: "both", meaning: "Who this side is and what it has: the fields are listed below." },
  "seal": { from: "both", meaning: "That the `hello` before it is this side's, and as it was sent." },
  "begin": {
    from: "primary",
    meaning:
      "The stream starts: the session's id, what will be sent, the open epoch, and the disks' sizes. `site`: where this side's images are, for status only.",
  },
  "differs": {
    from: "secondary",
    meaning:
      "Clusters that it has changed by itself as a primary, as pairs of a first index and a count. In a `delta` only.",
  },
  "ready": {
    from: "secondary",
    meaning:
      "Nothing of an older session is under way, and the disks are open. It names how many `differs` came before it. `site` as in `begin`.",
  },
  "united": { from: "primary", meaning: "What `differs` named is durable here: the secondary forgets it." },
  "data": {
    from: "primary",
    meaning: "Operations, numbered from `firstSequence` on, in the order in which they are applied.",
  },
  "sync": {
    from: "primary",
    meaning:
      "The clusters that the secondary may lack follow, or have all been sent. `told`: a checkpoint that the message `told` would be about.",
  },
  "lineage": {
    from: "primary",
    meaning:
      "A new lineage has begun, because another secondary is missing. Answered when it is durable here that this one has heard of it, or has adopted it, behind everything sent before.",
  },
  "told": {
    from: "primary",
    meaning:
      "A checkpoint is told to be committed, which this one of several secondaries lacks: it is not promoted without an operator's word until it has committed that, or a later one. Answered when that is durable. Does not queue behind data.",
  },
  "barrier": {
    from: "primary",
    meaning:
      "Closes the epoch, and commits it if `commit` says so. Answered when everything before it is stable and the record is durable. With `vmstate` it is no checkpoint before its VM state has come, and is withdrawn with the session.",
  },
  "vmstate": {
    from: "primary",
    meaning:
      "The next chunk of the VM state of a checkpoint whose barrier says `vmstate` and is answered: its payload.",
  },
  "vmstate-end": {
    from: "primary",
    meaning:
      "All chunks were sent. Answered when the state is stable and the record names it: the checkpoint is prepared then. Does not queue behind data.",
  },
  "vmstate-ack": {
    from: "secondary",
    meaning:
      "So many chunks of that state are written, or dropped where nobody awaits it any more; or why no more are.",
  },
  "commit": {
    from: "primary",
    meaning: "Makes a prepared epoch, and every earlier one, the state to return to. Does not queue behind data.",
  },
  "discard": { from: "primary", meaning: "Withdraws prepared epochs. Does not queue behind data." },
  "takeover": {
    from: "primary",
    meaning:
      "A switchover: the secondary, which has committed everything, becomes Primary, which ends the session; answered only when it refuses. `siblings`: where the primary dials its other secondaries, for the next one to dial them.",
  },
  "resize": {
    from: "primary",
    meaning:
      "A disk of the primary's is about to grow: the secondary makes its own at least that long, durably, and answers.",
  },
  "verify": { from: "primary", meaning: "Checksums are going to be asked for, or are not any more: for status only." },
  "checksum": {
    from: "primary",
    meaning:
      "Answered with the SHA-256 of what the range holds in the newest content, once everything sent before is applied and before anything later is; with an empty one where that is zeroes. Of more than 1 MiB only whether it is.",
  },
  "read": {
    from: "primary",
    meaning:
      "The image here cannot be read. Answered with what the range holds in the newest content, once everything sent before is applied and before anything later is. Of a range that the secondary has only, never in mode `shared`, and not more than 16 at a time.",
  },
  "content": { from: "secondary", meaning: "What the range of the `read` of that `id` holds: its payload." },
  "answer": {
    from: "secondary",
    meaning:
      "The outcome of the lineage, barrier, state, commit, discard or checksum of that `id`, or why a read has failed; `error` is null when it was done.",
  },
  "ack": { from: "secondary", meaning: "How far the operations have come; see below." },
  "stall": {
    from: "secondary",
    meaning: "The overlays or the disk have no room, or have failed. Before `ready` where it is so from the beginning.",
  },
  "unstall": { from: "secondary", meaning: "Writes may be tried again." },
  "wanted": {
    from: "secondary",
    meaning:
      "A checkpoint would free three quarters or more of `--overlay-limit`. Said once, until it would free less.",
  },
  "given-up": {
    from: "secondary",
    meaning: "Its operator gave the committed checkpoint up: nothing up to that epoch is committed or prepared now.",
  },
  "ping": { from: "both", meaning: "Nothing else was said for a while." },
  "refuse": { from: "both", meaning: "Why this side ends the session; it closes the link next." },
};

const GREETING_MEANINGS: Record<keyof Greeting, string> = {
  protocol:
    "The newest version of this protocol that this side speaks. Both speak the newest that both know; where there is none, that is refused before anything else is looked at.",
  protocolOldest: "The oldest one, where that is another.",
  nonce: "16 random bytes, so that no proof and no seal can be used twice.",
  hasToken: "Whether this side has a `--token-file`.",
  probe:
    "This side only asks what the two would do (`colobus connect --dry-run`, and `rejoin` first of all): it closes after the seals, and nothing follows on either side.",
};

const HELLO_MEANINGS: Record<keyof Hello, string> = {
  agentVersion: "Release, for logs and status.",
  agentId: "Random, for the life of a state directory.",
  vm: "`--vm`.",
  mode: "`--mode`.",
  role: "The recorded role.",
  ack: "`--ack` of the primary; a secondary says `async`. With `applied` the secondary fsyncs behind every batch.",
  clusterBytes: "`--cluster-size`.",
  windowBytes: "`--window`; the smaller one of the two counts.",
  disks:
    "Names and sizes. The order of the primary's is that of the disk indexes in `data`. A size is null where the secondary makes the image.",
  lineage: "The history that the disks belong to; null on a secondary that has never committed anything.",
  committed: "The committed epoch, or 0. A primary repeats what it was told last.",
  lacks:
    "On a secondary that lacks a checkpoint which was told to be committed: the newest of those. It is promoted by force only, until it has committed a later one.",
  prepared: "Epochs that a commit can still name.",
  vmstates:
    "On a secondary: those of these epochs, and the committed one, that have a VM state. Left out where none has: one of the disks alone may take the place of the newest.",
  epochSeen: "The highest epoch number that this side has seen used.",
  shared: "Whether a peer may know that lineage; durable before one can.",
  ancestors: "The histories that this one goes back to, newest first.",
  heard: "Histories that a source has begun to send here, and that are not adopted yet.",
  rolledBackFrom: "On a secondary that was rolled back: the newest checkpoint that it has had.",
  pairing: "The peer of the last session, and the ids of the last two sessions with it.",
  tracks: "Whose copy this side's dirty bitmaps count from.",
  outdated:
    "A primary that has met a newer history; a secondary whose checkpoint is its own state: a former primary's, or what an operator gave up.",
  replaced: "Agents that another one has taken the place of (`connect --accept-new-peer`): a primary refuses them.",
  discardsOwn: "The operator gave up what this side has.",
  discardsOwnFor: "For which peer's data, where one is named: nothing is given up for any other one.",
  handOver: "The agent to which this primary has handed its role, while it is not known whether that arrived.",
  changedBytes: "What this side's dirty bitmaps name.",
  assumeInSync:
    "`--assume-in-sync` of the primary, where the start before did not have it, and until all its places for secondaries have sent something.",
  otherPeers:
    "Of a primary of several secondaries: what counts in place of the fields of the same names above for the peer that `pairing`, or else `tracks`, names.",
};

export function messageTable(): string {
  const rows = Object.entries(MESSAGE_MEANINGS).map(([type, { from, meaning }]) => [
    `\`${type}\``,
    from,
    fieldsOf(type as MessageType),
    meaning,
  ]);
  return markdownTable(["message", "from", "fields", "meaning"], rows);
}

export function greetingTable(): string {
  return tableOf("greeting", GREETING_MEANINGS);
}

export function helloTable(): string {
  return tableOf("hello", HELLO_MEANINGS);
}

function tableOf(type: "greeting" | "hello", meanings: Readonly<Record<string, string>>): string {
  const types = new Map(schemaFields(MESSAGE_SCHEMAS[type]).map(({ path, type: field }) => [path, field]));
  const rows = Object.entries(meanings).map(([name, meaning]) => [
    `\`${name}\``,
    name === "disks" ? "list of `name`, `sizeBytes`" : (types.get(name) ?? ""),
    meaning,
  ]);
  return markdownTable(["field", "type", "meaning"], rows);
}

export function operationTable(): string {
  const meanings: Record<keyof typeof OPERATION_KINDS, string> = {
    "write": "The next `length` bytes of the payload.",
    "discard": "The range reads as zeroes, and its space is freed. Zeroes of a sync travel so too.",
    "zero": "The range reads as zeroes, and keeps its space.",
    "original":
      "Mode `shared`, and there the only ones: the next `length` bytes of the payload are what these whole clusters hold, which are about to be overwritten.",
    "zero-original": "The same, where they hold zeroes.",
  };
  const rows = Object.entries(OPERATION_KINDS).map(([kind, number]) => [
    String(number),
    `\`${kind}\``,
    meanings[kind as keyof typeof OPERATION_KINDS],
  ]);
  return markdownTable(["kind", "name", "meaning"], rows);
}

/** What has a payload has no schema: it is checked field by field. */
function fieldsOf(type: MessageType): string {
  if (type === "greeting" || type === "hello") return "";
  if (type === "vmstate") return "`epoch`, `index`, `crc`, `length`";
  if (type === "content") return "`id`, `length`";
  if (type === "data") return "`firstSequence`, `ranges`";
  const paths = schemaFields(MESSAGE_SCHEMAS[type]).map(({ path }) => path);
  return paths
    .filter((path) => path !== "type" && !path.includes("."))
    .map((path) => `\`${path}\``)
    .join(", ");
}
