/**
 * What each word of the closed lists in proto/words.ts means: a sentence each, for docs/states.md.
 * The types make a word without a sentence, or a sentence without a word, a compile error.
 */
import type {
  BitmapFault,
  AckPolicy,
  ArbiterOutlook,
  ArbiterStateWord,
  ChildState,
  ConnectionState,
  CopyMode,
  CopyState,
  DiskState,
  Durability,
  EventType,
  FailoverKind,
  HostLoss,
  JobErrorPolicy,
  JobOutcome,
  JobState,
  JobType,
  MirrorSync,
  Mode,
  ProtectionReason,
  ReadPattern,
  ReplicationState,
  ResyncOutcome,
  Role,
  SecondaryExport,
  VerdictKind,
  VerdictRule,
  WaitCondition,
} from "../proto/words.ts";

export const ROLE_MEANINGS: Record<Role, string> = {
  Primary: "The agent serves the guest: its export is written to, and it forwards every write.",
  Secondary: "The agent receives the primary's writes and can return to the last committed checkpoint.",
};

export const MODE_MEANINGS: Record<Mode, string> = {
  colo: "Writes land in the base disk at once; the originals are kept in the hidden disk until the checkpoint is committed.",
  mc: "Writes wait in the block buffer beside the base disk until their checkpoint is committed.",
  shared:
    "Both hosts use one shared disk; the originals travel to the secondary's hidden disk before they are overwritten.",
  mirror: "Writes land in the base disk, without epochs: a failover returns to the last write that is stable there.",
};

export const READ_PATTERN_MEANINGS: Record<ReadPattern, string> = {
  fifo: "The first sound copy is read, and the next one when that fails; when all have failed, a secondary that lacks nothing there.",
  quorum: "All copies are read, and the content that most of them have wins, if enough have it.",
};

export const CHILD_STATE_MEANINGS: Record<ChildState, string> = {
  sound: "It has everything that the disk has.",
  syncing: "It takes new writes, and is brought what it lacks.",
  broken: "It has failed, or not answered in time: it is asked for nothing until it was tried again with success.",
};

export const COPY_STATE_MEANINGS: Record<CopyState, string> = {
  sound: "It has everything that the disk has.",
  syncing: "It takes new writes, and is brought what it lacks.",
  stale: "It gets no writes now. What it is missing is marked; a secondary's can return to its checkpoint.",
  broken: "Its image fails, or does not answer.",
  unknown: "The agent that writes it is not connected.",
};

export const HOST_LOSS_MEANINGS: Record<HostLoss, string> = {
  protected: "The VM goes on, and another secondary protects it.",
  unprotected: "The VM goes on, and has nothing to fail over to.",
  frozen: "The VM's writes wait for the secondary, or for `colobus start-alone`.",
  failover: "The VM stops, and a failover returns to the checkpoint that is named.",
  copies:
    "The VM stops. There is no checkpoint to return to, but a sound copy of each disk is left, as after a power cut.",
  lost: "The VM stops, and nothing is left to go on with.",
};

export const DISK_STATE_MEANINGS: Record<DiskState, string> = {
  UpToDate: "The disk has every write that it should have.",
  Consistent: "The disk is a sound state of one moment, but it is not known whether it is the newest.",
  Inconsistent: "The disk mixes several moments and has no committed checkpoint to return to: reads fail with EIO.",
  Outdated: "The disk is a sound state of one moment, and a newer one exists on the other side.",
  Failed: "The disk's image cannot be read or written.",
};

export const CONNECTION_STATE_MEANINGS: Record<ConnectionState, string> = {
  StandAlone: "No connection is sought, because the two sides' histories forbid one: an operator has to decide.",
  Connecting: "A connection is sought, or awaited; `lastError` has the reason of the last failure or refusal.",
  Connected: "A session with the peer is established.",
};

export const REPLICATION_STATE_MEANINGS: Record<ReplicationState, string> = {
  Off: "Nothing is replicated: there is no session.",
  Established: "Every new write is forwarded, and nothing older is missing.",
  SyncSource: "This side sends the clusters that the other lacks, and every new write.",
  SyncTarget: "This side receives the clusters that it lacks, and every new write.",
  PausedSyncS: "This side is the source of a resync that is paused.",
  PausedSyncT: "This side is the target of a resync that is paused.",
  VerifyS: "This side compares checksums with the other, and asked for it.",
  VerifyT: "This side compares checksums with the other, which asked for it.",
};

