import assert from "node:assert/strict";
import { givenUpFor, peerGivenUp } from "../../shared/replication/lineage.ts";
import type { Verdict } from "../../shared/replication/verdict.ts";
import { changed, crash, demote, endSession, promote } from "./lineage-roles.ts";
import { commitEarly, isStreaming, sendCluster } from "./lineage-session.ts";
import {
  clusterIndexes,
  copySide,
  factsOf,
  hasCheckpoint,
  isServing,
  newSide,
  nextId,
  nextNumber,
  other,
  type Event,
  type Rules,
  type Side,
  type SideIndex,
  type World,
} from "./lineage-world.ts";

/** What befalls the two: their guests' writes, the end and the start of processes, and the operator's commands. */

type Change = (world: World, self: Side, peer: Side, rules: Rules) => void;

function eventOf(
  what: string,
  index: SideIndex,
  can: (world: World, self: Side, peer: Side, rules: Rules) => boolean,
  change: Change,
): Event {
  return {
    name: `${what} ${index === 0 ? "a" : "b"}`,
    apply: (before, rules) => {
      const [self, peer] = [before.sides[index], before.sides[other(index)]];
      if (!can(before, self, peer, rules)) return undefined;
      return changed(before, (world) => change(world, world.sides[index], world.sides[other(index)], rules));
    },
  };
}

/** A guest's write, which is acknowledged. */
function write(cluster: number, index: SideIndex): Event {
  return eventOf(
    `write ${cluster}`,
    index,
    (_, self) => isServing(self),
    (world, self, peer, rules) => {
      const { session } = world;
      self.image[cluster] = nextNumber(world);
      if (session?.source === index && isStreaming(session)) {
        // What is dirty and not sent yet goes with the sync, which reads it later.
        if (self.dirty[cluster] !== true || session.sent[cluster] !== null) {
          sendCluster(session, self, peer, cluster, rules);
        }
        return;
      }
      if (self.record.tracks !== null) self.dirty[cluster] = true;
      if (self.record.history.shared) self.record = rules.goneAlone(self.record, nextId(world, "L"));
      self.truth.alone = true;
    },
  );
}

/** A write has reached the image when the process dies, before anybody was told. */
function tear(cluster: number, index: SideIndex): Event {
  return eventOf(
    `crash in write ${cluster}`,
    index,
    (_, self) => isServing(self) && self.record.tracks !== null,
    (world, self) => {
      self.image[cluster] = nextNumber(world);
      self.dirty[cluster] = true;
      crash(world, index);
    },
  );
}

function processEvents(index: SideIndex): Event[] {
  return [
    eventOf(
      "crash",
      index,
      (_, self) => self.up,
      (world) => crash(world, index),
    ),
    // A side is stopped, and its record and images are copied; later it is put back to that.
    eventOf(
      "back up",
      index,
      (world) => world.restores > 0 && world.backup === null,
      (world, self) => {
        crash(world, index);
        world.backup = { of: index, side: copySide(self) };
      },
    ),
    eventOf(
      "restore",
      index,
      (world) => world.restores > 0 && world.backup?.of === index,
      (world, _, peer) => {
        endSession(world);
        if (world.backup !== null) world.sides[index] = copySide(world.backup.side);
        world.backup = null;
        world.restores -= 1;
        world.forced = true;
        peer.truth.superseded = false;
      },
    ),
    ...(["primary", "secondary"] as const).map((role) =>
      eventOf(
        `blank ${role} in the place of`,
        index,
        (world) => world.replacements > 0,
        (world, _, peer) => {
          endSession(world);
          const lineage = role === "primary" ? nextId(world, "L") : null;
          const side = newSide(nextId(world, "r"), lineage, 0);
          side.truth.blank = true;
          world.sides[index] = side;
          world.replacements -= 1;
          world.forced = true;
          peer.truth.superseded = false;
        },
      ),
    ),
  ];
}

