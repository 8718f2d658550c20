import assert from "node:assert/strict";
import * as fc from "fast-check";
import { it } from "vitest";
import { type RangeHold, RangeLock } from "../../shared/block/range-lock.ts";

const UNIVERSE = 24;

interface Request {
  readonly start: number;
  readonly end: number;
  state: "waiting" | "held" | "released";
  hold: RangeHold | undefined;
}

type Command =
  | { readonly do: "acquire" | "look"; readonly start: number; readonly length: number }
  | { readonly do: "release"; readonly pick: number };

const range = { start: fc.nat(UNIVERSE - 1), length: fc.integer({ min: 1, max: UNIVERSE }) };
const command: fc.Arbitrary<Command> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ do: fc.constant("acquire" as const), ...range }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("look" as const), ...range }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant("release" as const), pick: fc.nat() }) },
);

const overlap = (a: Request, b: Request): boolean => a.start < b.end && b.start < a.end;

/** What the lock must say: a request is held exactly when no earlier, unreleased request overlaps with it. */
function checkAll(requests: readonly Request[]): void {
  for (const [index, request] of requests.entries()) {
    if (request.state === "released") continue;
    const blocked = requests
      .slice(0, index)
      .some((earlier) => earlier.state !== "released" && overlap(earlier, request));
    assert.equal(request.state, blocked ? "waiting" : "held");
  }
}

it("holds exactly what no earlier request overlaps, and everything ends", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(command, { maxLength: 120 }), async (commands) => {
      const lock = new RangeLock();
      const requests: Request[] = [];
      const release = (pick: number): void => {
        const held = requests.filter((request) => request.state === "held");
        const chosen = held[pick % held.length];
        if (chosen?.hold === undefined) return;
        chosen.state = "released";
        lock.release(chosen.hold);
      };
      for (const step of commands) {
        if (step.do === "release") {
          release(step.pick);
        } else {
          const request: Request = {
            start: step.start,
            end: step.start + step.length,
            state: "waiting",
            hold: undefined,
          };
          const free = !requests.some((other) => other.state !== "released" && overlap(other, request));
          assert.equal(lock.overlaps(step.start, step.length), !free);
          if (step.do === "acquire") {
            const result = lock.acquire(step.start, step.length);
            requests.push(request);
            const grant = (hold: RangeHold): void => {
              assert.equal(request.state, "waiting");
              request.state = "held";
              request.hold = hold;
            };
            assert.equal(result instanceof Promise, !free);
            if (result instanceof Promise) void result.then(grant);
            else grant(result);
          }
        }
        // Grants arrive as microtasks.
        await Promise.resolve();
        checkAll(requests);
      }
      while (requests.some((request) => request.state !== "released")) {
        const before = requests.filter((request) => request.state === "released").length;
        release(0);
        await Promise.resolve();
        checkAll(requests);
        assert.equal(requests.filter((request) => request.state === "released").length, before + 1);
      }
      assert.equal(lock.overlaps(0, 2 * UNIVERSE), false);
    }),
    { numRuns: 300 },
  );
});