export const PROTECTION_REASON_MEANINGS: Record<ProtectionReason, string> = {
  "no-peer": "No peer is configured, or none has ever connected.",
  "connecting": "The peer is not connected.",
  "initial-sync": "The first copy of the disks is not complete.",
  "resync": "The clusters that the replica lacks are being sent.",
  "no-checkpoint":
    "No checkpoint has been committed yet; or no secondary that is connected has the newest one that was told to be, or the arbiter has it as outdated until it commits.",
  "checkpoint-too-old": "The last committed checkpoint is older than the configured age.",
  "overlay-full": "The secondary has no room to keep originals, so it has stopped taking writes.",
  "disk-failed": "A disk or the state record of either side cannot be read or written.",
  "image-away":
    "The NBD server of an image on this side, or the qemu-nbd that the agent has started for it, cannot be used: requests wait, and fail after 30 s.",
  "outdated": "The peer has a newer history than this side.",
  "split-brain": "Both sides were written to on their own, and an operator has to choose which one to discard.",
  "held":
    "The guest's requests are held until the peer has been heard, or its changes until it is back (`--on-peer-loss freeze`), or until an operator has seen that copies differ (`--blkverify`); `start-alone` releases them. Or until the arbiter lets this side serve.",
};

export const BITMAP_FAULT_MEANINGS: Record<BitmapFault, string> = {
  "role-changed": "This side was not Primary for a while: others have written.",
  "image-adopted": "The image was taken as it is (`--adopt-image`).",
  "power-lost": "The host lost its power with durability `process`.",
  "write-failed": "The bitmap's file could not be written; the guest's write was not refused for that.",
  "unreadable": "The bitmap's file is missing or damaged.",
};

export const JOB_TYPE_MEANINGS: Record<JobType, string> = {
  "full-sync": "Sends every cluster of the disks to a replica that has none of them.",
  "resync": "Sends the clusters that a returning replica lacks.",
  "mirror": "Copies a disk to another image, and follows its writes until it is told to end.",
  "merge": "Writes the originals back into the base disk after a failover, while the export is served.",
  "verify": "Compares the secondary's copy with the primary's by checksums, while guests write.",
};

export const JOB_OUTCOME_MEANINGS: Record<JobOutcome, string> = {
  completed: "What the job was for is done. Of a mirror: the target is a whole copy of one moment, and durable.",
  pivoted: "The disk has the mirror's target for its image.",
  cancelled: "The job was given up. Of a mirror: the target is no copy of anything.",
  failed: "The job ended with `error`.",
};

export const JOB_ERROR_POLICY_MEANINGS: Record<JobErrorPolicy, string> = {
  report: "The job fails.",
  ignore: "The job tries again later.",
  stop: "The job pauses, and tries again when it is resumed.",
};

export const MIRROR_SYNC_MEANINGS: Record<MirrorSync, string> = {
  full: "The whole disk.",
  top: "What the top layer of the disk's image holds: of a format, the file itself without those that it is based on; of a raw file, all but its holes.",
  none: "Nothing but what is written from now on.",
};

export const COPY_MODE_MEANINGS: Record<CopyMode, string> = {
  "background": "What guests write is marked, and copied later.",
  "write-blocking":
    "What guests write to a range that is copied already goes to both at the same time, and they wait for both.",
};

export const JOB_STATE_MEANINGS: Record<JobState, string> = {
  created: "The job exists and has not begun.",
  running: "The job makes progress.",
  paused: "The job was paused by request, or by an error, which it has then.",
  ready: "The bulk is done and the job follows new writes until it is completed.",
  standby: "The job was ready when it was paused.",
  waiting: "The job's work is done and it waits for the jobs that belong with it.",
  pending: "The job's work is done, its last steps are under way, and nothing can take them back.",
  aborting: "The job failed or was cancelled and is being undone.",
  concluded: "The job is over; `outcome` says what it came to. It stays listed for a while.",
};

export const ACK_POLICY_MEANINGS: Record<AckPolicy, string> = {
  async: "The guest waits for the local write and for room in the send window.",
  received: "The guest waits until the secondary has the write in memory.",
  applied: "The guest waits until the write is stable on the secondary.",
};

export const DURABILITY_MEANINGS: Record<Durability, string> = {
  process: "Stable means handed to the kernel: it survives the death of the agent, not the loss of power.",
  power: "Stable means fsynced: it survives the loss of power.",
};

