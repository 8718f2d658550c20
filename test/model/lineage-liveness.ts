import assert from "node:assert/strict";
import { refusalOf } from "../../shared/replication/refusal.ts";
import type { Verdict } from "../../shared/replication/verdict.ts";
import { keyOf } from "./lineage-key.ts";
import { discard, failover, forcedFailover, giveBlank, rejoin, STARTS } from "./lineage-operator.ts";
import { acknowledge, greet, judge, step } from "./lineage-session.ts";
import type { Event, Rules, World } from "./lineage-world.ts";

/** What the two do without anybody's doing. */
export const OWN_STEPS: readonly Event[] = [...STARTS, judge, acknowledge, step, greet];

/** Asks whether a state settles; `trail` takes the events on the way. Throws when a promise is broken there. */
export type Settles = (world: World, key: string, trail: string[]) => void;

/**
 * From every state, with both up, the network whole and nobody writing, the pair comes to be in sync by its own steps,
 * or to a verdict that names what an operator is to do; and when an operator does just that, and again where another
 * verdict follows, to be in sync in the end. A state that comes again on the way would come again for ever.
 */
export function settled(rules: Rules): Settles {
  const known = new Set<string>();
  return (begin, key, trail) => {
    const path = new Set<string>();
    let world: World | undefined = begin;
    for (let at = key; !known.has(at); at = keyOf(world)) {
      assert(!path.has(at), "the two go round in a circle for ever");
      path.add(at);
      world = next(world, rules, trail);
      if (world === undefined) break;
    }
    for (const passed of path) known.add(passed);
  };
}

/** Undefined where nothing is left to do. */
function next(world: World, rules: Rules, trail: string[]): World | undefined {
  const isToJudge = world.greeting !== null;
  for (const event of OWN_STEPS) {
    trail.push(event.name);
    const after = event.apply(world, rules);
    if (after === undefined) {
      trail.pop();
      continue;
    }
    const { verdict } = after;
    // Any other verdict would be drawn again and again.
    const isOver = isToJudge && verdict !== null && verdict.kind !== "sync" && verdict.kind !== "hand-over";
    return isOver ? act(after, verdict, rules, trail) : after;
  }
  return undefined;
}

/** Does what the two say that an operator is to do. */
function act(world: World, verdict: Verdict, rules: Rules, trail: string[]): World | undefined {
  for (const { record } of world.sides) {
    assert(refusalOf(verdict, record.agentId)?.action !== "", "a verdict names nothing to be done");
  }
  const named = actionsOf(world, verdict);
  for (const event of named) {
    trail.push(event.name);
    const after = event.apply(world, rules);
    if (after !== undefined) return after;
    trail.pop();
  }
  const nothingToServe = verdict.kind === "refused" && verdict.rule === "no-primary";
  assert(nothingToServe, `an operator cannot do what is said: ${named.map(({ name }) => name).join(", ")}`);
  return undefined;
}

function actionsOf(world: World, verdict: Verdict): Event[] {
  if (verdict.kind === "outdated") {
    return [rejoin(world.sides[0].record.agentId === verdict.agent ? 0 : 1)];
  }
  if (verdict.kind === "refused" && verdict.rule === "no-primary") {
    return [failover(0), failover(1), forcedFailover(0), forcedFailover(1)];
  }
  if (verdict.kind === "refused" && verdict.rule === "replaced-peer") {
    return [giveBlank(world.sides[0].record.role === "Secondary" ? 0 : 1)];
  }
  // Or a failover of the one that was rolled back, which is among what befalls them.
  return [discard(world.sides[0].record.role === "Secondary" ? 0 : 1)];
}
