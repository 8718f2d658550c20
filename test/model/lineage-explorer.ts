import { keyOf } from "./lineage-key.ts";
import { OWN_STEPS, settled } from "./lineage-liveness.ts";
import { INTERVENTIONS } from "./lineage-operator.ts";
import type { Event, Rules, World } from "./lineage-world.ts";

export interface Explored {
  readonly states: number;
  /** How many interventions deep every sequence was followed; `isWhole`: more of them lead to no other state. */
  readonly depth: number;
  readonly isWhole: boolean;
  /** A sequence of events with the fewest interventions that breaks a promise, and which promise. */
  readonly failure:
    | { readonly events: readonly string[]; readonly interventions: number; readonly message: string }
    | undefined;
}

/** A state, and how it was come to. */
interface Reached {
  readonly world: World;
  readonly event: string;
  readonly from: Reached | undefined;
}

/**
 * Every sequence of up to `depthMax` interventions (what guests, operators and faults do), with the pair's own steps
 * between them in any number and order. Breadth first by interventions. Each state that is reached has to settle.
 */
export function explore(rules: Rules, begin: World, depthMax: number): Explored {
  const seen = new Set<string>([keyOf(begin)]);
  const settles = settled(rules);
  let level: Reached[] = [{ world: begin, event: "", from: undefined }];
  for (let depth = 0; depth <= depthMax; depth += 1) {
    const following: Reached[] = [];
    const follow = (from: Reached, event: Event, into: Reached[]): Explored | undefined => {
      const path = { event: event.name, from };
      const trail: string[] = [];
      try {
        const world = event.apply(from.world, rules);
        if (world === undefined) return undefined;
        const key = keyOf(world);
        if (seen.has(key)) return undefined;
        seen.add(key);
        into.push({ world, ...path });
        settles(world, key, trail);
        return undefined;
      } catch (error) {
        const message = error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error);
        const interventions = depth + (into === following ? 1 : 0);
        const failure = { events: [...pathOf({ world: from.world, ...path }), ...trail], interventions, message };
        return { states: seen.size, depth, isWhole: false, failure };
      }
    };
    // The level grows by the pair's own steps while it is gone through.
    for (const from of level) {
      for (const event of OWN_STEPS) {
        const failed = follow(from, event, level);
        if (failed !== undefined) return failed;
      }
    }
    if (depth === depthMax) break;
    for (const from of level) {
      for (const event of INTERVENTIONS) {
        const failed = follow(from, event, following);
        if (failed !== undefined) return failed;
      }
    }
    if (following.length === 0) return { states: seen.size, depth, isWhole: true, failure: undefined };
    level = following;
  }
  return { states: seen.size, depth: depthMax, isWhole: false, failure: undefined };
}

function pathOf(reached: Reached): string[] {
  const path: string[] = [];
  for (let at: Reached | undefined = reached; at?.from !== undefined; at = at.from) path.unshift(at.event);
  return path;
}
