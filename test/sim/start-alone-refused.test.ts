import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { ARBITER_PAIR_TTL_MS, startedArbiterPair } from "./arbiter-pair.ts";
import type { ScriptedPair } from "./scripted-pair.ts";
import type { SimArbiter } from "./sim-arbiter.ts";

/** A primary that was taken over from while it was cut off, and has learned of that from the arbiter alone. */
async function refused(): Promise<{ scripted: ScriptedPair; arbiter: SimArbiter }> {
  const { scripted, arbiter } = await startedArbiterPair();
  const { primary, secondary } = scripted.pair;
  scripted.world.network.partition("a", "b", true);
  arbiter.cut("a", true);
  await scripted.until("the takeover", () => secondary.role === "Primary");
  arbiter.cut("a", false);
  await scripted.until("the refusal", () => primary.status?.failover.arbiter?.state === "other");
  return { scripted, arbiter };
}

async function startAlone({ world, pair, ...scripted }: ScriptedPair, force = false): Promise<string> {
  const { agent } = pair.primary;
  assert(agent !== undefined);
  const outcome = await world.do("start-alone", () =>
    scripted.calls.make(pair.primary, "start-alone", ARBITER_PAIR_TTL_MS, () => agent.startAlone({ force })),
  );
  return outcome.kind === "failed" ? outcome.error.code : outcome.kind;
}

describe("start-alone on a primary that the arbiter's record refuses", () => {
  it("says that guests go on when the record is overwritten", async () => {
    const { scripted } = await refused();
    scripted.pair.secondary.host.crash("power");
    expect(await startAlone(scripted)).toBe("done");
    expect(scripted.pair.primary.status?.failover.arbiter?.state).toBe("own");
    const read = await scripted.do("a read", () => scripted.guestRead(0, 0, 512));
    expect(read.kind).toBe("done");
  });

  it("is done now or never: who serves keeps the lease when the arbiter is back", async () => {
    const { scripted, arbiter } = await refused();
    const { primary, secondary } = scripted.pair;
    arbiter.cut("a", true);
    expect(await startAlone(scripted)).toBe("arbiter-unreachable");
    scripted.world.network.partition("a", "b", false);
    await scripted.until("A to hear of it", () => primary.status?.protection.reason === "outdated");
    arbiter.cut("a", false);
    await scripted.world.run({ forMs: 3 * ARBITER_PAIR_TTL_MS });
    expect(secondary.status?.failover.arbiter?.state).toBe("own");
    expect(await startAlone(scripted)).toBe("outdated");
  });

  it("overwrites it by force only where the other side is known to have been written to as well", async () => {
    const { scripted } = await startedArbiterPair();
    const { primary, secondary } = scripted.pair;
    scripted.world.network.partition("a", "b", true);
    await scripted.until("the loss", () => primary.status?.peers[0]?.connection !== "Connected");
    expect((await scripted.do("a write", () => scripted.guestWrite(0, 0, 4096, "bytes"))).kind).toBe("done");
    expect((await scripted.do("the failover", () => scripted.failOver())).kind).toBe("done");
    await scripted.until("the refusal", () => primary.status?.failover.arbiter?.state === "other");
    scripted.world.network.partition("a", "b", false);
    await scripted.until("the split brain", () => primary.status?.peers[0]?.lastError?.code === "split-brain");
    expect(await startAlone(scripted)).toBe("split-brain");
    await scripted.world.run({ forMs: 3 * ARBITER_PAIR_TTL_MS });
    expect(secondary.status?.failover.arbiter?.state).toBe("own");
    expect(await startAlone(scripted, true)).toBe("done");
    expect(primary.status?.failover.arbiter?.state).toBe("own");
  });
});

/** A read of A's guest; whether it has been answered. */
function askRead({ pair, disks }: ScriptedPair): { readonly isDone: () => boolean } {
  let isDone = false;
  const [disk] = disks;
  assert(disk !== undefined);
  void pair.primary
    .device(disk)
    ?.read(Buffer.alloc(512), 0)
    ?.then(() => {
      isDone = true;
    });
  return { isDone: () => isDone };
}

/** What guests wait for, and what helps, is said by status and by what the operator is told. */
async function expectUnpermitted(scripted: ScriptedPair): Promise<void> {
  const { primary } = scripted.pair;
  expect(primary.status?.protection.reason).toBe("held");
  const read = askRead(scripted);
  for (const force of [false, true]) expect(await startAlone(scripted, force)).toBe("arbiter-unreachable");
  await scripted.world.run({ forMs: 3 * ARBITER_PAIR_TTL_MS });
  expect(read.isDone()).toBe(false);
  expect(primary.status?.protection.nextAction).toContain("without `--arbiter`");
  expect(primary.status?.protection.nextAction).not.toContain("`colobus start-alone`");
}

describe("start-alone on a primary that waits for the arbiter, and is not refused", () => {
  it("lets nobody go on who waits since the start", async () => {
    const { scripted, arbiter } = await startedArbiterPair();
    const { primary, secondary } = scripted.pair;
    secondary.host.crash("power");
    primary.host.crash("power");
    arbiter.stop(true);
    primary.host.restart();
    assert(await scripted.do("the start of A", () => primary.start()));
    await expectUnpermitted(scripted);
    arbiter.stop(false);
    await scripted.until("the lease", () => primary.status?.failover.arbiter?.state === "own");
    expect(await startAlone(scripted)).toBe("done");
    expect((await scripted.do("a read", () => scripted.guestRead(0, 0, 512))).kind).toBe("done");
  });

  it("does not say that nobody waits once the lease has run out", async () => {
    const { scripted, arbiter } = await startedArbiterPair();
    const { primary, secondary } = scripted.pair;
    secondary.host.crash("power");
    arbiter.stop(true);
    await scripted.until("the end of the lease", () => primary.status?.protection.reason === "held");
    await expectUnpermitted(scripted);
    arbiter.stop(false);
    await scripted.until("the lease", () => primary.status?.failover.arbiter?.state === "own");
    expect((await scripted.do("a read", () => scripted.guestRead(0, 0, 512))).kind).toBe("done");
  });

  it("waits for no arbiter beside a connected secondary", async () => {
    const { scripted, arbiter } = await startedArbiterPair();
    arbiter.stop(true);
    await scripted.world.run({ forMs: 3 * ARBITER_PAIR_TTL_MS });
    expect(await startAlone(scripted)).toBe("done");
    expect((await scripted.do("a read", () => scripted.guestRead(0, 0, 512))).kind).toBe("done");
  });
});
