import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { bufferedBytes } from "./buffered-bytes.ts";
import { urlOf, type PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";

/**
 * The removal of a file is as volatile as what is written: a loss of power may bring it back, with what was durable of it. What
 * an overlay has lost its meaning for must not come back where it would mean something again.
 */
const CLUSTER = 4096;
/** How many of the removals a loss of power keeps is up to chance. */
const SEEDS = Array.from({ length: 12 }, (_, index) => index + 1);
const COMMAND = { timeoutMs: 60_000 } as const;
/** As of many gigabytes. */
const REMOVAL_MS = 8_000;

const anySignal = (): AbortSignal => new AbortController().signal;

async function restart(scripted: ScriptedPair, member: PairMember): Promise<void> {
  member.host.disk.faults.clear();
  member.host.restart();
  assert(await scripted.do("a start", () => member.start()));
}

/** Writes over all of the first disk, twice: what comes second is newer than what lay in overlays. */
const overwrite = (scripted: ScriptedPair, by: PairMember): Promise<unknown> =>
  scripted.do("a write", () => scripted.guestWrite(0, 0, 10 * CLUSTER, "bytes", { by }));

/** The next files of that name that the member removes stay: one of each disk. */
function failRemovals({ host }: PairMember, name: string): void {
  host.disk.faults.inject({
    op: ["remove", "removeBehind"],
    path: (path) => path.includes(name),
    error: "io-error",
    times: 2,
  });
}

/** Everything that the primary has sent is stable on the other side. */
const untilStable = (scripted: ScriptedPair): Promise<void> =>
  scripted.until("everything to be stable", () => scripted.pair.primary.status?.peers[0]?.lagBytes === 0);

describe("an active disk", () => {
  it.each([
    ["that a commit has removed", false],
    ["that a commit could not remove", true],
  ] as const)("%s does not come back behind a rollback to its checkpoint", async (_, fails) => {
    for (const seed of SEEDS) {
      const scripted = new ScriptedPair(seed, "power", { retain: 2 });
      const { primary, secondary } = scripted.pair;
      await scripted.start();
      const target = secondary.status?.epoch.committed ?? 0;
      await scripted.do("a write of the view", () => scripted.viewWrite(1, 0, 4 * CLUSTER));
      await scripted.do("a flush of the view", () => scripted.flushView(1));
      if (fails) failRemovals(secondary, "/active.");
      await scripted.do("a checkpoint", () => scripted.checkpoint());
      await scripted.until("its overlays are freed", () => secondary.status?.disks.every(isFreed) === true);
      secondary.host.disk.faults.clear();
      primary.host.crash("process");
      await scripted.until("the loss", () => secondary.status?.peers[0]?.connection === "Connecting");
      await scripted.do("a rollback", () => scripted.rollBack(target));
      secondary.host.crash("power");
      expect(await scripted.restartSecondary()).toBe(target);
    }
  });
});

function isFreed({ activeBytes }: { readonly activeBytes: number }): boolean {
  return activeBytes === 0;
}

async function giveUp(scripted: ScriptedPair): Promise<void> {
  const { pair, model } = scripted;
  await scripted.do("its checkpoint is given up", async () => {
    model.checkpointGivenUp();
    await pair.secondary.agent?.resync({ giveUpCheckpoint: true, ...COMMAND }, anySignal());
  });
}

describe("a block buffer's log", () => {
  it("that was applied when its checkpoint was given up does not come back over what the base has taken since", async () => {
    for (const seed of SEEDS) {
      const scripted = new ScriptedPair(seed, "power", { mode: "mc" });
      const { primary, secondary } = scripted.pair;
      await scripted.start();
      await overwrite(scripted, primary);
      await untilStable(scripted);
      await giveUp(scripted);
      await overwrite(scripted, primary);
      await untilStable(scripted);
      secondary.host.crash("power");
      await restart(scripted, secondary);
      await scripted.checkEnd();
    }
  });

  it("that was applied at the beginning of a session does not come back over what the base has taken since", async () => {
    for (const seed of SEEDS) {
      const scripted = new ScriptedPair(seed, "power", { mode: "mc" });
      const { primary, secondary } = scripted.pair;
      await scripted.start();
      await overwrite(scripted, primary);
      await untilStable(scripted);
      primary.host.crash("process");
      await giveUp(scripted);
      secondary.host.crash("process");
      await restart(scripted, secondary);
      await restart(scripted, primary);
      await scripted.do("the sync", () => scripted.wait("synced"));
      await overwrite(scripted, primary);
      await untilStable(scripted);
      secondary.host.crash("power");
      await restart(scripted, secondary);
      await scripted.checkEnd();
    }
  });

  it.each([
    ["its removal is lost with the power", false],
    ["it could not be removed behind the merge", true],
  ] as const)("that a merge has put into the base means nothing once that side is Secondary: %s", async (_, fails) => {
    for (const seed of SEEDS) {
      const scripted = new ScriptedPair(seed, "power", { mode: "mc", retain: 2 });
      const { primary, secondary } = scripted.pair;
      await scripted.start();
      await overwrite(scripted, primary);
      await scripted.do("a checkpoint", () => scripted.checkpoint());
      expect(bufferedBytes(secondary)).toBeGreaterThan(0);
      if (fails) failRemovals(secondary, "/buffer.");
      const [disk] = scripted.disks;
      assert(disk !== undefined);
      const newest = Buffer.alloc(disk.sizeBytes, 1);
      // From here on the model, which follows one primary, is of no use.
      scripted.model.requested = () => undefined;
      await scripted.switchOver();
      await scripted.do("the way back", async () => {
        for (const condition of ["merged", "synced"] as const) {
          await secondary.agent?.wait({ condition, ...COMMAND }, anySignal());
        }
        await secondary.device(disk)?.write(newest, 0, { fua: true });
        await secondary.agent?.switchover({ closeClients: false, ...COMMAND }, anySignal());
      });
      await scripted.until("the other role", () => secondary.status?.role === "Secondary");
      primary.host.crash("process");
      secondary.host.crash("power");
      await restart(scripted, secondary);
      const shown = Buffer.alloc(disk.sizeBytes);
      await scripted.do("the view", async () => secondary.device(disk)?.read(shown, 0));
      expect(shown.equals(newest), `seed ${seed}`).toBe(true);
    }
  });

  it("is removed before that side keeps others of the same names as Secondary", async () => {
    for (const seed of SEEDS) {
      const mode = seed % 2 === 0 ? "colo" : "mc";
      const storage = { removeMs: [REMOVAL_MS, REMOVAL_MS] } as const;
      const scripted = new ScriptedPair(seed, "process", { mode, retain: 2, storage });
      const { primary, secondary } = scripted.pair;
      await scripted.start();
      await overwrite(scripted, primary);
      await untilStable(scripted);
      const [disk] = scripted.disks;
      assert(disk !== undefined);
      const committed = Buffer.alloc(disk.sizeBytes, 1);
      scripted.model.requested = () => undefined;
      primary.host.crash("process");
      await scripted.until("the loss", () => secondary.status?.peers[0]?.connection === "Connecting");
      await scripted.do("a failover", async () => {
        const request = { force: false, dryRun: false, discardActive: false, fenced: false, ...COMMAND };
        await secondary.agent?.failover(request, anySignal());
      });
      await restart(scripted, primary);
      await scripted.do("the way back, while its overlays are removed", async () => {
        await primary.agent?.rejoin({ peer: urlOf(secondary.name), ...COMMAND }, anySignal());
        await secondary.agent?.wait({ condition: "synced", ...COMMAND }, anySignal());
        await secondary.device(disk)?.write(committed, 0, { fua: true });
        await secondary.agent?.switchover({ closeClients: false, ...COMMAND }, anySignal());
      });
      await scripted.until("the other role", () => secondary.status?.role === "Secondary");
      await scripted.do("what comes behind its checkpoint", async () => {
        await primary.agent?.wait({ condition: "synced", ...COMMAND }, anySignal());
        assert(await scripted.checkpoint());
        await primary.device(disk)?.write(Buffer.alloc(disk.sizeBytes, 2), 0, { fua: true });
      });
      await untilStable(scripted);
      await scripted.world.run({ forMs: 4 * REMOVAL_MS });
      primary.host.crash("process");
      secondary.host.crash("process");
      await restart(scripted, secondary);
      const shown = Buffer.alloc(disk.sizeBytes);
      await scripted.do("the view", async () => secondary.device(disk)?.read(shown, 0));
      expect(shown.equals(committed), `seed ${seed}, mode ${mode}`).toBe(true);
    }
  });
});
