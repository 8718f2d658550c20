/** The tables of the control API: the fields of its requests, and of the status document. */
import type { z } from "zod";
import {
  awaitedVmStateRequestSchema,
  checkpointRequestSchema,
  childRequestSchema,
  commitRequestSchema,
  connectRequestSchema,
  discardRequestSchema,
  failoverRequestSchema,
  forgetRequestSchema,
  jobRequestSchema,
  measureLinkRequestSchema,
  mirrorRequestSchema,
  rejoinRequestSchema,
  reloadRequestSchema,
  resizeRequestSchema,
  resyncRequestSchema,
  bitmapRequestSchema,
  rollbackRequestSchema,
  verifyRequestSchema,
  setSpeedRequestSchema,
  startAloneRequestSchema,
  storedVmStateRequestSchema,
  switchoverRequestSchema,
  vmStateRequestSchema,
  waitRequestSchema,
} from "../proto/control-api.ts";
import { statusSchema } from "../proto/status.ts";
import { markdownTable } from "./markdown-table.ts";
import { schemaFields } from "./schema-fields.ts";

const REQUESTS: readonly (readonly [route: string, schema: z.ZodType])[] = [
  ["POST /v1/checkpoint", checkpointRequestSchema],
  ["PUT /v1/vmstate", vmStateRequestSchema],
  ["PUT /v1/vmstate/EPOCH", awaitedVmStateRequestSchema],
  ["GET /v1/vmstate", storedVmStateRequestSchema],
  ["POST /v1/commit", commitRequestSchema],
  ["POST /v1/discard", discardRequestSchema],
  ["POST /v1/failover", failoverRequestSchema],
  ["POST /v1/switchover", switchoverRequestSchema],
  ["POST /v1/rejoin", rejoinRequestSchema],
  ["POST /v1/connect", connectRequestSchema],
  ["POST /v1/forget", forgetRequestSchema],
  ["POST /v1/measure-link", measureLinkRequestSchema],
  ["POST /v1/start-alone", startAloneRequestSchema],
  ["POST /v1/reload", reloadRequestSchema],
  ["POST /v1/resync", resyncRequestSchema],
  ["POST /v1/rollback", rollbackRequestSchema],
  ["POST /v1/verify", verifyRequestSchema],
  ["POST /v1/resize", resizeRequestSchema],
  ["POST /v1/children", childRequestSchema],
  ["POST /v1/bitmaps/VERB", bitmapRequestSchema],
  ["POST /v1/wait", waitRequestSchema],
  ["POST /v1/mirror", mirrorRequestSchema],
  ["POST /v1/jobs/ID/cancel", jobRequestSchema],
  ["PUT /v1/jobs/ID/speed", setSpeedRequestSchema],
];