export const SECONDARY_EXPORT_MEANINGS: Record<SecondaryExport, string> = {
  "off": "The secondary serves no export before a failover.",
  "read-only": "The secondary serves the committed view to readers.",
  "read-write": "The secondary's own VM may write, into the active disk.",
};

export const WAIT_CONDITION_MEANINGS: Record<WaitCondition, string> = {
  connected: "A session with the peer is established.",
  synced: "No replica lacks anything.",
  merged: "No merge is left to do.",
  committed: "A checkpoint has been committed.",
};

export const RESYNC_OUTCOME_MEANINGS: Record<ResyncOutcome, string> = {
  "nothing-to-do": "The secondary lacks nothing, or there was no checkpoint to give up.",
  "running": "A resync is under way already.",
  "resumed": "A paused resync goes on.",
  "given-up": "The secondary is Inconsistent until the next commit, and its overlays are freed.",
};

export const FAILOVER_KIND_MEANINGS: Record<FailoverKind, string> = {
  manual: "A failover is an operator's command.",
  automatic: "While it is Secondary this side takes over by itself, when the arbiter lets it.",
};

export const ARBITER_STATE_MEANINGS: Record<ArbiterStateWord, string> = {
  unknown: "The arbiter has not been asked yet.",
  free: "Nobody has the lease.",
  own: "This side has the lease.",
  other: "Another agent has the lease.",
  unreachable: "The arbiter does not answer, or not as it should.",
};

export const ARBITER_OUTLOOK_MEANINGS: Record<ArbiterOutlook, string> = {
  granted: "Nothing speaks against it.",
  promised: "It would wait first: this side has promised the primary not to take over yet, for `waitMs` still.",
  held: "It would wait for the end of another's lease, and fail with `lease-held` while that is renewed.",
  overruled: "By force: it would overwrite what speaks against it, and take the lease from whoever has it.",
  untold: "By force: the arbiter does not answer, and would be told later.",
};

export const EVENT_TYPE_MEANINGS: Record<EventType, string> = {
  "agent-started": "The agent has read its state and serves.",
  "agent-stopping": "The agent was asked to stop and drains its window.",
  "role-changed": "The agent has another role than before.",
  "lineage-changed": "A new history begins: this primary goes on without its secondary.",
  "guests-held": "Guests' requests wait; the data says what for.",
  "guests-released": "Guests' requests go on.",
  "outdated": "The agent in the data is behind the newer history in the data, and must not serve.",
  "split-brain": "Both sides were written to since they parted; the data says how much each would lose.",
  "peer-connected": "A session with the peer was established.",
  "peer-disconnected": "The session with the peer ended; the data has the reason.",
  "peer-refused": "A handshake was refused, by either side; the data has the reason.",
  "peer-given-up": "An operator has given a secondary up for good (`forget`), or has its place taken by another one.",
  "sync-started": "A full sync or resync has begun.",
  "sync-paused":
    "The primary sends no more of what this side lacks for now: the sync is paused, or guests write too fast.",
  "sync-finished": "A full sync or resync is over, and the replica lacks nothing.",
  "verify-difference": "A verify has found a range in which the secondary's copy differs; the data names it.",
  "verify-finished": "A verify is over; the data says how much was compared, and how much of it differs.",
  "checkpoint-prepared": "Everything up to an epoch's barrier is on the secondary.",
  "checkpoint-committed": "A failover now returns to this epoch.",
  "checkpoint-discarded": "A prepared checkpoint was withdrawn; no data was lost.",
  "checkpoint-failed": "A checkpoint was not prepared or not committed; the data has the reason.",
  "checkpoint-wanted": "The secondary's overlays have reached their high-water mark: a commit would free them.",
  "checkpoint-given-up":
    "An operator gave the committed checkpoint up: there is nothing to fail over to until the next.",
  "retained-dropped": "Earlier checkpoints are not kept any more; the data has their epochs and the reason.",
  "rolled-back":
    "An earlier checkpoint is the committed one now; the data has both epochs, and the lineage that begins with it.",
  "overlay-full": "The secondary has no room for another original and has stopped taking writes.",
  "overlay-freed": "The overlays have room again.",
  "congested": "Guests write faster than the secondary takes it: they go on without it until it has caught up.",
  "disk-error": "A disk could not be read or written; the data has the disk and the reason.",
  "disk-mended": "A disk that had failed is read and written again.",
  "read-from-secondary":
    "What guests read where their disk cannot be read comes from a secondary; the data has both. Told once until the disk is mended.",
  "image-away":
    "The server of an image cannot be used; the data has the disk and the reason. Told once in 5 s at most.",
  "image-back": "The server of an image can be used again, and has all that an earlier one had answered.",
  "child-broken": "One of several copies of a disk has failed, or not answered in time.",
  "child-syncing": "A copy of a disk is brought what it lacks.",
  "child-sound": "A copy of a disk has everything.",
  "child-added": "A disk has got one more copy, which lacks everything.",
  "child-removed": "A copy of a disk was taken out.",
  "child-replaced": "A copy of a disk was taken out, and another one, which has everything, has taken its place.",
  "quorum-report-bad": "A copy of a disk has refused a request, or has something else than the majority.",
  "quorum-failure": "Too few copies of a disk have done a request, or agree.",
  "state-error":
    "The state record, or the dirty bitmap, could not be written; the data has the reason. It is tried again.",
  "state-mended": "What could not be written in the state directory is written now.",
  "failover": "This agent was promoted and serves from the epoch in the data.",
  "merged": "The base disk holds the whole state again, and the overlays of the failover are gone.",
  "job-changed": "A job has another state than before.",
  "job-ready": "A job has nothing left to copy for the first time: it follows, and can be completed.",
  "disk-pivoted": "A disk has the target of a mirror for its image.",
  "disk-resized": "A disk has grown (`colobus resize`).",
  "stalled":
    "The agent was held up for a second or longer, by itself or by its host, and answered nobody; the data has how often, and the longest.",
  "lease-acquired": "This side has claimed the arbiter's lease.",
  "lease-lost": "The arbiter does not give this side the lease any more.",
  "lease-refused": "By the arbiter's record another side serves: this side serves nothing.",
  "arbiter-unreachable": "The arbiter does not answer, or not as it should.",
  "arbiter-reachable": "The arbiter answers again.",
  "takeover-started": "This side has not heard the primary for long enough, and takes over by itself.",
  "vm-started": "The command of `--on-failover` has ended well, after the promotion from the epoch in the data.",
  "vm-start-failed":
    "The command of `--on-failover` has failed, or the agent is being stopped; the promotion stands, and the data has the reason.",
  "takeover-failed": "This side does not take over by itself, or could not; the data has the reason.",
  "protection-changed": "The VM became protected, or stopped being so; the data has the reason.",
  "config-reloaded":
    "The configuration file was read anew; the data has the keys that were taken up, and those that need a restart.",
};

