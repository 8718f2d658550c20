import assert from "node:assert/strict";
import type { StateRecord } from "../../proto/state-record.ts";
import {
  adopted,
  demoted,
  goneAlone,
  heard,
  historyFieldsOf,
  mustHold,
  promoted,
  shared,
} from "../../shared/replication/lineage.ts";
import { decide, type HistoryFacts, type Verdict } from "../../shared/replication/verdict.ts";
import { stateRecord } from "../support/state-records.ts";

/**
 * Two agents reduced to what a handshake is about: their records, changed by the shipping transitions; disks of two
 * clusters, of which only the version counts; and the clusters that each knows to differ. One event is one durable step,
 * so a crash can come between any two.
 */
export const CLUSTERS = 2;

export interface Side {
  record: StateRecord;
  up: boolean;
  /** Guests wait until the peer has spoken, or an operator lets them go. */
  held: boolean;
  image: number[];
  /** What a promotion returns to; null before the first checkpoint. */
  view: number[] | null;
  /** Clusters that the tracked peer may lack. */
  dirty: boolean[];
  /** A write was acknowledged without the peer, which has not heard of that history yet. */
  alone: boolean;
}

export interface World {
  readonly sides: [Side, Side];
  /** Which side sends in the session that is open, if one is. */
  session: { source: 0 | 1; phase: "opening" | "uniting" | "announcing" | "syncing" | "ending" | "established" } | null;
  /** What the last handshake came to. */
  verdict: Verdict | null;
  /** Numbers given out: versions, lineages, sessions. */
  counter: number;
}

/** The rules, so that a test can break one of them and see that it is found. */
export interface Rules {
  readonly decide: (one: HistoryFacts, other: HistoryFacts) => Verdict;
  readonly goneAlone: typeof goneAlone;
  readonly promoted: typeof promoted;
  readonly adopted: typeof adopted;
  readonly shared: typeof shared;
  readonly heard: typeof heard;
  readonly mustHold: typeof mustHold;
  /** Whether what the target knows to differ is taken over. */
  readonly unites: boolean;
  /** Whether a promotion enters what it rolls back as dirty. */
  readonly marksRolledBack: boolean;
}

export const RULES: Rules = {
  decide,
  goneAlone,
  promoted,
  adopted,
  shared,
  heard,
  mustHold,
  unites: true,
  marksRolledBack: true,
};

export function newWorld(): World {
  const side = (agentId: string, role: "Primary" | "Secondary"): Side => ({
    record: stateRecord({ agentId, role, lineage: role === "Primary" ? "L1" : null }),
    up: true,
    held: false,
    image: role === "Primary" ? [1, 1] : [0, 0],
    view: null,
    dirty: [false, false],
    alone: false,
  });
  return { sides: [side("a", "Primary"), side("b", "Secondary")], session: null, verdict: null, counter: 1 };
}

export interface Event {
  readonly name: string;
  /** Undefined where it cannot happen now. Throws when it shows that a promise is broken. */
  readonly apply: (world: World, rules: Rules) => World | undefined;
}

function clone(world: World): World {
  const side = (from: Side): Side => ({
    ...from,
    image: [...from.image],
    view: from.view === null ? null : [...from.view],
    dirty: [...from.dirty],
  });
  return {
    sides: [side(world.sides[0]), side(world.sides[1])],
    session: world.session === null ? null : { ...world.session },
    verdict: world.verdict,
    counter: world.counter,
  };
}

const factsOf = ({ record }: Side): HistoryFacts => ({
  ...historyFieldsOf(record),
  role: record.role,
  committed: record.committed.epoch,
  assumeInSync: false,
});

const other = (side: 0 | 1): 0 | 1 => (side === 0 ? 1 : 0);
const isServing = ({ record, up, held }: Side): boolean =>
  up && record.role === "Primary" && !held && !record.outdated && record.handOver === null;
const name = (side: 0 | 1): string => (side === 0 ? "a" : "b");

/** An event of one side, on a copy of the world. */
function of(
  what: string,
  side: 0 | 1,
  can: (world: World, self: Side) => boolean,
  change: (world: World, self: Side, peer: Side, rules: Rules) => void,
): Event {
  return {
    name: `${what} ${name(side)}`,
    apply: (before, rules) => {
      if (!can(before, before.sides[side])) return undefined;
      const world = clone(before);
      change(world, world.sides[side], world.sides[other(side)], rules);
      return world;
    },
  };
}

function next(world: World, letter: string): string {
  world.counter += 1;
  return `${letter}${world.counter}`;
}

function promote(world: World, self: Side, rules: Rules): void {
  const { committed, outdated, pairing, tracks } = self.record;
  const isNormal = committed.epoch > 0 && !outdated;
  const isTracked = isNormal && pairing !== null && tracks === null;
  const rolledBack = self.view === null ? [] : self.image.map((version, cluster) => version !== self.view?.[cluster]);
  if (self.view !== null) self.image = [...self.view];
  self.dirty = self.image.map((_, cluster) => isTracked && rules.marksRolledBack && rolledBack[cluster] === true);
  self.record = {
    ...rules.promoted(self.record, next(world, "L"), isNormal),
    tracks: isTracked ? pairing.peer : null,
  };
  self.held = false;
  self.alone = false;
}