const REQUEST_MEANINGS: Readonly<Record<string, string>> = {
  "POST /v1/checkpoint prepare": "Stop before the commit.",
  "POST /v1/checkpoint vmstate":
    "With `prepare`: the barrier is placed, and the checkpoint is prepared only when its VM state has come.",
  "POST /v1/checkpoint wait":
    "`false`: where it would wait for a sync, or for another secondary, it fails with `not-in-sync` at once, as is due while a guest is paused.",
  "PUT /v1/vmstate prepare": "In the query: stop before the commit.",
  "GET /v1/vmstate epoch": "In the query: a checkpoint that is kept; left out: the committed one.",
  "GET /v1/vmstate force": "In the query: also where the disks may have been written since the failover.",
  "POST /v1/commit epoch": "The prepared checkpoint; every earlier one is committed with it.",
  "POST /v1/discard epoch": "The prepared checkpoint; left out: all of them.",
  "POST /v1/failover force": "Also while the primary is connected, and without a committed checkpoint.",
  "POST /v1/failover dryRun": "Only say what would be served and lost, and what an arbiter would make of it.",
  "POST /v1/failover discardActive": "Leave out what the secondary's own VM has written.",
  "POST /v1/failover fenced":
    "The peer surely serves no more. Mode `shared` refuses a failover without it, unless a fence hook says so.",
  "POST /v1/failover startsVm":
    "Whoever asks starts the VM where the answer says so too: `--on-failover` is not run then.",
  "POST /v1/switchover closeClients": "Also while clients that may write are connected: they are sent away.",
  "POST /v1/rejoin peer": "URL of the agent that was promoted.",
  "POST /v1/connect dryRun": "Only explain what the two would do.",
  "POST /v1/connect discardMyData": "Give up what this side has and the peer has not, and become its secondary.",
  "POST /v1/connect acceptNewPeer":
    "On a primary whose peer is not connected: another agent takes its place, and that one is refused from then on.",
  "POST /v1/connect peer": "With `acceptNewPeer`, or `discardMyData`: whom this side dials from then on.",
  "POST /v1/connect insteadOf":
    "With `acceptNewPeer`, of several secondaries the one that is lost: its agent id, or the URL that the primary dials for it.",
  "POST /v1/start-alone force": "Also in a split brain that this side knows of.",
  "POST /v1/forget peer": "Of several secondaries, the one that is gone for good, named in the same way.",
  "POST /v1/resync giveUpCheckpoint": "On a secondary: make it Inconsistent, and free its overlays.",
  "POST /v1/rollback epoch": "The retained checkpoint that becomes the committed one.",
  "POST /v1/switchover peer":
    "Of several secondaries, the one that takes over: its agent id, or the URL that this side dials for it.",
  "POST /v1/verify peer": "Of several secondaries, the one to compare, named as for a switchover.",
  "POST /v1/verify disk": "The disk to be compared; left out: all of them.",
  "POST /v1/verify repair": "Have what differs sent again, when everything is compared.",
  "POST /v1/verify speed": "Bytes per second that are read on each side; 0 is no limit; `dynamic` yields to guests.",
  "POST /v1/verify wait": "Answer when the job is concluded, instead of when it has begun.",
  "POST /v1/resize disk": "The disk.",
  "POST /v1/resize sizeBytes": "Its new size: whole sectors of 512 bytes, and not less than it has.",
  "POST /v1/resize closeClients":
    "Send the disks' NBD clients away when it is done: they see the size when they connect again.",
  "POST /v1/children verb": "What is done with the copy.",
  "POST /v1/children disk": "The disk.",
  "POST /v1/children name": "The copy of the disk.",
  "POST /v1/children image": "For `add` and `replace`: a path, FORMAT:PATH or NBD URI, as the agent's host sees it.",
  "POST /v1/children create": "Make the image at the disk's size where it is not there.",
  "POST /v1/bitmaps/VERB disk": "The disk that the bitmap is of; the verb is `add`, `clear` or `remove`.",
  "POST /v1/bitmaps/VERB name": "Letters, digits, `.`, `_`, `-`; at most 64.",
  "POST /v1/wait condition": "What to wait for: see [states.md](states.md#conditions-to-wait-for).",
  "POST /v1/mirror disk": "The disk that is copied.",
  "POST /v1/mirror target": "As `--disk` names images. Relative paths are the agent's.",
  "POST /v1/mirror sync": "What is copied first: see [states.md](states.md#mirrors).",
  "POST /v1/mirror copyMode": "How guests' writes get to the target: see [states.md](states.md#mirrors).",
  "POST /v1/mirror speed": "Bytes per second; 0 is no limit; `dynamic` yields to guests.",
  "POST /v1/mirror granularityBytes": "What a write makes dirty at least, a power of two.",
  "POST /v1/mirror unmap": "Free the target's space where the disk has zeroes.",
  "POST /v1/mirror onSourceError": "What an error of the disk's image means for the job.",
  "POST /v1/mirror onTargetError": "What an error of the target means for the job.",
  "POST /v1/mirror create": "Make the target, if there is none.",
  "POST /v1/jobs/ID/cancel force": "Also a job that is ready ends at once, without a consistent copy.",
  "PUT /v1/jobs/ID/speed bytesPerSecond": "0 is no limit; `dynamic` yields to guests.",
};
const TIMEOUT_MEANING = "Milliseconds after which the call ends with `timed-out`.";

