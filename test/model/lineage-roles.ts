import assert from "node:assert/strict";
import {
  copyWorld,
  hasCheckpoint,
  nextId,
  nextNumber,
  other,
  type Rules,
  type Side,
  type SideIndex,
  type World,
} from "./lineage-world.ts";

/** Changes of roles, and the ends of sessions and processes: each changes the world that it is given. */

/** The session is over, and what is in flight is dirty on the source as it was before. */
export function endSession(world: World): void {
  world.session = null;
  world.greeting = null;
}

/** The process dies. */
export function crash(world: World, index: SideIndex): void {
  const self = world.sides[index];
  endSession(world);
  self.up = false;
  self.held = false;
  self.told = self.record.committed.epoch;
  // While nobody is tracked, what was written is remembered in memory only.
  if (self.record.tracks === null) self.dirty = self.dirty.map(() => false);
}

/** Whether a promotion leaves the peer behind: what was only heard of counts where there is a checkpoint to go on from. */
function supersedes({ record: { lineage, history } }: Side, peer: Side, isNormal: boolean): boolean {
  const known = [lineage, ...history.ancestors, ...(isNormal ? history.heard : [])];
  return peer.record.lineage !== null && known.includes(peer.record.lineage);
}

export function promote(world: World, index: SideIndex, rules: Rules): void {
  const self = world.sides[index];
  const peer = world.sides[other(index)];
  const { pairing, tracks } = self.record;
  const isNormal = hasCheckpoint(self);
  const isTracked = isNormal && pairing !== null && (tracks === null || tracks === pairing.peer);
  const isSuperseded = peer.record.role === "Primary" && supersedes(self, peer, isNormal);
  endSession(world);
  const { view } = self;
  self.dirty = self.image.map((version, cluster) => {
    const isMarked = tracks !== null && self.dirty[cluster] === true;
    return isTracked && (isMarked || (rules.marksRolledBack && view !== null && version !== view[cluster]));
  });
  if (view !== null) self.image = [...view];
  self.record = {
    ...rules.promoted(self.record, nextId(world, "L"), isNormal),
    tracks: isTracked ? pairing.peer : null,
    prepared: [],
  };
  self.told = self.record.committed.epoch;
  self.view = null;
  self.prepared = null;
  self.retained = null;
  self.held = false;
  self.truth = { ...self.truth, alone: false, ownState: false, whole: true, givenUp: false, rolledBack: false };
  if (isSuperseded) peer.truth.superseded = true;
  // What a primary acknowledged under a history that its peer had heard of is lost with a promotion there.
  if (isSuperseded && isNormal) peer.truth.alone = false;
  if (!isNormal) world.forced = true;
}

/** A primary becomes secondary. Only the operator's choice may lose what it has acknowledged alone. */
export function demote(world: World, index: SideIndex, isChosen: boolean, rules: Rules): void {
  const self = world.sides[index];
  assert(!self.truth.alone || isChosen, "what was acknowledged alone is lost with the role");
  endSession(world);
  self.record = rules.demoted(self.record, { epoch: nextNumber(world), atMs: 0 }, isChosen);
  if (self.record.tracks === null) self.dirty = self.dirty.map(() => false);
  self.view = [...self.image];
  self.prepared = null;
  self.held = false;
  self.truth = {
    ...self.truth,
    alone: false,
    superseded: false,
    behind: false,
    gaveAway: false,
    ownState: true,
    whole: true,
    givenUp: isChosen,
  };
}

/** A copy of the world, changed. */
export function changed(world: World, change: (copy: World) => void): World {
  const copy = copyWorld(world);
  change(copy);
  return copy;
}
