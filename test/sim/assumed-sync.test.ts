import { describe, expect, it } from "vitest";
import { imagePath } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import type { Survival } from "./sim-disk.ts";
import { putBack } from "./state-backup.ts";

/**
 * An operator vouches that the images of the two are identical (`--assume-in-sync`), and the option stays on the primary's
 * command line. It is about the first sync: whoever comes blank later gets everything.
 */
const VOUCHED = { assumeInSync: true } as const;

/** No content survives a loss of power that was not fsynced. */
const NOTHING_UNSYNCED: Survival = {
  keptNames: (directory) => directory.unsyncedCount,
  losePower: (inode) =>
    inode.losePowerKeeping(() => ({ keepsWhole: false, keepsSector: () => false, keepsSize: false })),
};

async function writeAll(scripted: ScriptedPair): Promise<void> {
  for (const [index, { sizeBytes }] of scripted.disks.entries()) {
    for (let offset = 0; offset + 4096 <= sizeBytes; offset += 2 * 4096) {
      expect((await scripted.guestWrite(index, offset, 4096, "bytes")).kind).toBe("done");
    }
  }
}

/** Whether the secondary has told that it holds everything. */
function isStable({ pair }: ScriptedPair): boolean {
  const peer = pair.primary.agent?.status().peers[0];
  return peer?.replication === "Established" && peer.lagBytes === 0;
}

/** A protected pair whose secondary has died, after guests had written. */
async function lostSecondary(options: ConstructorParameters<typeof ScriptedPair>[2]): Promise<ScriptedPair> {
  const scripted = new ScriptedPair(1, "power", options);
  await scripted.start();
  await scripted.do("writes", () => writeAll(scripted));
  await scripted.do("a checkpoint", () => scripted.checkpoint());
  await scripted.do("writes of the next epoch", () => writeAll(scripted));
  await scripted.until("everything to be there", () => isStable(scripted));
  await loseSecondary(scripted);
  return scripted;
}

async function loseSecondary(scripted: ScriptedPair): Promise<void> {
  const { primary, secondary } = scripted.pair;
  secondary.host.crash("process");
  await scripted.until("the loss", () => primary.agent?.status().peers[0]?.connection === "Connecting");
}

/** Another agent starts in the secondary's place, with an empty state directory. */
async function replace(scripted: ScriptedPair, images: "kept" | "empty"): Promise<void> {
  const { secondary } = scripted.pair;
  const { disk } = secondary.host;
  putBack(disk, new Map());
  if (images === "empty") {
    for (const one of scripted.disks) {
      disk.remove(imagePath(one));
      disk.addFile(imagePath(one), one.sizeBytes);
    }
  }
  secondary.host.restart();
  expect(await scripted.do("the start of another agent", () => secondary.start())).toBe(true);
}

describe("images that an operator vouches for", () => {
  it("are not sent in the first sync, but what guests have written before it", async () => {
    const scripted = new ScriptedPair(1, "power", VOUCHED);
    const { primary, secondary } = scripted.pair;
    const [image = ""] = scripted.disks.map(imagePath);
    secondary.host.disk.corrupt(image, 8 * 4096);
    await scripted.do("the primary alone", () => primary.start());
    expect((await scripted.do("a write", () => scripted.guestWrite(0, 0, 4096, "bytes"))).kind).toBe("done");
    await scripted.do("the first session", async () => {
      await secondary.start();
      await scripted.wait("committed");
    });
    const [here, there] = [primary, secondary].map(({ host }) => host.disk.readFile(image));
    secondary.host.disk.corrupt(image, 8 * 4096);
    expect(there?.equals(here ?? Buffer.alloc(0))).toBe(false);
    expect(secondary.host.disk.readFile(image)).toEqual(here);
  });

  it("are not those of an empty secondary that takes the place of one that is lost", async () => {
    const scripted = await lostSecondary(VOUCHED);
    await replace(scripted, "empty");
    await scripted.checkRecovery();
  });

  it("are not those of a secondary that has lost its state directory, and with it what was not in its images", async () => {
    const scripted = await lostSecondary({ ...VOUCHED, mode: "mc" });
    await replace(scripted, "kept");
    await scripted.checkRecovery();
  });

  it("are not vouched for by a primary that starts again: what it wrote before its first session is in no bitmap", async () => {
    const scripted = new ScriptedPair(1, "power", VOUCHED);
    const { primary, secondary } = scripted.pair;
    await scripted.do("the primary alone", () => primary.start());
    await scripted.do("writes", () => writeAll(scripted));
    primary.host.crash("process");
    primary.host.restart();
    await scripted.do("both", async () => {
      await primary.start();
      await secondary.start();
      await scripted.wait("synced");
    });
    await scripted.checkRecovery();
  });

  it("are not those of a secondary that has lost its power in the first sync, and with it what it had taken", async () => {
    const scripted = new ScriptedPair(1, "process", { ...VOUCHED, storage: { syncMs: [200, 200] } });
    const { primary, secondary } = scripted.pair;
    await scripted.do("the primary alone", () => primary.start());
    await scripted.do("writes", () => writeAll(scripted));
    await scripted.do("the secondary", () => secondary.start());
    await scripted.until("everything to be there", () => isStable(scripted));
    expect(secondary.agent?.status().epoch.committed).toBe(0);
    secondary.host.crash("power", NOTHING_UNSYNCED);
    await scripted.until("the loss", () => primary.agent?.status().peers[0]?.connection === "Connecting");
    await scripted.restartSecondary();
    await scripted.checkRecovery();
  });

  it("are not images that are made for the session", async () => {
    const scripted = new ScriptedPair(1, "power", { ...VOUCHED, createImages: true });
    await scripted.start();
    await scripted.checkRecovery();
  });

  it("are not those of a peer that comes after this side was Secondary, and is Primary again", async () => {
    const scripted = new ScriptedPair(1, "power", VOUCHED);
    const { primary, secondary } = scripted.pair;
    await scripted.start();
    await scripted.switchOver();
    await scripted.do("the way back", async () => {
      const { signal } = new AbortController();
      await secondary.agent?.wait({ condition: "synced", timeoutMs: 60_000 }, signal);
      await secondary.agent?.switchover({ closeClients: false, timeoutMs: 60_000 }, signal);
      await scripted.wait("synced");
    });
    expect(primary.role).toBe("Primary");
    await loseSecondary(scripted);
    await replace(scripted, "empty");
    await scripted.checkRecovery();
  });
});
