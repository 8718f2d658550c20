import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import type { PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import { backUp, putBack } from "./state-backup.ts";

/**
 * A primary whose state directory is put back to what it was before its first session, while its image is not: by its
 * record it never had a peer, and its peer was promoted meanwhile. Neither may it serve before it has spoken to that
 * peer, nor may the two agree that it is merely behind once an operator has let its guests write.
 */
const WHILE_MS = 20_000;

function pass(scripted: ScriptedPair): Promise<void> {
  return scripted.do("some time", () => scripted.world.sleep(WHILE_MS));
}

function reasonOf(member: PairMember): string | null | undefined {
  return member.agent?.status().protection.reason;
}

/** The primary is up again on its old state, and cannot reach its peer, which is Primary now. */
async function putBackBehindPromotion(seed: number): Promise<ScriptedPair> {
  const scripted = new ScriptedPair(seed, "power");
  const { world, pair } = scripted;
  const { primary, secondary } = pair;
  world.network.partition("a", "b", true);
  assert(await scripted.do("the first start", () => primary.start()));
  expect(reasonOf(primary)).toBe("connecting");
  const before = backUp(primary.host.disk);
  world.network.partition("a", "b", false);
  await scripted.do("the first session", async () => {
    await secondary.start();
    await scripted.wait("committed");
  });
  primary.host.crash("process");
  expect((await scripted.do("the failover", () => scripted.failOver())).kind).toBe("done");
  world.network.partition("a", "b", true);
  putBack(primary.host.disk, before);
  primary.host.restart();
  assert(await scripted.do("the start on the old state", () => primary.start()));
  return scripted;
}

describe("a primary whose state was put back to before its first session", () => {
  it("holds its guests until it has spoken to its peer, and serves nothing after that", async () => {
    const scripted = await putBackBehindPromotion(1);
    const { primary } = scripted.pair;
    expect(reasonOf(primary)).toBe("held");
    expect(primary.agent?.status().protection.nextAction).toContain("put back");
    let answered = false;
    void primary
      .device({ name: "vda", sizeBytes: 0 })
      ?.read(Buffer.alloc(4096), 0)
      ?.then(
        () => {
          answered = true;
        },
        () => undefined,
      );
    await pass(scripted);
    expect(answered).toBe(false);
    scripted.world.network.partition("a", "b", false);
    await scripted.until("a verdict", () => reasonOf(primary) === "split-brain");
    const verdict = await scripted.do("a dry run", async () =>
      primary.agent?.connect({ dryRun: true, discardMyData: false, timeoutMs: 5_000 }, new AbortController().signal),
    );
    expect(verdict?.verdict).toMatchObject({ kind: "split-brain", rule: "put-back" });
    await pass(scripted);
    expect(answered).toBe(false);
  });

  it("loses nothing that its guests were told after `start-alone`, unless an operator says so", async () => {
    const scripted = await putBackBehindPromotion(2);
    const { primary, secondary } = scripted.pair;
    expect(await primary.agent?.startAlone({ force: false })).toEqual({ released: true });
    const written = await scripted.do("a write", () => scripted.guestWrite(0, 0, 4096, "bytes"));
    expect(written.kind).toBe("done");
    scripted.world.network.partition("a", "b", false);
    for (const member of [primary, secondary]) {
      await scripted.until("split brain", () => reasonOf(member) === "split-brain");
    }
    expect(primary.agent?.status().disks[0]?.state).toBe("UpToDate");
  });

  it("is the source of a full sync when its peer was not promoted, and lets its guests go", async () => {
    const scripted = new ScriptedPair(3, "power");
    const { world, pair } = scripted;
    world.network.partition("a", "b", true);
    assert(await scripted.do("the first start", () => pair.primary.start()));
    const before = backUp(pair.primary.host.disk);
    world.network.partition("a", "b", false);
    await scripted.do("the first session", async () => {
      await pair.secondary.start();
      await scripted.wait("committed");
    });
    pair.primary.host.crash("process");
    putBack(pair.primary.host.disk, before);
    pair.primary.host.restart();
    assert(await scripted.do("the start on the old state", () => pair.primary.start()));
    await scripted.checkRecovery();
  });
});
