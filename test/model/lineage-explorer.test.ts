import { describe, expect, it } from "vitest";
import { BUGS } from "./lineage-bugs.ts";
import { explore } from "./lineage-explorer.ts";
import { protectedWorld } from "./lineage-session.ts";
import { newWorld, RULES } from "./lineage-world.ts";

/**
 * Every sequence of events of two sides, up to a number of interventions by guests, operators and faults
 * (`COLOBUS_LINEAGE_DEPTH`), with the pair's own durable steps between them: the verdict is the same on both, no copy is
 * called equal that is not, the only copy is never overwritten, nothing that was acknowledged alone is lost without an
 * operator's choice; and from everywhere the pair gets in sync again, by itself or by what its verdicts tell to do.
 */
const DEPTH = process.env.COLOBUS_LINEAGE_DEPTH;
const LIMIT_MS = 3_600_000;

describe("all sequences of events of two sides", () => {
  it.each([
    ["a protected pair", protectedWorld(RULES), 4],
    ["a protected pair of which one side is replaced", protectedWorld(RULES, { replacements: 1 }), 3],
    ["a protected pair of which one side may be put back to a backup", protectedWorld(RULES, { restores: 1 }), 3],
    ["a protected pair whose secondary may be rolled back", protectedWorld(RULES, { rollbacks: 1 }), 4],
    ["the same with a block buffer", protectedWorld(RULES, { rollbacks: 1, isBuffered: true }), 4],
    ["a new pair of which one side may be put back to a backup", newWorld({ restores: 1 }), 3],
    ["a new pair of which one side may be replaced", newWorld({ replacements: 1 }), 3],
  ] as const)(
    "keep every promise: %s",
    (name, begin, depth) => {
      const { states, failure } = explore(RULES, begin, Number(DEPTH ?? depth));
      expect(failure).toBeUndefined();
      process.stdout.write(`${name}: ${states} states, ${DEPTH ?? depth} interventions deep\n`);
      expect(states).toBeGreaterThan(5_000);
    },
    LIMIT_MS,
  );

  it.each(BUGS.map((bug) => [bug.name, bug] as const))(
    "break one when %s",
    (_, { broken, begin, promise, interventions }) => {
      const rules = { ...RULES, ...broken };
      const { failure, states } = explore(rules, begin(rules), interventions);
      expect(failure, `not found in ${states} states`).toMatchObject({ message: promise, interventions });
      process.stdout.write(`${failure?.events.join(", ")}: ${failure?.message}\n`);
    },
    LIMIT_MS,
  );
});
