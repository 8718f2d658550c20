import assert from "node:assert/strict";
import type { Verdict } from "../../shared/replication/verdict.ts";
import { demote } from "./lineage-roles.ts";
import {
  clusterIndexes,
  copySide,
  copyWorld,
  factsOf,
  hasCheckpoint,
  isServing,
  newWorld,
  nextId,
  nextNumber,
  other,
  type Event,
  type Rules,
  type Session,
  type Side,
  type SideIndex,
  type World,
} from "./lineage-world.ts";

/**
 * What the two do by themselves while both are up and the network is whole: greet, judge, and one durable step of their
 * session after the other, as `primary/replicator.ts`, `primary/pairing.ts` and `secondary/replica-session.ts` do.
 */

const GIVES_WAY = "a primary gives way to a checkpoint that nobody has promoted";

/** From here on what the guest writes goes into the stream. */
export function isStreaming({ phase }: Session): boolean {
  return phase === "hearing" || phase === "syncing" || phase === "established";
}

/** Both tell what they know. */
export const greet: Event = {
  name: "greet",
  apply: (before) => {
    if (before.session !== null || before.greeting !== null || !before.sides.every(({ up }) => up)) return undefined;
    return { ...before, greeting: [factsOf(before.sides[0]), factsOf(before.sides[1])] };
  },
};

/** Each draws the verdict, and the first effects of it. */
export const judge: Event = {
  name: "judge",
  apply: (before, rules) => {
    if (before.greeting === null) return undefined;
    const world = copyWorld(before);
    const [one, two] = before.greeting;
    const verdict = rules.decide(one, two);
    assert.deepEqual(rules.decide(two, one), verdict, "the two reach different verdicts");
    world.greeting = null;
    world.verdict = verdict;
    const sideOf = (agent: string): SideIndex => (one.agentId === agent ? 0 : 1);
    if (verdict.kind === "sync") {
      openSession(world, sideOf(verdict.source), verdict.extent);
      return world;
    }
    const isStale = (index: SideIndex): boolean =>
      rules.repeatsStale && before.greeting?.[index].lineage !== world.sides[index].record.lineage;
    if (isStale(0) || isStale(1)) world.verdict = null;
    if (verdict.kind === "outdated" && !isStale(sideOf(verdict.agent))) {
      becomeOutdated(world.sides[sideOf(verdict.agent)], world.sides[sideOf(verdict.newer)]);
    }
    if (verdict.kind === "hand-over" && !isStale(sideOf(verdict.from)))
      demote(world, sideOf(verdict.from), false, rules);
    if (world.verdict !== null) assertHonest(world, verdict);
    return world;
  },
};

function openSession(world: World, source: SideIndex, extent: Session["extent"]): void {
  const [from, to] = [world.sides[source], world.sides[other(source)]];
  assert(from.record.role === "Primary" && to.record.role === "Secondary", "the primary is not the source");
  assert(from.record.replaced?.includes(to.record.agentId) !== true, "an agent that was replaced is synced again");
  const goesOnFromThere = from.record.history.ancestors.includes(to.record.lineage ?? "");
  assert(!to.truth.rolledBack || to.truth.givenUp || goesOnFromThere, "a rollback is undone, and nobody has said so");
  assert(!from.truth.blank || !to.truth.whole || to.truth.givenUp, "a blank replacement overwrites the only copy");
  world.session = {
    source,
    extent,
    phase: extent === "delta" ? "pairing" : "beginning",
    differing: null,
    sent: clusterIndexes.map(() => null),
    older: clusterIndexes.map(() => false),
  };
}

function becomeOutdated(self: Side, newer: Side): void {
  if (newer.record.role === "Primary") {
    const { ancestors } = newer.record.history;
    assert(ancestors.includes(self.record.lineage ?? ""), "a side is called outdated that is not behind");
  }
  assert(self.truth.behind || !newer.truth.rolledBack, GIVES_WAY);
  self.record = { ...self.record, outdated: true };
  self.truth.behind = true;
}

/** What the two are told is true. */
function assertHonest(world: World, verdict: Verdict): void {
  if (verdict.kind === "split-brain") {
    const isReal = world.forced || world.sides.some(({ truth }) => truth.alone);
    assert(isReal, "a split brain is reported where nothing was acknowledged alone");
    return;
  }
  assert(verdict.kind === "refused" || !world.sides.every(isServing), "both serve after they have spoken");
}

/** The next durable step of the session that is open. */
export const step: Event = {
  name: "step",
  apply: (before, rules) => {
    if (before.session === null) return undefined;
    const world = copyWorld(before);
    const session = world.session;
    assert(session !== null);
    const [from, to] = [world.sides[session.source], world.sides[other(session.source)]];
    return takeStep(world, session, from, to, rules) ? world : undefined;
  },
};

