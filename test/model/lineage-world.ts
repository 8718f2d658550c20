import type { StateRecord } from "../../proto/state-record.ts";
import type { SyncExtent } from "../../proto/words.ts";
import {
  adopted,
  confirmed,
  demoted,
  goneAlone,
  heard,
  historyFieldsOf,
  mustHold,
  promoted,
  rolledBack,
  shared,
} from "../../shared/replication/lineage.ts";
import { decide, type HistoryFacts, type Verdict } from "../../shared/replication/verdict.ts";
import { stateRecord } from "../support/state-records.ts";

/**
 * Two agents reduced to what a handshake is about: their records, changed by the shipping transitions; disks of two
 * clusters, of which only the version counts; and the clusters that each knows to differ. An event is one durable step,
 * so a crash can come between any two. `lineage-session.ts` has what the two do by themselves, `lineage-operator.ts`
 * what befalls them.
 */
const CLUSTERS = 2;

export type SideIndex = 0 | 1;

/** What is so, whatever a side's record says: the promises are checked against it, no rule may read it. */
export interface Truth {
  /** It has acknowledged a write that its peer does not have, and under no history that the peer was to supersede. */
  alone: boolean;
  /** A primary whose peer was promoted over its history, and that has not spoken to it since. */
  superseded: boolean;
  /** A primary that was told that it is behind. */
  behind: boolean;
  /** A primary that has handed its role over, and does not know whether it arrived. */
  gaveAway: boolean;
  /** A secondary whose checkpoint is its own state, from when it was Primary or from before it was given up. */
  ownState: boolean;
  /** It had a checkpoint, or was Primary: it may be the only copy. */
  whole: boolean;
  /** A new agent in the place of a lost one, to which nothing has come yet. */
  blank: boolean;
  /** The operator has given up what it holds. */
  givenUp: boolean;
  /** The operator has rolled it back. */
  rolledBack: boolean;
}

export interface Side {
  record: StateRecord;
  up: boolean;
  /** Guests wait until the peer has spoken, or an operator lets them go. */
  held: boolean;
  /** The last checkpoint that a primary was told of; a crash forgets it. */
  told: number;
  image: number[];
  /** What a promotion returns to; null before the first checkpoint. */
  view: number[] | null;
  /** A prepared checkpoint. */
  prepared: number[] | null;
  /** The checkpoint before the last one, where the world has rollbacks left. */
  retained: { readonly epoch: number; readonly image: readonly number[] } | null;
  /** Clusters that the tracked peer may lack, durably; nothing while no peer is tracked. */
  dirty: boolean[];
  truth: Truth;
}

export interface Session {
  readonly source: SideIndex;
  readonly extent: SyncExtent;
  phase:
    | "beginning"
    | "pairing"
    | "opening"
    | "answering"
    | "confirming"
    | "forgetting"
    | "uniting"
    | "united"
    | "announcing"
    | "hearing"
    | "syncing"
    | "established";
  /** What the target has told of its own changes, while the source has not taken that over yet. */
  differing: readonly boolean[] | null;
  /** By cluster: the version that was sent and is not acknowledged yet. It has arrived when the target's image has it. */
  readonly sent: (number | null)[];
  /** By cluster: something that was sent before that has arrived, and is not acknowledged either. */
  readonly older: boolean[];
}

export interface World {
  readonly sides: [Side, Side];
  /** What the two have said of themselves, while the verdict is not drawn from it yet. */
  greeting: readonly [HistoryFacts, HistoryFacts] | null;
  session: Session | null;
  /** What the last handshake came to; told to an operator, and of no consequence by itself. */
  verdict: Verdict | null;
  /** Since the two were last equal an operator has forced one of them, or put it back. */
  forced: boolean;
  /** How often a side may still be put back to a backup, or be replaced by a new agent. */
  restores: number;
  replacements: number;
  /** How often a secondary may still be rolled back; `isBuffered`: what is rolled back is gone from its images then. */
  rollbacks: number;
  readonly isBuffered: boolean;
  backup: { readonly of: SideIndex; readonly side: Side } | null;
  /** Numbers given out: versions, lineages, sessions, epochs. */
  counter: number;
}

