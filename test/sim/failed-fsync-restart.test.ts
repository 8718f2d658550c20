import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { MergeJournal } from "../../secondary/merge-journal.ts";
import { ClusterBitmap } from "../../shared/block/cluster-bitmap.ts";
import { clusterGeometry } from "../../shared/block/cluster-geometry.ts";
import type { Outcome } from "./calls.ts";
import { imagePath, type PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import { SimWorld } from "./world.ts";

/**
 * An fsync fails, its client is told, and the process dies. The page cache still shows what the device does not have, and
 * the next fsync would succeed without it. So the next process must not tell a client that what it had written is safe.
 */
const CLUSTER = 4096;
const WHILE_MS = 15_000;

function pass(scripted: ScriptedPair): Promise<void> {
  return scripted.do("some time", () => scripted.world.sleep(WHILE_MS));
}

async function protectedPair(seed = 1): Promise<ScriptedPair> {
  const scripted = new ScriptedPair(seed, "power");
  await scripted.start();
  return scripted;
}

/** Dies, and is started again. */
async function restart(scripted: ScriptedPair, member: PairMember, kind: "process" | "power"): Promise<void> {
  member.host.crash(kind);
  member.host.disk.faults.clear();
  member.host.restart();
  assert(await scripted.do("a start", () => member.start()));
}

function told(outcome: Outcome<unknown>): string {
  return outcome.kind === "failed" ? outcome.error.code : outcome.kind;
}

const flushView = async (scripted: ScriptedPair): Promise<string> =>
  told(await scripted.do("a flush of the view", () => scripted.flushView(1)));

const flushGuest = async (scripted: ScriptedPair, by: PairMember): Promise<string> =>
  told(await scripted.do("a guest's flush", () => scripted.guestFlush(0, by)));

describe("a failed fsync, and then the end of the process,", () => {
  it("of an active disk makes every flush fail until a commit empties it", async () => {
    const scripted = await protectedPair();
    const { secondary } = scripted.pair;
    await scripted.do("a write of the view", () => scripted.viewWrite(1, 3 * CLUSTER, 500));
    secondary.host.disk.faults.inject({ op: "sync", kind: "active-data", error: "io-error" });
    expect(await flushView(scripted)).toBe("io-error");
    await restart(scripted, secondary, "process");
    expect(await flushView(scripted)).toBe("io-error");
    await restart(scripted, secondary, "process");
    expect(await flushView(scripted)).toBe("io-error");
    await scripted.checkRecovery();
    expect(await flushView(scripted)).toBe("done");
    await scripted.do("a write of the view", () => scripted.viewWrite(1, 3 * CLUSTER, 500));
    await restart(scripted, secondary, "process");
    expect(await flushView(scripted)).toBe("done");
  });

  it("of an active disk is over with the power of its host: what is left is what every reader sees", async () => {
    const scripted = await protectedPair();
    const { secondary } = scripted.pair;
    await scripted.do("a write of the view", () => scripted.viewWrite(1, 3 * CLUSTER, 500));
    secondary.host.disk.faults.inject({ op: "sync", kind: "active-data", error: "io-error" });
    expect(await flushView(scripted)).toBe("io-error");
    scripted.model.view[1]?.crashed("power");
    await restart(scripted, secondary, "power");
    expect(await flushView(scripted)).toBe("done");
    await scripted.checkRecovery();
  });

  it("of a primary's image makes every flush fail, and its disk Failed, until it is the secondary's to write", async () => {
    const scripted = await protectedPair();
    const { primary, secondary } = scripted.pair;
    await scripted.do("a write", () => scripted.guestWrite(0, 0, CLUSTER, "bytes"));
    primary.host.disk.faults.inject({
      op: "sync",
      kind: "image",
      path: imagePath({ name: "vda", sizeBytes: 0 }),
      error: "io-error",
    });
    expect(await flushGuest(scripted, primary)).toBe("io-error");
    await restart(scripted, primary, "process");
    await scripted.do("the next session", () => scripted.wait("synced"));
    // Before any client has flushed.
    expect(primary.agent?.status().disks.map(({ state }) => state)).toEqual(["Failed", "UpToDate"]);
    expect(await flushGuest(scripted, primary)).toBe("io-error");
    // Nothing is settled over it: what the image may lack stays dirty, and no later process takes the copies for equal.
    await pass(scripted);
    expect(primary.agent?.status().protection.reason).toBe("disk-failed");
    await scripted.switchOver();
    const signal = new AbortController().signal;
    await scripted.do("the next sync", async () => {
      await secondary.agent?.wait({ condition: "synced", timeoutMs: 60_000 }, signal);
      await secondary.agent?.checkpoint({ prepare: false, timeoutMs: 60_000 }, signal);
    });
    // Back again: the image was written anew.
    await scripted.do("the way back", async () => {
      await secondary.agent?.wait({ condition: "merged", timeoutMs: 60_000 }, signal);
      await secondary.agent?.switchover({ closeClients: false, timeoutMs: 60_000 }, signal);
    });
    await scripted.do("the sync", () => scripted.wait("synced"));
    expect(await flushGuest(scripted, primary)).toBe("done");
    await restart(scripted, primary, "process");
    await scripted.do("the next session", () => scripted.wait("synced"));
    expect(await flushGuest(scripted, primary)).toBe("done");
  });

  it.each([
    ["fail", false, "io-error"],
    ["succeed, where what it covered was written again, and flushed, before", true, "done"],
  ] as const)("of an image behind a server makes flushes %s", async (_, isMended, later) => {
    const scripted = new ScriptedPair(1, "power", { servesImages: true });
    await scripted.start();
    const { primary } = scripted.pair;
    const flush = (): Promise<string> => flushGuest(scripted, primary);
    await scripted.do("a write", () => scripted.guestWrite(0, 0, CLUSTER, "bytes"));
    expect(await flush()).toBe("done");
    await scripted.do("a write", () => scripted.guestWrite(0, CLUSTER, CLUSTER, "bytes"));
    primary.host.disk.faults.inject({
      op: "sync",
      kind: "image",
      path: imagePath({ name: "vda", sizeBytes: 0 }),
      error: "io-error",
    });
    expect(await flush()).toBe("io-error");
    if (isMended) {
      primary.host.disk.faults.clear();
      expect(await flush()).toBe("done");
    }
    await restart(scripted, primary, "process");
    await scripted.do("the next session", () => scripted.wait("synced"));
    expect(await flush()).toBe(later);
    expect(primary.agent?.status().disks.map(({ state }) => state)).toEqual([
      isMended ? "UpToDate" : "Failed",
      "UpToDate",
    ]);
  });

  it("during a merge makes the guest's flushes fail, and not those after a loss of power", async () => {
    for (const seed of [1, 2, 3]) {
      const scripted = await protectedPair(seed);
      const { primary, secondary } = scripted.pair;
      await scripted.fillOverlays();
      primary.host.crash("power");
      await scripted.do("the failover", () => scripted.failOver());
      secondary.host.disk.faults.inject({
        op: "sync",
        kind: "image",
        path: imagePath({ name: "vda", sizeBytes: 0 }),
        error: "io-error",
      });
      await scripted.do("a write", () => scripted.guestWrite(0, 0, 3 * CLUSTER, "bytes", { by: secondary }));
      expect(await flushGuest(scripted, secondary)).toBe("io-error");
      await restart(scripted, secondary, "process");
      expect(await flushGuest(scripted, secondary)).toBe("io-error");
      await pass(scripted);
      expect(secondary.agent?.status().jobs.at(-1)?.state).toBe("concluded");
      expect(await flushGuest(scripted, secondary)).toBe("io-error");
      await restart(scripted, secondary, "power");
      expect(await flushGuest(scripted, secondary)).toBe("done");
    }
  });
});

/** What a loss of power leaves of a merge's journal, which the process before it has read from the page cache, and synced. */
async function mergedAfter(seed: number): Promise<{ believed: boolean; left: boolean }> {
  const world = new SimWorld(seed);
  const host = world.host("b");
  host.disk.addDirectory("/overlays");
  const open = (): { journal: MergeJournal; merged: ClusterBitmap } => {
    const merged = new ClusterBitmap();
    const geometry = clusterGeometry(1024 * CLUSTER, CLUSTER);
    const { storage, random } = host.process;
    const context = { storage, random, directory: "/overlays", geometry, durability: "power" } as const;
    return { journal: new MergeJournal(context, 1, merged), merged };
  };
  const run = async (work: () => Promise<void>): Promise<void> => {
    let isOver = false;
    world.schedule(0, () => {
      void work().finally(() => {
        isOver = true;
      });
    });
    await world.run({ until: () => isOver });
  };
  await run(async () => {
    const { journal } = open();
    journal.append(0, 1);
    await journal.sync();
    journal.append(7, 8);
    host.disk.faults.inject({ op: "sync", error: "io-error" });
    await journal.sync().catch(() => undefined);
  });
  host.crash("process");
  host.restart();
  let believed = false;
  await run(async () => {
    const { journal, merged } = open();
    believed = merged.has(7);
    await journal.sync();
  });
  host.crash("power");
  host.restart();
  return { believed, left: open().merged.has(7) };
}

describe("the journal of a merge", () => {
  it("has after a loss of power what a process has believed, and synced, that found it in the page cache", async () => {
    for (let seed = 1; seed <= 40; seed += 1) {
      const { believed, left } = await mergedAfter(seed);
      expect(believed).toBe(true);
      expect(left, `seed ${seed}`).toBe(true);
    }
  });
});