const STATUS_MEANINGS: Readonly<Record<string, string>> = {
  "role": "What the state directory records, whatever the command line says.",
  "vm": "`--vm`.",
  "mode": "`--mode`.",
  "agentId": "Random, for the life of the state directory.",
  "agentVersion": "Release of this agent.",
  "pid": "Its process.",
  "lineage": "The history that the disks belong to; null on a secondary that has never committed anything.",
  "durability": "`--durability`.",
  "ack": "`--ack`.",
  "clusterBytes": "`--cluster-size`.",
  "epoch.open": "The epoch that writes belong to now.",
  "epoch.prepared": "Checkpoints that a commit or a discard can name.",
  "epoch.committed":
    "The checkpoint that a failover returns to; 0 before the first. On a primary: as it was told last. In mode `mirror` one ends each sync, and later writes need none.",
  "epoch.retained": "Earlier checkpoints that are kept (`--retain`), on a secondary.",
  "peers[].url": "What the primary dials; null on a secondary.",
  "peers[].address": "The other end; null on a secondary without a session.",
  "peers[].connection": "See [states.md](states.md#connection-states).",
  "peers[].replication": "See [states.md](states.md#replication-states).",
  "peers[].lagBytes":
    "Primary: what the secondary lacks: handed over and not yet stable, and dirty. Secondary: applied since the committed checkpoint.",
  "peers[].agentId": "The peer's, once there was a session.",
  "peers[].agentVersion": "The peer's release, once there was a session.",
  "peers[].lastContactMs": "Time since anything came from the peer; null: never.",
  "peers[].lastError": "Why there is no session, or why the secondary takes no writes.",
  "peers[].host": "What the peer's host calls itself, once there was a session; until then its address.",
  "peers[].mayTakeOver":
    "Whether the arbiter would let this secondary take over by itself; null without an arbiter, and of a primary.",
  "peers[].committed": "The checkpoint that a secondary is known to have committed; null: none, and of a primary.",
  "peers[].disks[].name": "A disk of the peer's.",
  "peers[].disks[].image": "Its image there, as the peer said last; null: not known.",
  "peers[].disks[].dirtyBytes": "Bytes in clusters that this secondary may lack.",
  "disks[].name": "Also the name of the export.",
  "disks[].sizeBytes": "null: the image is still to be made.",
  "disks[].state": "See [states.md](states.md#disk-states).",
  "disks[].dirtyBytes": "Primary: bytes in clusters that the secondary may lack.",
  "disks[].hiddenBytes": "Storage of the generations: data files and journals.",
  "disks[].activeBytes": "Storage of the active disk.",
  "disks[].bufferBytes": "Mode `mc`: storage of the block buffer, its logs.",
  "disks[].image": "Path of the image.",
  "disks[].generations[].epoch":
    "Secondary: an epoch of which originals are held; up to the committed one they are those of kept checkpoints.",
  "disks[].generations[].bytes": "Bytes in the clusters that it holds; zero clusters count, and occupy no storage.",
  "disks[].children[].name": "`local` for a primary's own image, `base` on a secondary.",
  "disks[].children[].kind": "`image` in this release.",
  "disks[].children[].path": "Path of the image, or how it is named.",
  "disks[].children[].replaces":
    "The copy whose place it takes, under its name, once it has everything; left out for all others.",
  "disks[].children[].state": "See [states.md](states.md#state-of-one-copy-of-a-disk).",
  "disks[].children[].dirtyBytes": "What it lacks, in clusters; left out where that is not known of it alone.",
  "disks[].children[].lastError": "Why it is broken, or has refused something since it was last sound.",
  "jobs[].id": "What `colobus job` takes.",
  "jobs[].type": "See [states.md](states.md#job-types).",
  "jobs[].verify.differences[].disk": "Of a `verify`: the first 100 ranges that differ, whole clusters each.",
  "jobs[].verify.differences[].offset": "Where the range begins.",
  "jobs[].verify.differences[].length": "How long it is.",
  "jobs[].verify.ranges": "How many ranges differ, those that are not listed as well.",
  "jobs[].verify.differingBytes": "Bytes in the clusters that differ.",
  "jobs[].verify.checkedBytes": "Bytes that were compared.",
  "jobs[].verify.repairs": "Whether what differs is sent again when everything is compared.",
  "jobs[].state": "See [states.md](states.md#job-states).",
  "jobs[].disk": "null: all disks.",
  "jobs[].child": "The copy beside the image that a resync is for; null for the secondary's.",
  "jobs[].progress.doneBytes": "Of the work known so far.",
  "jobs[].progress.totalBytes": "All of it.",
  "jobs[].bytesPerSecond": "Rate of the last seconds; 0 while it is not running.",
  "jobs[].etaMs": "null: not known.",
  "jobs[].speedLimit": "Bytes per second; 0 is no limit; `dynamic` yields to guests.",
  "jobs[].startedAt": "ISO 8601, UTC.",
  "jobs[].endedAt": "null: not concluded.",
  "jobs[].target": "Where a mirror copies to; null for the others.",
  "jobs[].outcome": "See [states.md](states.md#job-outcomes); null: not concluded.",
  "jobs[].error": "Why it paused by itself, or did not succeed.",
  "exports[].name": "Name of the NBD export.",
  "exports[].uri": "NBD URI on the unix socket.",
  "exports[].readOnly": "Whether writes are refused.",
  "exports[].clients": "Clients connected now.",
  "protection.state": "Whether a failover would return to a committed checkpoint that is fresh enough.",
  "protection.reason": "See [states.md](states.md#protection); null when protected.",
  "protection.nextAction": "What to do; empty when protected.",
  "recoverable":
    "What a failover of the secondary would return to; null: nothing. On a primary: null also where no secondary has the newest checkpoint that was told to be committed; `peers[].mayTakeOver` says whether an arbiter has that failover need `--force`. A former primary has none, before it has followed.",
  "recoverable.epoch": "The committed checkpoint; in mode `mirror` the one that has ended the last sync.",
  "recoverable.ageMs":
    "Time since its barrier was placed (primary), or everything before that was stable (secondary), whatever the wall clock is set to meanwhile: it counts only for what an earlier process has left. While the host is suspended nothing is counted. In mode `mirror`, while no resync is under way: since a write last became stable on the secondary.",
  "recoverable.lastContactMs": "As in `peers`.",
  "recoverable.wouldLose.writes":
    "Writes after that checkpoint that are known here; in mode `mirror`, acknowledged ones that a failover does not return.",
  "recoverable.wouldLose.bytes": "Their bytes.",
  "recoverable.wouldLose.atLeast": "Whether there may be more: writes that this agent did not see.",
  "copies[].disk": "The disk that it is a copy of.",
  "copies[].name":
    "`local` for a primary's own image, the name of a child, or the id of a mirror job; null for the only copy of a secondary, and for that of a peer.",
  "copies[].role": "The role of the agent that writes it.",
  "copies[].agentId": "That agent; null: not known yet.",
  "copies[].host":
    "Where it is: what that agent's host calls itself, or the host in an `nbd://` URI; null: not known, or a shared disk.",
  "copies[].image": "Path of the image, or how it is named; null: not known.",
  "copies[].state": "See [states.md](states.md#state-of-a-copy-wherever-it-is).",
  "copies[].dirtyBytes": "What it lacks, in clusters; null: not known of it alone.",
  "copies[].epoch": "The checkpoint that it can return to; null: none, or, of a primary's copies, none is needed.",
  "hosts[].name":
    "A host that the VM, or a copy, is on. None is listed by a side that is outdated or has diverged: ask the other one.",
  "hosts[].isHere": "Whether this agent runs there.",
  "hosts[].ifLost.outcome":
    "What becomes of the VM if that host is lost now: see [states.md](states.md#when-a-host-is-lost).",
  "hosts[].ifLost.failoverTo": "The host of the secondary that a failover is for; null: none is needed, or possible.",
  "hosts[].ifLost.epoch": "The checkpoint that it returns to.",
  "hosts[].ifLost.wouldLose": "What it drops, as in `recoverable`; null: nothing is lost.",
  "hosts[].ifLost.wouldLose.writes": "Writes.",
  "hosts[].ifLost.wouldLose.bytes": "Their bytes.",
  "hosts[].ifLost.wouldLose.atLeast": "Whether there may be more.",
  "hosts[].ifLost.nextAction": "What the operator does then.",
  "failover.kind": "`manual`, or `automatic` with an arbiter.",
  "failover.arbiter": "null where none is configured.",
  "failover.arbiter.state": "Whose lease it is, as the arbiter was last heard, or that it is not heard.",
  "failover.arbiter.holder": "The agent that has the lease; null: none.",
  "failover.arbiter.leaseMsLeft": "For how long this side may rely on its own lease.",
  "failover.arbiter.lastError": "Why the arbiter is not heard.",
  "vmstate": "null: there is none, or the disks do not fit it any more.",
  "vmstate.epoch":
    "The committed checkpoint, whose VM state a VM can be started from here: always on a secondary, and on a promoted agent until a guest has written.",
  "vmstate.bytes": "The size of that state.",
  "eventLoopDelay":
    "How late the agent got to what was due, looked at every 20 ms that it is not held up; null where it is not measured.",
  "eventLoopDelay.overMs": "How far back this goes: about a minute.",
  "eventLoopDelay.p50Ms": "Median.",
  "eventLoopDelay.p99Ms": "One look in 100 found a longer delay.",
  "eventLoopDelay.p999Ms": "One look in 1000 found a longer delay.",
  "eventLoopDelay.maxMs": "The longest: for so long no request was answered, and no peer heard.",
  "eventLoopDelay.stalls": "Delays of a second or longer since the agent has started.",
};