/** The rules, so that a test can break one of them and see that it is found. The shipping ones, where they are functions. */
export interface Rules {
  readonly decide: (one: HistoryFacts, other: HistoryFacts) => Verdict;
  readonly goneAlone: typeof goneAlone;
  readonly promoted: typeof promoted;
  readonly demoted: typeof demoted;
  readonly rolledBack: typeof rolledBack;
  readonly adopted: typeof adopted;
  readonly shared: typeof shared;
  readonly heard: typeof heard;
  readonly confirmed: typeof confirmed;
  readonly mustHold: typeof mustHold;
  /** What a start finds of the record. */
  readonly restarted: (record: StateRecord) => StateRecord;
  /** What a commit makes of the record beside the checkpoint and the lineage. */
  readonly committed: (record: StateRecord, isAdopted: boolean) => StateRecord;
  /** What the target knows to differ is taken over by the source. */
  readonly unites: boolean;
  /** The target forgets that only when the source has it durable. */
  readonly forgetsLast: boolean;
  /** A promotion enters what it rolls back as dirty. */
  readonly marksRolledBack: boolean;
  /** … and so does a rollback. */
  readonly marksAtRollback: boolean;
  /** It is durable that a lineage may be known before the target hears of it. */
  readonly sharesFirst: boolean;
  /** Before a full sync everything is dirty, and only then is it recorded whose copy the bitmap is about. */
  readonly marksEverything: boolean;
  /** A cluster stays dirty until it is acknowledged, … */
  readonly clearsAcknowledged: boolean;
  /** … and beyond that where it was changed again. */
  readonly clearsUnchanged: boolean;
  /** A verdict on a history that has ended meanwhile decides nothing. */
  readonly repeatsStale: boolean;
}

export const RULES: Rules = {
  decide,
  goneAlone,
  promoted,
  demoted,
  rolledBack,
  adopted,
  shared,
  heard,
  confirmed,
  mustHold,
  restarted: (record) => record,
  committed: (record, isAdopted) => ({ ...record, outdated: false, discardsOwn: !isAdopted && record.discardsOwn }),
  unites: true,
  forgetsLast: true,
  marksRolledBack: true,
  marksAtRollback: true,
  sharesFirst: true,
  marksEverything: true,
  clearsAcknowledged: true,
  clearsUnchanged: true,
  repeatsStale: true,
};

export interface Event {
  readonly name: string;
  /** Undefined where it cannot happen now. Throws when it shows that a promise is broken. */
  readonly apply: (world: World, rules: Rules) => World | undefined;
}

const NOTHING_YET: Truth = {
  alone: false,
  superseded: false,
  behind: false,
  gaveAway: false,
  ownState: false,
  whole: false,
  blank: false,
  givenUp: false,
  rolledBack: false,
};

/** A side that has only just begun, with disks that hold `version`. */
export function newSide(agentId: string, lineage: string | null, version: number): Side {
  return {
    record: stateRecord({ agentId, role: lineage === null ? "Secondary" : "Primary", lineage }),
    up: true,
    held: false,
    told: 0,
    image: Array.from({ length: CLUSTERS }, () => version),
    view: null,
    prepared: null,
    retained: null,
    dirty: Array.from({ length: CLUSTERS }, () => false),
    truth: { ...NOTHING_YET },
  };
}

/** A primary with data and a blank secondary, before their first session. */
export function newWorld(
  spare: Partial<Pick<World, "restores" | "replacements" | "rollbacks" | "isBuffered">> = {},
): World {
  const primary = newSide("a", "L1", 1);
  primary.truth.whole = true;
  return {
    sides: [primary, newSide("b", null, 0)],
    greeting: null,
    session: null,
    verdict: null,
    forced: false,
    restores: spare.restores ?? 0,
    replacements: spare.replacements ?? 0,
    rollbacks: spare.rollbacks ?? 0,
    isBuffered: spare.isBuffered ?? false,
    backup: null,
    counter: 1,
  };
}

export function copySide(side: Side): Side {
  return {
    ...side,
    image: [...side.image],
    view: side.view === null ? null : [...side.view],
    prepared: side.prepared === null ? null : [...side.prepared],
    dirty: [...side.dirty],
    truth: { ...side.truth },
  };
}

export function copyWorld(world: World): World {
  const { session } = world;
  return {
    ...world,
    sides: [copySide(world.sides[0]), copySide(world.sides[1])],
    session: session === null ? null : { ...session, sent: [...session.sent], older: [...session.older] },
  };
}

export const clusterIndexes: readonly number[] = Array.from({ length: CLUSTERS }, (_, cluster) => cluster);

export const other = (side: SideIndex): SideIndex => (side === 0 ? 1 : 0);

export function isServing({ record, up, held }: Side): boolean {
  return up && record.role === "Primary" && !held && !record.outdated && record.handOver === null;
}

export function factsOf({ record, told }: Side): HistoryFacts {
  return {
    ...historyFieldsOf(record),
    role: record.role,
    committed: record.role === "Primary" ? told : record.committed.epoch,
    assumeInSync: false,
  };
}

export function nextNumber(world: World): number {
  world.counter += 1;
  return world.counter;
}

export function nextId(world: World, letter: string): string {
  return `${letter}${nextNumber(world)}`;
}

/** Whether the secondary has a checkpoint that a promotion returns to without being forced. */
export function hasCheckpoint({ record }: Side): boolean {
  return record.committed.epoch > 0 && !record.outdated;
}
