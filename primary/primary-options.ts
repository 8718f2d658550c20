import type { JobSpeed } from "../proto/status.ts";
import type { Site } from "../proto/replication-messages.ts";
import type { AckPolicy, CongestionPolicy, EventType, PeerLossPolicy } from "../proto/words.ts";
import type { OwnLease } from "../shared/arbiter/own-lease.ts";
import type { Child } from "../shared/block/block-device.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import type { Random } from "../shared/host/random.ts";
import type { JobList } from "../shared/jobs/job-list.ts";
import type { SharedMark } from "../shared/journal/shared-mark.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { CheckpointAges } from "../shared/replication/checkpoint-ages.ts";
import type { PeerTracking } from "../shared/replication/peer-tracking.ts";
import type { ChildrenContext } from "./children-context.ts";
import type { MirrorTargets } from "./mirrors.ts";
import type { NamedBitmaps } from "./named-bitmaps.ts";

export interface PrimaryOptions {
  readonly clock: Clock;
  readonly ages: CheckpointAges;
  readonly random: Random;
  readonly log: Log;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  readonly state: StateFile;
  readonly jobs: JobList;
  readonly children: readonly { readonly name: string; readonly child: Child }[];
  /** Of the slots for secondaries, that of the record's own peer first: at least one. */
  readonly trackings: readonly { readonly slot: number; readonly tracking: PeerTracking }[];
  readonly bitmaps: NamedBitmaps;
  /** What copies beside the images are made with; undefined: there are none, and none may be added. */
  readonly copies: ChildrenContext | undefined;
  /** Whom this side dials for each of the places; empty: it waits for peers to dial. */
  readonly peerUrls: readonly (string | null)[];
  /** Where this side's images are. */
  readonly site: () => Site;
  /** Whether a peer may have been met that the record does not know of. */
  readonly mayHaveHadPeer: boolean;
  /** As for `GuestPolicy`. */
  readonly mayBeSuperseded: boolean;
  readonly onPeerLoss: PeerLossPolicy;
  readonly onCongestion: CongestionPolicy;
  /** This and what is said of checkpoints may change: `settingsChanged` follows. */
  readonly resyncSpeed: JobSpeed;
  /** That peer has taken over the role that this side handed to it. */
  readonly handedOver: (peer: string) => void;
  /** A handshake has come to a verdict. */
  readonly judged: () => void;
  readonly token: Buffer | undefined;
  readonly ack: AckPolicy;
  readonly peerTimeoutMs: number;
  readonly windowBytes: number;
  /** An operator vouches for the images of a blank secondary, as they were when this role began. */
  readonly assumeInSync: boolean;
  /** In mode `shared`: barriers up to this one may lack what the host's loss of power took. */
  readonly unflushedThrough: number;
  /** The mark beside shared disks. */
  readonly sharedMark: SharedMark | undefined;
  /** Takes a checkpoint of the disks by itself every so often; undefined: only when asked. */
  readonly checkpointEveryMs: number | undefined;
  readonly maxCheckpointAgeMs: number | undefined;
  /** With an arbiter: this agent's lease. */
  readonly lease: OwnLease | undefined;
  readonly mirrorTargets: MirrorTargets;
  /** How often the bitmaps of mirrors are settled. */
  readonly settleEveryMs: number;
}
