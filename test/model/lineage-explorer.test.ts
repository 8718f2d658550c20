import { describe, expect, it } from "vitest";
import { canonical, connect, EVENTS, newWorld, RULES, step, type Rules, type World } from "./lineage-world.ts";

/**
 * Every sequence of events of two sides, up to a number of them (`COLOBUS_LINEAGE_DEPTH`): the verdict is the same on
 * both, no copy is called equal that is not, nothing that was acknowledged alone is lost without an operator's choice.
 */
const DEPTH = Number(process.env.COLOBUS_LINEAGE_DEPTH ?? 14);
const FIRST_STEPS = 20;
const LIMIT_MS = 600_000;

interface Found {
  readonly states: number;
  readonly depth: number;
  /** The shortest sequence of events that breaks a promise, and which. */
  readonly failure: { readonly events: readonly string[]; readonly message: string } | undefined;
}

/** The pair after its first sync and checkpoint. */
function protectedWorld(rules: Rules): World {
  let world = newWorld();
  for (const event of [connect, ...Array.from({ length: FIRST_STEPS }, () => step)]) {
    world = event.apply(world, rules) ?? world;
  }
  return world;
}

function explore(rules: Rules, begin: World, depthMax: number): Found {
  const seen = new Set<string>([canonical(begin)]);
  let level: { world: World; path: readonly string[] }[] = [{ world: begin, path: [] }];
  for (let depth = 0; depth < depthMax; depth += 1) {
    const following: typeof level = [];
    for (const { world, path } of level) {
      for (const event of EVENTS) {
        let after: World | undefined;
        try {
          after = event.apply(world, rules);
        } catch (error) {
          const message = error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error);
          return { states: seen.size, depth: depth + 1, failure: { events: [...path, event.name], message } };
        }
        if (after === undefined) continue;
        const key = canonical(after);
        if (seen.has(key)) continue;
        seen.add(key);
        following.push({ world: after, path: [...path, event.name] });
      }
    }
    level = following;
  }
  return { states: seen.size, depth: depthMax, failure: undefined };
}

describe("all sequences of events of two sides", () => {
  it(
    `keep every promise, up to ${DEPTH} of them`,
    () => {
      const fresh = explore(RULES, newWorld(), DEPTH);
      expect(fresh.failure).toBeUndefined();
      const { states, failure } = explore(RULES, protectedWorld(RULES), DEPTH);
      expect(failure).toBeUndefined();
      process.stdout.write(`${states} states of two sides, ${DEPTH} events deep\n`);
      expect(states).toBeGreaterThan(10_000);
    },
    LIMIT_MS,
  );

  it.each<readonly [string, Partial<Rules>, (rules: Rules) => World]>([
    ["a lineage is not begun alone", { goneAlone: (record) => record }, protectedWorld],
    ["what the target knows to differ is not taken over", { unites: false }, protectedWorld],
    ["a promotion does not mark what it rolls back", { marksRolledBack: false }, protectedWorld],
  ])(
    "break one when %s",
    (_, broken, begin) => {
      const rules = { ...RULES, ...broken };
      const { failure, states } = explore(rules, begin(rules), DEPTH);
      expect(failure, `not found in ${states} states`).toBeDefined();
      process.stdout.write(`${failure?.events.join(", ")}: ${failure?.message}\n`);
    },
    LIMIT_MS,
  );
});