export function requestTable(): string {
  const meanings = new Map(Object.entries(REQUEST_MEANINGS));
  const rows = REQUESTS.flatMap(([route, schema]) =>
    schemaFields(schema).map(({ path, type, defaultValue, required }) => {
      const meaning = path === "timeoutMs" ? TIMEOUT_MEANING : take(meanings, `${route} ${path}`);
      const fallback = required ? "required" : defaultValue === undefined ? "–" : `\`${JSON.stringify(defaultValue)}\``;
      return [`\`${route}\``, `\`${path}\``, type, fallback, meaning];
    }),
  );
  assertAllTaken(meanings);
  return markdownTable(["route", "field", "type", "default", "meaning"], rows);
}

export function statusTable(): string {
  const meanings = new Map(Object.entries(STATUS_MEANINGS));
  const fields = schemaFields(statusSchema).filter(
    // What only holds other fields is described by them, and every error is of the same form.
    ({ path, type }) =>
      !/Error\.|\.error\.|^jobs\[\]\.error\./.test(path) && (path === "recoverable" || !isFrame(type)),
  );
  const rows = fields.map(({ path, type }) => [`\`${path}\``, typeOf(path, type), take(meanings, path)]);
  assertAllTaken(meanings);
  return markdownTable(["field", "type", "meaning"], rows);
}

function isFrame(type: string): boolean {
  return type === "object" || type === "list of objects";
}

/** Lists of words stand in states.md already. */
function typeOf(path: string, type: string): string {
  return /\.(connection|replication|reason)$|^hosts\[\]\.ifLost\.outcome$|^jobs\[\]\.(type|state)$|^(disks|copies)\[\]\.state$/.test(
    path,
  )
    ? "word"
    : type;
}

/** A field without a sentence, or a sentence without a field, stops the generation. */
function take(meanings: Map<string, string>, key: string): string {
  const meaning = meanings.get(key);
  if (meaning === undefined) throw new Error(`tools/control-tables.ts says nothing about ${key}.`);
  meanings.delete(key);
  return meaning;
}

function assertAllTaken(meanings: ReadonlyMap<string, string>): void {
  const [left] = meanings.keys();
  if (left !== undefined) throw new Error(`tools/control-tables.ts describes ${left}, which there is not.`);
}