function takeStep(world: World, session: Session, from: Side, to: Side, rules: Rules): boolean {
  const isDelta = session.extent === "delta";
  switch (session.phase) {
    case "beginning":
      if (rules.marksEverything) from.dirty = from.dirty.map(() => true);
      from.record = { ...from.record, tracks: to.record.agentId };
      session.phase = "pairing";
      return true;
    case "pairing": {
      const id = nextId(world, "s");
      from.record = { ...from.record, pairing: pairingOf(to.record.agentId, id, sessionWith(from, to)) };
      session.phase = "opening";
      return true;
    }
    case "opening":
      // The peer was not promoted meanwhile: guests go on.
      from.record = { ...from.record, handOver: null };
      from.told = to.record.outdated ? 0 : to.record.committed.epoch;
      from.held = false;
      from.truth.superseded = false;
      from.truth.gaveAway = false;
      session.phase = "answering";
      return true;
    case "answering": {
      const id = from.record.pairing?.sessions[0] ?? "";
      to.record = { ...to.record, pairing: pairingOf(from.record.agentId, id, undefined) };
      if (isDelta && to.record.tracks !== null) session.differing = [...to.dirty];
      session.phase = isDelta && rules.forgetsLast ? "uniting" : "forgetting";
      return true;
    }
    case "forgetting":
      // A source that sends everything needs no list of what differs.
      forget(to);
      session.phase = isDelta ? "uniting" : "confirming";
      return true;
    case "uniting": {
      const { differing } = session;
      if (rules.unites) from.dirty = from.dirty.map((dirty, cluster) => dirty || differing?.[cluster] === true);
      session.differing = null;
      session.phase = "confirming";
      return true;
    }
    case "confirming":
      from.record = rules.confirmed(from.record, from.record.pairing?.sessions[0] ?? "");
      session.phase = isDelta ? "united" : "announcing";
      return true;
    case "united":
      forget(to);
      session.phase = "announcing";
      return true;
    case "announcing":
      if (rules.sharesFirst) from.record = rules.shared(from.record, to.record.agentId);
      session.phase = "hearing";
      return true;
    case "hearing":
      to.record = rules.heard(to.record, from.record.lineage ?? "");
      session.phase = "syncing";
      return true;
    case "syncing":
      if (!rules.sharesFirst) from.record = rules.shared(from.record, to.record.agentId);
      if (arrive(session, from, to) || send(session, from, to, rules)) return true;
      if (hasCheckpoint(to)) to.record = rules.adopted(to.record, sourceOf(from));
      from.truth.alone = false;
      if (world.backup?.of === session.source) world.backup = { ...world.backup, side: notAlone(world.backup.side) };
      from.truth.blank = false;
      to.truth.blank = false;
      world.forced = false;
      session.phase = "established";
      assertEqual(session, from, to);
      return true;
    case "established":
      return arrive(session, from, to) || takeCheckpoint(world, session, from, to, rules);
  }
}

/** What a side had acknowledged by its backup has reached the peer since, with everything else. */
function notAlone(side: Side): Side {
  const copy = copySide(side);
  copy.truth.alone = false;
  return copy;
}

function pairingOf(peer: string, id: string, before: string | undefined): Side["record"]["pairing"] {
  return { peer, sessions: before === undefined ? [id] : [id, before] };
}

/** The newest session with the peer that this side remembers. */
function sessionWith(self: Side, peer: Side): string | undefined {
  return self.record.pairing?.peer === peer.record.agentId ? self.record.pairing.sessions[0] : undefined;
}

function sourceOf({ record }: Side): { lineage: string | null; ancestors: string[] } {
  return { lineage: record.lineage, ancestors: record.history.ancestors };
}

function forget(target: Side): void {
  target.record = { ...target.record, tracks: null };
  target.dirty = target.dirty.map(() => false);
}

/** The next of what is on its way reaches the target, in whose place nothing else may write. */
function arrive({ sent }: Session, from: Side, to: Side): boolean {
  assert(to.record.role === "Secondary" && from.record.role === "Primary", "a primary's disks are overwritten");
  const cluster = clusterIndexes.find((index) => sent[index] !== null && sent[index] !== to.image[index]);
  if (cluster === undefined) return false;
  to.image[cluster] = sent[cluster] ?? 0;
  return true;
}

function send(session: Session, from: Side, to: Side, rules: Rules): boolean {
  const cluster = clusterIndexes.find((index) => from.dirty[index] === true && session.sent[index] === null);
  if (cluster === undefined) return false;
  sendCluster(session, from, to, cluster, rules);
  return true;
}