function demote(self: Side, discards: boolean): void {
  self.record = demoted(self.record, { epoch: self.record.epochReserved + 1, atMs: 0 }, discards);
  self.view = [...self.image];
  self.held = false;
  self.alone = false;
}

function write(cluster: number, side: 0 | 1): Event {
  return of(
    `write ${cluster}`,
    side,
    (_, self) => isServing(self),
    (world, self, peer, rules) => {
      world.counter += 1;
      self.image[cluster] = world.counter;
      const { session } = world;
      const isInStream = session?.source === side && !["opening", "uniting", "announcing"].includes(session.phase);
      if (isInStream && self.dirty[cluster] !== true) {
        peer.image[cluster] = world.counter;
        return;
      }
      self.dirty[cluster] = true;
      if (isInStream) return; // it goes with the sync
      if (self.record.history.shared) self.record = rules.goneAlone(self.record, next(world, "L"));
      self.alone = true;
    },
  );
}

/** The two speak to each other: the first durable steps of a session, or what else the verdict means. */
export const connect: Event = {
  name: "connect",
  apply: (before, rules) => {
    if (before.session !== null || !before.sides.every(({ up }) => up)) return undefined;
    const world = clone(before);
    const [one, two] = world.sides;
    const verdict = rules.decide(factsOf(one), factsOf(two));
    assert.deepEqual(rules.decide(factsOf(two), factsOf(one)), verdict, "both sides reach the same verdict");
    world.verdict = verdict;
    const sideOf = (agent: string): 0 | 1 => (one.record.agentId === agent ? 0 : 1);
    if (verdict.kind === "sync") {
      const source = sideOf(verdict.source);
      const [from, to] = [world.sides[source], world.sides[other(source)]];
      if (verdict.extent !== "delta") {
        from.dirty = from.dirty.map(() => true);
        from.record = { ...from.record, tracks: verdict.target };
      }
      const id = next(world, "s");
      const known = to.record.pairing?.peer === from.record.agentId ? to.record.pairing.sessions[0] : undefined;
      const sessions = known === undefined ? [id] : [id, known];
      from.record = { ...from.record, pairing: { peer: to.record.agentId, sessions }, handOver: null };
      from.held = false;
      world.session = { source, phase: "opening" };
      return world;
    }
    if (verdict.kind === "outdated") {
      const behind = world.sides[sideOf(verdict.agent)];
      behind.record = { ...behind.record, outdated: true };
    }
    if (verdict.kind === "hand-over") demote(world.sides[sideOf(verdict.from)], false);
    const both = world.sides.every(isServing);
    assert(!both || verdict.kind === "split-brain" || verdict.kind === "refused", "both serve after they have spoken");
    return world;
  },
};

/** The next durable step of the session that is open. */
export const step: Event = {
  name: "step",
  apply: (before, rules) => {
    if (before.session === null) return undefined;
    const world = clone(before);
    const session = world.session;
    assert(session !== null);
    const [from, to] = [world.sides[session.source], world.sides[other(session.source)]];
    switch (session.phase) {
      case "opening": {
        const id = from.record.pairing?.sessions[0] ?? "";
        const known = to.record.pairing?.peer === from.record.agentId ? to.record.pairing.sessions[0] : undefined;
        to.record = {
          ...to.record,
          pairing: { peer: from.record.agentId, sessions: known === undefined ? [id] : [id, known] },
        };
        // The source records what the target knows to differ …
        if (to.record.tracks === from.record.agentId && rules.unites) {
          from.dirty = from.dirty.map((dirty, cluster) => dirty || to.dirty[cluster] === true);
        }
        session.phase = "uniting";
        return world;
      }
      case "uniting":
        // … and then the target forgets it.
        to.record = { ...to.record, tracks: null };
        to.dirty = to.dirty.map(() => false);
        session.phase = "announcing";
        return world;
      case "announcing":
        // It is durable that the target may know the lineage before it hears of it.
        if (!from.record.history.shared) {
          from.record = rules.shared(from.record);
          return world;
        }
        to.record = rules.heard(to.record, from.record.lineage ?? "");
        from.alone = false;
        session.phase = "syncing";
        return world;
      case "syncing": {
        const cluster = from.dirty.indexOf(true);
        if (cluster >= 0) {
          from.dirty[cluster] = false;
          to.image[cluster] = from.image[cluster] ?? 0;
          return world;
        }
        session.phase = "ending";
        return world;
      }
      case "ending":
        if (from.dirty.includes(true)) {
          session.phase = "syncing";
          return world;
        }
        if (to.record.committed.epoch > 0 && !to.record.outdated) {
          to.record = rules.adopted(to.record, {
            lineage: from.record.lineage,
            ancestors: from.record.history.ancestors,
          });
        }
        session.phase = "established";
        assert.deepEqual(to.image, from.image, "the copies differ when nothing is dirty any more");
        return world;
      case "established": {
        // A checkpoint, if there is anything that the last one has not.
        const isNew = to.view === null || to.view.some((version, at) => version !== to.image[at]) || to.record.outdated;
        if (!isNew) return undefined;
        const epoch = Math.max(from.record.epochReserved, to.record.epochReserved, to.record.committed.epoch) + 1;
        to.view = [...to.image];
        to.record = {
          ...rules.adopted(to.record, { lineage: from.record.lineage, ancestors: from.record.history.ancestors }),
          committed: { epoch, atMs: 0 },
          epochReserved: epoch,
          outdated: false,
          discardsOwn: false,
        };
        from.record = { ...from.record, committed: { epoch, atMs: 0 }, epochReserved: epoch };
        return world;
      }
    }
  },
};

