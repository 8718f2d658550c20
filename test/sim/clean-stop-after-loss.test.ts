import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import type { PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import type { FaultRule } from "./storage-faults.ts";

/**
 * An fsync fails on the secondary: the page cache shows what the medium lacks, and later fsyncs succeed. Until the primary has
 * sent it again, nothing that ends the process, in good order or not, may have the next one take what it sees for what there is.
 */
const CLUSTER = 4096;
/** A failed fsync leaves on the medium what chance will have. */
const SEEDS = [1, 2, 3, 4, 5, 6];
/** A dead session is found out by the first checkpoint at the latest. */
const ATTEMPTS_MAX = 3;
const DRAIN_MS = 1_000;

interface Loss {
  readonly options: ConstructorParameters<typeof ScriptedPair>[2];
  readonly fault: Pick<FaultRule, "kind">;
}

const LOSSES: readonly (readonly [string, Loss])[] = [
  ["the base", { options: { retain: 2 }, fault: { kind: "image" } }],
  ["a block buffer's log", { options: { mode: "mc", retain: 2 }, fault: { kind: "buffer-log" } }],
];

async function restart(scripted: ScriptedPair, member: PairMember): Promise<void> {
  member.host.crash("process");
  member.host.disk.faults.clear();
  member.host.restart();
  assert(await scripted.do("a start", () => member.start()));
}

async function stopCleanly(scripted: ScriptedPair): Promise<void> {
  const { secondary } = scripted.pair;
  await scripted.do("a clean stop", () => secondary.stop(DRAIN_MS));
  await restart(scripted, secondary);
}

/** A pair whose secondary has just lost a part of what came after its last checkpoint, and has no session since. */
async function lossy(seed: number, { options, fault }: Loss): Promise<ScriptedPair> {
  const scripted = new ScriptedPair(seed, "power", options);
  await scripted.start();
  await scripted.do("a checkpoint", () => scripted.checkpoint());
  scripted.pair.secondary.host.disk.faults.inject({ op: "sync", ...fault, error: "io-error" });
  await scripted.do("writes", () => scripted.guestWrite(0, 0, 8 * CLUSTER, "bytes"));
  await scripted.do("writes", () => scripted.guestWrite(1, 0, 8 * CLUSTER, "bytes"));
  await scripted.until("the loss", () => scripted.pair.secondary.status?.peers[0]?.connection === "Connecting");
  return scripted;
}

/** The pair comes together, commits, and the secondary loses its power: the checkpoint has to be whole. */
async function checkCommitted(scripted: ScriptedPair): Promise<void> {
  const { primary } = scripted.pair;
  if (primary.agent === undefined) await restart(scripted, primary);
  await scripted.do("a checkpoint", async () => {
    let isTaken = false;
    for (let attempt = 0; attempt < ATTEMPTS_MAX && !isTaken; attempt += 1) {
      await scripted.wait("synced");
      isTaken = await scripted.checkpoint();
    }
    assert(isTaken, "the pair can take no checkpoint");
  });
  scripted.pair.secondary.host.crash("power");
  expect(await scripted.restartSecondary()).toBe(scripted.model.committed);
  await scripted.checkEnd();
}

describe.each(LOSSES)("a failed fsync of %s", (_, loss) => {
  it("is made up for behind a clean stop", async () => {
    for (const seed of SEEDS) {
      const scripted = await lossy(seed, loss);
      await stopCleanly(scripted);
      await checkCommitted(scripted);
    }
  });

  it("is made up for behind a clean stop of another process, which no primary has spoken to", async () => {
    for (const seed of SEEDS) {
      const scripted = await lossy(seed, loss);
      scripted.pair.primary.host.crash("process");
      await restart(scripted, scripted.pair.secondary);
      await stopCleanly(scripted);
      await checkCommitted(scripted);
    }
  });

  it("is made up for behind a clean stop in the middle of the sync that was to do it", async () => {
    for (const seed of SEEDS) {
      const scripted = await lossy(seed, loss);
      const { secondary } = scripted.pair;
      await scripted.until("the next sync", () => secondary.status?.peers[0]?.replication === "SyncTarget");
      await stopCleanly(scripted);
      await checkCommitted(scripted);
    }
  });

  it("is made up for behind a rollback, and the end of the process", async () => {
    for (const seed of SEEDS) {
      const scripted = await lossy(seed, loss);
      const { primary, secondary } = scripted.pair;
      primary.host.crash("process");
      const target = secondary.status?.epoch.retained[0];
      assert(target !== undefined, "a checkpoint is retained");
      await scripted.do("a rollback", () => scripted.rollBack(target));
      await restart(scripted, secondary);
      await restart(scripted, primary);
      await scripted.undoRollback();
      await checkCommitted(scripted);
    }
  });
});

describe("a clean stop behind a death that no sync has followed", () => {
  it("leaves a mirror's state to return to, although its guests were told of what was not fsynced yet", async () => {
    for (const seed of SEEDS) {
      const scripted = new ScriptedPair(seed, "power", { mode: "mirror" });
      const { primary, secondary } = scripted.pair;
      await scripted.start();
      await scripted.do("writes", () => scripted.guestWrite(0, 0, 8 * CLUSTER, "bytes"));
      primary.host.crash("process");
      await restart(scripted, secondary);
      await stopCleanly(scripted);
      await scripted.do("a clean stop", () => secondary.stop(DRAIN_MS));
      secondary.host.crash("power");
      expect(await scripted.restartSecondary()).toBeGreaterThan(0);
    }
  });
});
