import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import type { FailoverAnswer } from "../../proto/control-api.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import { SeededRandom } from "./seeded-random.ts";
import { SimArbiter } from "./sim-arbiter.ts";

/** What `failover --dry-run` says of the arbiter: what a failover would come to now, and nothing follows from it. */

const TTL_MS = 3_000;

interface Scene {
  readonly scripted: ScriptedPair;
  readonly arbiter: SimArbiter;
}

async function started(): Promise<Scene> {
  let arbiter: SimArbiter | undefined;
  const scripted = new ScriptedPair(1, "process", (world) => {
    arbiter = new SimArbiter(world, new SeededRandom(1), TTL_MS);
    return { access: "read-only", peerTimeoutMs: 1_000, arbiter: { service: arbiter, ttlMs: TTL_MS } };
  });
  assert(arbiter !== undefined);
  scripted.pair.secondary.reconfigure({ failover: "manual" });
  await scripted.start();
  return { scripted, arbiter };
}

/** The two have lost each other, and the secondary its promise. */
async function parted(): Promise<Scene> {
  const scene = await started();
  scene.scripted.world.network.partition("a", "b", true);
  await scene.scripted.world.run({ forMs: 2 * TTL_MS });
  return scene;
}

/** What the secondary says of the arbiter, or the code of its refusal. */
async function outlook({ scripted }: Scene, { force = false } = {}): Promise<FailoverAnswer["arbiter"] | string> {
  const { pair, calls } = scripted;
  const request = { force, dryRun: true, discardActive: false, timeoutMs: 60_000 };
  const outcome = await scripted.do("a dry run", () =>
    calls.make(pair.secondary, "failover --dry-run", 2 * TTL_MS, async () =>
      pair.secondary.agent?.failover(request, new AbortController().signal),
    ),
  );
  if (outcome.kind === "failed") return outcome.error.code;
  assert(outcome.kind === "done" && outcome.value?.dryRun === true);
  return outcome.value.arbiter;
}

describe("a failover that is only asked about, beside an arbiter", () => {
  it("would wait for the promise to a primary that was just lost, and then be let", async () => {
    const scene = await started();
    const { primary, secondary } = scene.scripted.pair;
    primary.host.crash("power");
    await scene.scripted.until("the loss", () => secondary.status?.peers[0]?.connection !== "Connected");
    const promised = await outlook(scene);
    assert(typeof promised === "object");
    expect(promised.outlook).toBe("promised");
    expect(promised.waitMs).toBeGreaterThan(0);
    expect(promised.waitMs).toBeLessThanOrEqual(TTL_MS);
    await scene.scripted.world.run({ forMs: 2 * TTL_MS });
    expect(await outlook(scene)).toEqual({ outlook: "granted", reason: null, waitMs: null });
    expect(secondary.status?.failover.arbiter?.state).toBe("free");
    expect((await scene.scripted.do("the failover", () => scene.scripted.failOver())).kind).toBe("done");
  });

  it("would wait for the lease of a primary that only the secondary does not hear, and overrule it by force", async () => {
    const scene = await parted();
    const { primary } = scene.scripted.pair;
    const reason = expect.stringContaining("has the lease") as string;
    expect(await outlook(scene)).toEqual({ outlook: "held", reason, waitMs: null });
    expect(await outlook(scene, { force: true })).toEqual({ outlook: "overruled", reason, waitMs: null });
    await scene.scripted.world.run({ forMs: 2 * TTL_MS });
    expect(primary.status?.failover.arbiter?.state).toBe("own");
  });

  it("would be refused where the primary has gone on alone, and overrule that by force", async () => {
    const scene = await parted();
    expect((await scene.scripted.do("a write", () => scene.scripted.guestWrite(0, 0, 4096, "bytes"))).kind).toBe(
      "done",
    );
    expect(await outlook(scene)).toBe("lease-refused");
    const reason = expect.stringContaining("without this side") as string;
    expect(await outlook(scene, { force: true })).toEqual({ outlook: "overruled", reason, waitMs: null });
  });

  it("would be refused at once while a promise binds as well", async () => {
    const scene = await started();
    const { world, pair } = scene.scripted;
    scene.scripted.world.network.partition("a", "b", true);
    await scene.scripted.until("the losses", () =>
      [pair.primary, pair.secondary].every(({ status }) => status?.peers[0]?.connection !== "Connected"),
    );
    const lostAtMs = world.nowMs;
    expect((await scene.scripted.do("a write", () => scene.scripted.guestWrite(0, 0, 4096, "bytes"))).kind).toBe(
      "done",
    );
    expect(await outlook(scene)).toBe("lease-refused");
    expect(world.nowMs - lostAtMs).toBeLessThan(TTL_MS / 2);
  });

  it("would not be told to one that does not answer, by force alone", async () => {
    const scene = await parted();
    scene.arbiter.stop(true);
    expect(await outlook(scene)).toBe("arbiter-unreachable");
    const reason = expect.stringContaining("has not answered") as string;
    expect(await outlook(scene, { force: true })).toEqual({ outlook: "untold", reason, waitMs: null });
  });
});
