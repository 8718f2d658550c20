/**
 * The log of what becomes of an agent: one line for each event, so that the log, `colobus events` and the status page tell the
 * same, in the same words. The line has the event's type, its number and its fields; its phrase is always the same.
 *
 * What comes with every checkpoint, and there may be several a second, is logged at level debug.
 */
import type { AgentEvent } from "../proto/status.ts";
import type { EventType, LogLevel } from "../proto/words.ts";
import type { Log } from "../shared/host/log.ts";

const LINES: Readonly<Record<EventType, readonly [level: LogLevel, phrase: string]>> = {
  "agent-started": ["info", "the agent is started"],
  "agent-stopping": ["info", "the agent is being stopped"],
  "role-changed": ["warn", "this side has another role"],
  "lineage-changed": ["info", "a new lineage begins"],
  "guests-held": ["warn", "guests are held"],
  "guests-released": ["info", "guests go on"],
  "outdated": ["warn", "one side is outdated"],
  "split-brain": ["error", "both sides have changes that the other has not"],
  "peer-connected": ["info", "the peer is connected"],
  "peer-disconnected": ["warn", "the session with the peer has ended"],
  "peer-refused": ["warn", "a session with the peer did not begin"],
  "peer-given-up": ["info", "an operator has given a secondary up"],
  "sync-started": ["info", "a sync has begun"],
  "sync-paused": ["warn", "a sync is paused"],
  "sync-finished": ["info", "a sync is finished"],
  "verify-difference": ["warn", "the replicas differ"],
  "verify-finished": ["info", "a verify is finished"],
  "checkpoint-prepared": ["debug", "a checkpoint is prepared"],
  "checkpoint-committed": ["debug", "a checkpoint is committed"],
  "checkpoint-discarded": ["info", "checkpoints are withdrawn"],
  "checkpoint-failed": ["warn", "a checkpoint failed"],
  "checkpoint-wanted": ["info", "the secondary wants a checkpoint, which frees space"],
  "checkpoint-given-up": ["warn", "the committed checkpoint is given up"],
  "retained-dropped": ["info", "retained checkpoints are dropped"],
  "rolled-back": ["warn", "an earlier checkpoint is the committed one now"],
  "overlay-full": ["error", "the secondary has no room for overlays and takes no writes"],
  "overlay-freed": ["info", "the secondary has room for overlays again"],
  "congested": ["warn", "the secondary is too slow: writes go on without it until it has caught up"],
  "disk-error": ["error", "a disk fails"],
  "disk-mended": ["info", "a disk works again"],
  "read-from-secondary": ["warn", "what a disk fails to give is read from the secondary"],
  "image-away": ["warn", "the server of an image is gone"],
  "image-back": ["info", "the server of an image is back"],
  "child-broken": ["warn", "a copy is broken"],
  "child-syncing": ["info", "a copy is brought what it lacks"],
  "child-sound": ["info", "a copy is sound"],
  "child-added": ["info", "a copy is added"],
  "child-removed": ["info", "a copy is removed"],
  "child-replaced": ["info", "a copy is replaced"],
  "quorum-report-bad": ["warn", "the copies do not agree"],
  "quorum-failure": ["error", "too few copies agree"],
  "state-error": ["error", "the agent's state cannot be written"],
  "state-mended": ["info", "the agent's state can be written again"],
  "failover": ["warn", "this side takes over"],
  "merged": ["info", "the overlays are merged"],
  "job-changed": ["info", "a job has another state"],
  "job-ready": ["info", "a job is ready"],
  "disk-pivoted": ["info", "a disk has another image"],
  "disk-resized": ["info", "a disk has grown"],
  "stalled": ["warn", "this agent was held up: it answered nobody meanwhile"],
  "lease-acquired": ["info", "this side has the lease"],
  "lease-lost": ["warn", "this side has the lease no more"],
  "lease-refused": ["warn", "this side may not serve"],
  "arbiter-unreachable": ["warn", "the arbiter cannot be used"],
  "arbiter-reachable": ["info", "the arbiter can be used again"],
  "takeover-started": ["warn", "the primary is not heard and has no lease: this side takes over by itself"],
  "takeover-failed": ["warn", "this side does not take over by itself"],
  "vm-started": ["info", "the VM is started"],
  "vm-start-failed": ["error", "the VM could not be started"],
  "protection-changed": ["info", "the protection has changed"],
  "config-reloaded": ["info", "the configuration was read anew"],
};

export function logTransition(log: Log, { type, sequence, data }: AgentEvent): void {
  const [level, phrase] = LINES[type];
  log[level]({ event: type, sequence, ...data }, phrase);
}