const disconnect: Event = {
  name: "disconnect",
  apply: (before) => (before.session === null ? undefined : { ...clone(before), session: null }),
};

function eventsOf(side: 0 | 1): Event[] {
  const isIdle = (world: World, self: Side): boolean => self.up && world.session === null;
  return [
    ...Array.from({ length: CLUSTERS }, (_, cluster) => write(cluster, side)),
    of(
      "crash",
      side,
      (_, self) => self.up,
      (world, self) => {
        self.up = false;
        world.session = null;
      },
    ),
    of(
      "start",
      side,
      (_, self) => !self.up,
      (_, self, __, rules) => {
        self.up = true;
        self.held = rules.mustHold(self.record);
      },
    ),
    of(
      "start-alone",
      side,
      (_, self) => self.up && self.held && !self.record.outdated && self.record.handOver === null,
      (_, self) => {
        self.held = false;
      },
    ),
    of(
      "failover",
      side,
      (world, self) =>
        isIdle(world, self) &&
        self.record.role === "Secondary" &&
        self.record.committed.epoch > 0 &&
        !self.record.outdated,
      (world, self, _, rules) => promote(world, self, rules),
    ),
    of(
      "failover --force",
      side,
      (world, self) =>
        isIdle(world, self) &&
        self.record.role === "Secondary" &&
        (self.record.committed.epoch === 0 || self.record.outdated) &&
        self.record.pairing !== null,
      (world, self, _, rules) => promote(world, self, rules),
    ),
    of(
      "rejoin",
      side,
      (world, self) =>
        isIdle(world, self) &&
        self.record.outdated &&
        self.record.role === "Primary" &&
        world.verdict?.kind === "outdated",
      (_, self) => {
        assert(!self.alone, `${self.record.agentId} rejoins, and what it acknowledged alone is lost`);
        demote(self, false);
      },
    ),
    of(
      "discard",
      side,
      (world, self) => isIdle(world, self) && world.verdict?.kind === "split-brain",
      (world, self) => {
        world.verdict = null;
        if (self.record.role === "Primary") demote(self, true);
        else self.record = { ...self.record, discardsOwn: true };
      },
    ),
    of(
      "hand over",
      side,
      (world, self) =>
        world.session?.source === side &&
        world.session.phase === "established" &&
        isServing(self) &&
        world.sides[other(side)].record.committed.epoch > 0 &&
        !world.sides[other(side)].record.outdated &&
        world.sides[other(side)].view?.every((version, at) => version === world.sides[other(side)].image[at]) === true,
      (_, self, peer) => {
        self.record = { ...self.record, handOver: peer.record.agentId };
      },
    ),
    of(
      "take over",
      side,
      (world, self) =>
        world.session !== null &&
        world.session.source === other(side) &&
        world.sides[other(side)].record.handOver === self.record.agentId,
      (world, self, _, rules) => {
        world.session = null;
        promote(world, self, rules);
      },
    ),
  ];
}

export const EVENTS: readonly Event[] = [connect, step, disconnect, ...eventsOf(0), ...eventsOf(1)];

/** The same for two worlds that differ in the names of lineages, sessions and versions only. */
export function canonical(world: World): string {
  const names = new Map<string | number, string>();
  const rename = (id: string | number): string => {
    let found = names.get(id);
    if (found === undefined) names.set(id, (found = `#${names.size}`));
    return found;
  };
  const epochs = [
    ...new Set(world.sides.flatMap(({ record }) => [record.committed.epoch, record.epochReserved, 0])),
  ].sort((one, two) => one - two);
  return JSON.stringify([
    world.session,
    world.verdict?.kind ?? null,
    world.sides.map(({ record, up, held, image, view, dirty, alone }) => [
      record.role,
      record.lineage === null ? null : rename(record.lineage),
      record.history.origin,
      record.history.shared,
      record.history.ancestors.map(rename),
      record.history.heard.map(rename),
      record.pairing === null ? null : [record.pairing.peer, record.pairing.sessions.map(rename)],
      record.tracks,
      record.outdated,
      record.discardsOwn,
      record.handOver,
      epochs.indexOf(record.committed.epoch),
      [up, held, alone],
      image.map(rename),
      view?.map(rename) ?? null,
      dirty,
    ]),
  ]);
}