/** The operator has another agent take the peer's place (`connect --accept-new-peer`); that one is to come. */
function acceptNewPeer(index: SideIndex): Event {
  return eventOf(
    "accept a new peer of",
    index,
    (world, self, peer) =>
      world.replacements > 0 &&
      world.session === null &&
      self.up &&
      self.record.role === "Primary" &&
      !self.record.outdated &&
      self.record.pairing?.peer === peer.record.agentId,
    (world, self) => {
      world.greeting = null;
      self.record = peerGivenUp(self.record);
    },
  );
}

/** What an operator does who is told that the side was replaced. */
export function giveBlank(index: SideIndex): Event {
  const found = processEvents(index).find(({ name }) => name.startsWith("blank secondary"));
  assert(found !== undefined);
  return found;
}

/** A process that has ended is started again, by whatever watches over it. */
function start(index: SideIndex): Event {
  return eventOf(
    "start",
    index,
    (_, self) => !self.up,
    (_, self, __, rules) => {
      self.up = true;
      self.record = rules.restarted(self.record);
      self.held = rules.mustHold(self.record, true);
      assert(!isServing(self) || !self.truth.superseded, "a side serves whose peer was promoted while it was away");
      assertKept(self);
    },
  );
}

export const STARTS: readonly Event[] = [start(0), start(1)];

/** What a side has been told, or has promised, it keeps to. */
function assertKept(self: Side): void {
  if (!isServing(self)) return;
  assert(!self.truth.behind, "a side serves that was told that it is behind");
  assert(!self.truth.gaveAway, "a side serves that has handed its role over");
}

/** What a handshake would come to now; a command speaks to the peer first. */
function verdictNow(world: World, rules: Rules): Verdict | undefined {
  if (world.session !== null || !world.sides.every(({ up }) => up)) return undefined;
  if (lastJudged?.world !== world || lastJudged.rules !== rules) {
    lastJudged = { world, rules, verdict: rules.decide(factsOf(world.sides[0]), factsOf(world.sides[1])) };
  }
  return lastJudged.verdict;
}

/** Several events ask about the same world, one after the other. */
let lastJudged: { readonly world: World; readonly rules: Rules; readonly verdict: Verdict } | undefined;

function startAlone(index: SideIndex): Event {
  return eventOf(
    "start-alone",
    index,
    (_, self) => self.up && self.held && !self.record.outdated && self.record.handOver === null,
    (_, self) => {
      self.held = false;
      assertKept(self);
    },
  );
}

export function failover(index: SideIndex): Event {
  return eventOf(
    "failover",
    index,
    (world, self) => self.up && self.record.role === "Secondary" && world.session === null && hasCheckpoint(self),
    (world, self, _, rules) => {
      assert(!self.truth.ownState, "a former primary's own state is promoted, and nobody has forced it");
      promote(world, index, rules);
    },
  );
}

export function forcedFailover(index: SideIndex): Event {
  return eventOf(
    "failover --force",
    index,
    (world, self) =>
      self.up &&
      self.record.role === "Secondary" &&
      (world.session !== null || !hasCheckpoint(self)) &&
      self.record.pairing !== null,
    (world, _, __, rules) => promote(world, index, rules),
  );
}

/** Speaks to the peer first, and becomes its secondary where it is behind. */
export function rejoin(index: SideIndex): Event {
  return eventOf(
    "rejoin",
    index,
    (world, self, _, rules) => {
      if (self.record.role !== "Primary") return false;
      const verdict = verdictNow(world, rules);
      return verdict?.kind === "outdated" && verdict.agent === self.record.agentId;
    },
    (world, _, __, rules) => demote(world, index, false, rules),
  );
}