/** Puts the cluster's present content into the stream; it is dirty, durably, until that is acknowledged. */
export function sendCluster(session: Session, from: Side, to: Side, cluster: number, rules: Rules): void {
  // The acknowledgement of what was sent before means nothing any more.
  if (!rules.clearsUnchanged) session.older[cluster] = session.sent[cluster] === to.image[cluster];
  session.sent[cluster] = from.image[cluster] ?? 0;
  from.dirty[cluster] = rules.clearsAcknowledged;
}

/** The source hears that what has arrived is stable. */
export const acknowledge: Event = {
  name: "acknowledge",
  apply: (before) => {
    if (before.session === null) return undefined;
    const target = before.sides[other(before.session.source)];
    const { sent: inFlight, older } = before.session;
    const isArrived = inFlight.some((version, cluster) => version !== null && version === target.image[cluster]);
    if (!isArrived && !older.includes(true)) return undefined;
    const world = copyWorld(before);
    const session = world.session;
    assert(session !== null);
    const [from, to] = [world.sides[session.source], world.sides[other(session.source)]];
    for (const [cluster, version] of session.sent.entries()) {
      if (session.older[cluster] === true) from.dirty[cluster] = false;
      session.older[cluster] = false;
      if (version === null || version !== to.image[cluster]) continue;
      session.sent[cluster] = null;
      if (version === from.image[cluster]) from.dirty[cluster] = false;
    }
    assertEqual(session, from, to);
    return world;
  },
};

function assertEqual({ phase, sent }: Session, from: Side, to: Side): void {
  if (phase !== "established" || from.dirty.includes(true) || sent.some((version) => version !== null)) return;
  const isEqual = clusterIndexes.every((cluster) => from.image[cluster] === to.image[cluster]);
  assert(isEqual, "the copies differ where nothing is dirty");
}

/** A checkpoint, if there is anything that the last one has not: prepared, committed, and the source told of it. */
function takeCheckpoint(world: World, session: Session, from: Side, to: Side, rules: Rules): boolean {
  const { prepared, view, image } = to;
  if (prepared !== null) {
    commit(world, to, prepared, from, true, rules);
    return true;
  }
  if (session.sent.some((version) => version !== null)) return false;
  const isNew = view === null || to.record.outdated || view.some((version, cluster) => version !== image[cluster]);
  if (isNew) {
    const epoch = nextNumber(world);
    to.prepared = [...image];
    to.record = { ...to.record, prepared: [{ epoch, atMs: 0 }], epochReserved: epoch };
    return true;
  }
  if (from.told === to.record.committed.epoch) return false;
  from.told = to.record.committed.epoch;
  return true;
}

/** The source's history is adopted with the checkpoint, where everything of it has arrived. */
function commit(world: World, to: Side, prepared: number[], from: Side, hasArrived: boolean, rules: Rules): void {
  const checkpoint = to.record.prepared[0];
  assert(checkpoint !== undefined);
  const { epoch } = to.record.committed;
  if (world.rollbacks > 0) to.retained = to.view === null ? null : { epoch, image: to.view };
  const record = hasArrived ? rules.adopted(to.record, sourceOf(from)) : to.record;
  to.record = { ...rules.committed(record, hasArrived), committed: checkpoint, prepared: [] };
  to.view = prepared;
  to.prepared = null;
  // What a blank primary was told to commit of a lost one is the operator's to lose.
  to.truth = {
    ...to.truth,
    ownState: false,
    whole: to.truth.whole || !from.truth.blank,
    givenUp: !hasArrived && to.truth.givenUp,
    rolledBack: !hasArrived && to.truth.rolledBack,
  };
}

/** A checkpoint that was prepared in an earlier session is committed before the sync of this one has ended. */
export const commitEarly: Event = {
  name: "commit",
  apply: (before, rules) => {
    if (before.session === null || !["hearing", "syncing"].includes(before.session.phase)) return undefined;
    if (before.sides[other(before.session.source)].prepared === null) return undefined;
    const world = copyWorld(before);
    const [from, to] = [world.sides[before.session.source], world.sides[other(before.session.source)]];
    if (to.prepared !== null) commit(world, to, to.prepared, from, false, rules);
    return world;
  },
};

/** A pair after its first sync and checkpoint. */
export function protectedWorld(rules: Rules, spare?: Parameters<typeof newWorld>[0]): World {
  let world = newWorld(spare);
  for (;;) {
    const after = [judge, acknowledge, step, greet].reduce<World | undefined>(
      (found, event) => found ?? event.apply(world, rules),
      undefined,
    );
    if (after === undefined) return world;
    world = after;
  }
}
