import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { ColobusError } from "../../proto/errors.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import { SeededRandom } from "./seeded-random.ts";
import { SimArbiter } from "./sim-arbiter.ts";

const TTL_MS = 3_000;
const HOOK_MS = 2 * TTL_MS;

interface Failing {
  /** While the first hook runs, and its claim is to be put back. */
  readonly isArbiterCut: boolean;
  /** The second one of the secondary. */
  readonly isClaimLost: boolean;
}

/** A pair of a shared disk that is parted: the secondary takes over, and its hook runs for longer than its lease. */
async function failing({ isArbiterCut, isClaimLost }: Failing): Promise<ScriptedPair> {
  let arbiter: SimArbiter | undefined;
  let hooks = 0;
  let claims = 0;
  const scripted: ScriptedPair = new ScriptedPair(1, "process", (world) => {
    arbiter = new SimArbiter(world, new SeededRandom(1), TTL_MS);
    arbiter.losesClaim = (host) => host === "b" && ++claims === 2 && isClaimLost;
    return {
      mode: "shared",
      isMarked: true,
      ack: "applied",
      peerTimeoutMs: 1_000,
      arbiter: { service: arbiter, ttlMs: TTL_MS },
      fence: async () => {
        hooks += 1;
        if (isArbiterCut) arbiter?.cut("b", hooks === 1);
        await world.sleep(HOOK_MS);
        throw new ColobusError("fence-failed", "the hook has failed");
      },
    };
  });
  await scripted.start();
  assert(arbiter !== undefined);
  scripted.world.network.partition("a", "b", true);
  arbiter.cut("a", true);
  await scripted.until("the hook to run", () => hooks > 0);
  arbiter.cut("a", false);
  if (isArbiterCut) {
    await scripted.until(
      "the hook to have failed",
      () => scripted.pair.secondary.agent?.status().failover.arbiter?.state === "unreachable",
    );
    arbiter.cut("b", false);
  }
  return scripted;
}

describe("a takeover whose fence hook fails after its lease has run out", () => {
  it.each([
    [false, false],
    [true, false],
    [true, true],
  ])(
    "leaves the primary its right to serve; the arbiter was cut off meanwhile: %s; the next claim was lost: %s",
    async (isArbiterCut, isClaimLost) => {
      const scripted = await failing({ isArbiterCut, isClaimLost });
      const { primary } = scripted.pair;
      await scripted.until(
        "the primary to serve again",
        () => primary.agent?.status().failover.arbiter?.state === "own",
      );
      const outcome = await scripted.do("a read", () => scripted.guestRead(0, 0, 512));
      expect(outcome.kind).toBe("done");
    },
  );
});

describe("a takeover whose fence hook succeeds after its lease has run out", () => {
  it.each([false, true])("goes on unless the primary was back, and has served since: %s", async (isBack) => {
    let arbiter: SimArbiter | undefined;
    const hook = { runs: 0, ended: (): void => undefined };
    const scripted = new ScriptedPair(1, "process", (world) => {
      arbiter = new SimArbiter(world, new SeededRandom(1), TTL_MS);
      return {
        access: "read-only",
        peerTimeoutMs: 1_000,
        arbiter: { service: arbiter, ttlMs: TTL_MS },
        fence: () => {
          hook.runs += 1;
          return new Promise((resolve) => {
            hook.ended = resolve;
          });
        },
      };
    });
    await scripted.start();
    assert(arbiter !== undefined);
    const { world, pair } = scripted;
    const { primary, secondary } = pair;
    world.network.partition("a", "b", true);
    arbiter.cut("a", true);
    await scripted.until("the hook to run", () => hook.runs > 0);
    await world.run({ forMs: TTL_MS });
    if (isBack) {
      arbiter.cut("a", false);
      world.network.partition("a", "b", false);
      await scripted.until("the primary to serve", () => primary.status?.failover.arbiter?.state === "own");
      world.network.partition("a", "b", true);
      const written = await scripted.do("a write", () => scripted.guestWrite(0, 0, 512, "bytes"));
      expect(written.kind).toBe("done");
      await world.run({ forMs: 2 * TTL_MS });
    }
    primary.host.crash("power");
    hook.ended();
    await world.run({ forMs: TTL_MS });
    expect(secondary.role).toBe(isBack ? "Secondary" : "Primary");
    expect(hook.runs).toBe(1);
  });
});