/** `connect --discard-my-data`. */
export function discard(index: SideIndex): Event {
  return eventOf(
    "discard",
    index,
    (world, self, _, rules) => {
      const verdict = verdictNow(world, rules);
      if (verdict === undefined || verdict.kind === "sync" || self.record.discardsOwn) return false;
      if (verdict.kind !== "refused" || verdict.rule === "unrelated") return true;
      return verdict.rule === "rolled-back" && self.record.role === "Secondary";
    },
    (world, self, peer, rules) => {
      world.greeting = null;
      if (self.record.role === "Primary") demote(world, index, true, rules);
      else {
        const { discardsOwnFor: _, ...record } = givenUpFor(self.record, peer.record.agentId);
        self.record = record;
        self.prepared = null;
        self.truth.ownState ||= record.committed.epoch > 0;
      }
      self.truth.givenUp = true;
    },
  );
}

/** The secondary is back at the checkpoint before its last one. */
function rollback(index: SideIndex): Event {
  return eventOf(
    "rollback",
    index,
    (world, self) =>
      world.rollbacks > 0 &&
      world.session === null &&
      self.up &&
      self.record.role === "Secondary" &&
      self.retained !== null,
    (world, self, _, rules) => {
      const { retained } = self;
      assert(retained !== null);
      const { pairing, tracks, outdated } = self.record;
      const peer = !outdated && (tracks === null || tracks === pairing?.peer) ? pairing?.peer : undefined;
      world.greeting = null;
      world.rollbacks -= 1;
      if (peer !== undefined) {
        self.dirty = self.image.map((version, cluster) => {
          const isMarked = tracks !== null && self.dirty[cluster] === true;
          return isMarked || (rules.marksAtRollback && version !== retained.image[cluster]);
        });
        self.record = { ...self.record, tracks: peer };
      }
      self.record = {
        ...rules.rolledBack(self.record, nextId(world, "L"), peer !== undefined),
        committed: { epoch: retained.epoch, atMs: 0 },
        prepared: [],
      };
      self.view = [...retained.image];
      if (world.isBuffered) self.image = [...retained.image];
      self.prepared = null;
      self.retained = null;
      self.truth = { ...self.truth, givenUp: false, rolledBack: true };
    },
  );
}

function operatorEvents(index: SideIndex): Event[] {
  return [
    startAlone(index),
    failover(index),
    forcedFailover(index),
    rejoin(index),
    discard(index),
    rollback(index),
    acceptNewPeer(index),
    eventOf(
      "give up the checkpoint of",
      index,
      (_, self) => self.up && self.record.role === "Secondary" && self.record.committed.epoch > 0,
      (world, self) => {
        endSession(world);
        self.record = { ...self.record, committed: { epoch: 0, atMs: 0 }, prepared: [] };
        self.view = null;
        self.prepared = null;
        self.retained = null;
        // Without a history that it has adopted, there is nothing left that it could be the copy of.
        if (self.record.lineage === null) self.truth.whole = false;
      },
    ),
    eventOf(
      "hand over",
      index,
      (world, self, peer) =>
        world.session?.source === index &&
        world.session.phase === "established" &&
        isServing(self) &&
        hasCheckpoint(peer) &&
        world.session.sent.every((version) => version === null) &&
        self.told === peer.record.committed.epoch &&
        clusterIndexes.every((cluster) => self.image[cluster] === peer.view?.[cluster]),
      (_, self, peer) => {
        self.record = { ...self.record, handOver: peer.record.agentId };
        self.truth.gaveAway = true;
      },
    ),
    eventOf(
      "take over",
      index,
      (world, self, peer) =>
        world.session !== null &&
        world.session.source === other(index) &&
        world.session.phase === "established" &&
        peer.record.handOver === self.record.agentId,
      (world, _, __, rules) => promote(world, index, rules),
    ),
  ];
}

const disconnect: Event = {
  name: "disconnect",
  apply: (before) => {
    if (before.session === null && before.greeting === null) return undefined;
    return changed(before, endSession);
  },
};

/** Everything that happens to the two from outside. */
export const INTERVENTIONS: readonly Event[] = [
  commitEarly,
  disconnect,
  ...([0, 1] as const).flatMap((index) => [
    ...clusterIndexes.flatMap((cluster) => [write(cluster, index), tear(cluster, index)]),
    ...processEvents(index),
    ...operatorEvents(index),
  ]),
];