export const VERDICT_KIND_MEANINGS: Record<VerdictKind, string> = {
  "sync": "The primary sends: everything, the clusters that either side knows to differ, or nothing.",
  "outdated": "A primary is behind the other side's history. It serves nothing, and waits for `rejoin`.",
  "hand-over": "The role that one side has handed over was taken by the other: it becomes secondary.",
  "split-brain": "Both were written to since they parted. An operator chooses the side that gives its changes up.",
  "refused": "The two are no pair.",
};

export const VERDICT_RULE_MEANINGS: Record<VerdictRule, string> = {
  "same-agent": "Both are the same agent: it is connected to itself, or its state directory was copied.",
  "no-primary": "Both are secondaries: nobody has anything to send.",
  "blank-target": "The secondary has no history yet, so it takes the primary's.",
  "same-lineage": "Both go on with the same history.",
  "target-behind": "The secondary's history is one that the primary's goes back to, or has superseded.",
  "own-data-discarded": "An operator gave up what the secondary has.",
  "checkpoint-stands":
    "The disk is shared, and every overwrite since the secondary's checkpoint has waited for its original to be there.",
  "checkpoint-void":
    "The disk is shared, and was or may have been overwritten without the secondary: it gives its checkpoint up, and gets a new one.",
  "source-outdated": "The primary has met a newer history before.",
  "primary-behind": "The primary's history is one that the other side's goes back to, or has superseded.",
  "hand-over-arrived": "The other side is the one to which the role was handed, and has taken it.",
  "two-primaries": "Two primaries have one and the same history: a state directory, or a whole host, was copied.",
  "put-back":
    "The Primary is behind by a history that no peer can know by its own record: it was put back to a backup, and what it has acknowledged since may be nowhere else.",
  "replaced-peer":
    "The secondary is one that another agent was to take the place of, by an operator's word (`connect --accept-new-peer`).",
  "rolled-back":
    "The secondary was rolled back to an earlier checkpoint: an operator says whether it goes on from there (`failover`), or that is undone (`connect --discard-my-data`).",
  "diverged": "The two have a common history, and each has gone on without the other.",
  "unrelated": "The two have no common history.",
};
