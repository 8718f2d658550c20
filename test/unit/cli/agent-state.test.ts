import { dirname } from "node:path";
import { describe, expect, it } from "vitest";
import type { AgentConfig } from "../../../cli/agent-config.ts";
import { mayHaveLostSyncs, openAgentState, started } from "../../../cli/agent-state.ts";
import { DISK_MAX_CLUSTERS } from "../../../proto/limits.ts";
import type { StateRecord } from "../../../proto/state-record.ts";
import { FileImages } from "../../../shared/block/file-images.ts";
import { StateFile } from "../../../shared/journal/state-file.ts";
import { SeededRandom } from "../../sim/seeded-random.ts";
import { SimRandom } from "../../sim/sim-random.ts";
import { turn, type MemoryStorage } from "../../support/memory-storage.ts";
import { seededStorage } from "../../support/overlay-bench.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { SilentLog } from "../../support/silent-log.ts";

const CONFIG: AgentConfig = {
  role: "Secondary",
  vm: "vm1",
  mode: "colo",
  stateDirectory: "/var/state",
  disks: [{ name: "vda", image: "/images/vda.img" }],
  peers: [],
  ack: "async",
  durability: "power",
  peerTimeoutMs: 1000,
  onPeerLoss: "continue",
  onCongestion: "throttle",
  resyncSpeed: "dynamic",
  windowBytes: 1_048_576,
  clusterBytes: 4096,
  extentBytes: 16_384,
  settleEveryMs: 5_000,
  secondaryExport: "off",
  retain: 0,
  createImages: false,
  assumeInSync: false,
  adoptImages: false,
};

/** What no fsync has covered is lost. */
const NOTHING = { keepsWhole: false, keepsSector: () => false, keepsSize: false };

/** A device that does not answer any more. */
const NEVER = new Promise<void>(() => {});

function storageWithImage(): MemoryStorage {
  const storage = seededStorage(1);
  storage.disk.addFile("/images/vda.img", 65_536);
  storage.disk.addDirectory("/var");
  return storage;
}

function open(
  storage: MemoryStorage,
  changes: Partial<AgentConfig> = {},
  log = new SilentLog(),
  bootId = "boot-1",
): Promise<StateFile> {
  const random = new SimRandom(new SeededRandom(1));
  const host = {
    storage,
    images: new FileImages(storage),
    random,
    bootId,
    log,
    clock: new ManualClock(),
  };
  return openAgentState(host, { ...CONFIG, ...changes });
}

describe("the agent's state", () => {
  it("begins with the configuration, and the images' sizes", async () => {
    const { record } = await open(storageWithImage());
    expect(record).toMatchObject({
      role: "Secondary",
      lineage: null,
      disks: [{ name: "vda", sizeBytes: 65_536 }],
      durability: "power",
      committed: { epoch: 0 },
    });
    expect(record.agentId).toMatch(/^[0-9a-f]{32}$/);
  });

  it("of a primary has a lineage from the beginning; each agent has an id of its own", async () => {
    const random = new SimRandom(new SeededRandom(1));
    const begin = (): Promise<StateFile> => {
      const storage = storageWithImage();
      const host = {
        storage,
        images: new FileImages(storage),
        random,
        bootId: "boot-1",
        log: new SilentLog(),
        clock: new ManualClock(),
      };
      return openAgentState(host, { ...CONFIG, role: "Primary" });
    };
    const one = await begin();
    const two = await begin();
    expect(one.record.lineage).toMatch(/^[0-9a-f]{32}$/);
    expect(one.record.agentId).not.toBe(two.record.agentId);
    expect(one.record.lineage).not.toBe(two.record.lineage);
  });

  it("wins over the command line's role, peers and replaced images, and says so", async () => {
    const storage = storageWithImage();
    const peers = ["ws://one:1", "ws://two:1"];
    const first = await open(storage, { peers });
    await first.update((record) => ({
      ...record,
      disks: record.disks.map((disk) => ({ ...disk, image: "/images/new.img", formerImage: disk.image })),
    }));
    await first.close();
    const recorded = [{ name: "vda", image: "/images/new.img" }];
    const former = CONFIG.disks;
    const warnings: (readonly [Partial<AgentConfig>, readonly unknown[]])[] = [
      [{ role: "Primary", disks: former }, [{ role: "Secondary", command: "Primary" }]],
      [{ peers: ["ws://one:1"], disks: former }, [{ peers, command: ["ws://one:1"] }]],
      [{ peers: ["ws://three:1", "ws://two:1"], disks: former }, [{ peers, command: ["ws://three:1", "ws://two:1"] }]],
      [{ peers: peers.toReversed(), disks: recorded }, []],
    ];
    for (const [changes, told] of warnings) {
      const log = new SilentLog();
      const state = await open(storage, changes, log);
      const { record } = state;
      await state.close();
      expect(record).toMatchObject({ role: "Secondary", peers, disks: recorded });
      const isFormer = changes.disks === former;
      const image = { disk: "vda", image: "/images/new.img", command: "/images/vda.img" };
      expect(log.lines.map(({ level, fields }) => ({ level, fields }))).toEqual(
        [...told, ...(isFormer ? [image] : [])].map((fields) => ({ level: "warn", fields })),
      );
    }
  });

  it("has images vouched for at a start that is the first to have the option, and says so where it is not", async () => {
    const storage = storageWithImage();
    const log = new SilentLog();
    const outcomes: (string | undefined)[] = [];
    for (const assumeInSync of [false, true, true, false, true]) {
      const state = await open(storage, { role: "Primary", assumeInSync }, log);
      outcomes.push(state.record.assumeInSync);
      await state.close();
    }
    expect(outcomes).toEqual([undefined, "counts", "spent", undefined, "counts"]);
    expect(log.lines.map(({ fields }) => fields)).toEqual([{ option: "assume-in-sync" }]);
    const fresh = await open(storageWithImage(), { role: "Primary", assumeInSync: true });
    expect(fresh.record.assumeInSync).toBe("counts");
    await fresh.close();
  });

  it("has none vouched for where something is still to be merged", async () => {
    const storage = storageWithImage();
    const state = await open(storage, { role: "Primary" });
    await state.update((record) => ({ ...record, merge: { epoch: 1, activeEpoch: 1 } }));
    await state.close();
    const again = await open(storage, { role: "Primary", assumeInSync: true });
    expect(again.record.assumeInSync).toBe("spent");
    await again.close();
  });

  it("survives a loss of power right after its creation, directories and all", async () => {
    for (let seed = 0; seed < 20; seed += 1) {
      const storage = seededStorage(seed);
      storage.disk.addFile("/images/vda.img", 65_536);
      storage.disk.addDirectory("/var");
      const { record } = await open(storage);
      storage.crash("power");
      expect(StateFile.open(storage, CONFIG.stateDirectory)?.record).toEqual(record);
      expect(storage.list(`${CONFIG.stateDirectory}/disks`)).toEqual(["vda"]);
    }
  });

  /** Starts an agent on a shared disk again, after a crash; returns which barriers count only when they were flushed. */
  async function unflushedAfterCrash(image: string, wasKilled: boolean): Promise<number> {
    const storage = storageWithImage();
    const shared = { role: "Primary", mode: "shared" } as const;
    const random = new SimRandom(new SeededRandom(1));
    const images = new FileImages(storage);
    images.measure = () => Promise.resolve(65_536);
    const start = (): Promise<StateFile> =>
      openAgentState(
        { storage, images, random, bootId: "boot-1", log: new SilentLog(), clock: new ManualClock() },
        { ...CONFIG, ...shared, disks: [{ name: "vda", image }] },
      );
    const first = await start();
    await first.update((record) => ({ ...record, epochReserved: 7 }));
    await first.close();
    images.haveLostWrites = () => Promise.resolve(wasKilled);
    return (await start()).record.unflushedThrough;
  }

  it("counts no barrier of a shared disk whose server was killed, before a flush, with the last process", async () => {
    expect(await unflushedAfterCrash("/images/vda.img", false)).toBe(0);
    expect(await unflushedAfterCrash("/images/vda.img", true)).toBe(7);
  });

  it("counts no barrier of a shared disk, before a flush, whose server nobody here knows anything of", async () => {
    expect(await unflushedAfterCrash("nbd://storage:10809/vda", false)).toBe(7);
  });

  it("is durable before anybody acts on it, even where the last process died before its fsync", async () => {
    for (let seed = 0; seed < 20; seed += 1) {
      const storage = seededStorage(seed);
      storage.disk.addFile("/images/vda.img", 65_536);
      storage.disk.addDirectory("/var");
      const state = await open(storage);
      storage.hold = () => NEVER;
      void state.update((record) => ({ ...record, committed: { epoch: 7, atMs: 0 } }));
      await turn();
      storage.crash("process");
      storage.hold = undefined;
      const { record } = await open(storage);
      expect(record.committed.epoch).toBe(7);
      storage.crash("power");
      expect(StateFile.open(storage, CONFIG.stateDirectory)?.record.committed.epoch).toBe(7);
    }
  });

  it.each([
    ["guests were told of what is not fsynced, and the host has lost its power", true, "boot-2", 0],
    ["guests were told of what is not fsynced, and the agent alone has died", true, "boot-1", 3],
    ["guests were told of what is fsynced, and the host has lost its power", false, "boot-2", 3],
  ] as const)("of a mirror has a state to return to, or not: %s", async (_, acksUnsynced, bootId, epoch) => {
    const storage = storageWithImage();
    const mirror = { ...CONFIG, mode: "mirror" } as const;
    const state = await open(storage, mirror);
    await state.update((record) => ({ ...record, acksUnsynced, committed: { epoch: 3, atMs: 1 } }));
    await state.close();
    const random = new SimRandom(new SeededRandom(2));
    const host = {
      storage,
      images: new FileImages(storage),
      random,
      clock: new ManualClock(),
      bootId,
      log: new SilentLog(),
    };
    expect((await openAgentState(host, mirror)).record.committed.epoch).toBe(epoch);
  });

  it.each<readonly [string, string, boolean, number]>([
    ["of the same boot", "boot-1", false, 1],
    ["of another boot", "boot-2", false, 0],
    ["of the same boot, when the images are adopted", "boot-1", true, 0],
  ])("knows of a failed fsync %s", async (_, bootId, adoptImages, count) => {
    const storage = storageWithImage();
    const first = await open(storage, { role: "Primary" });
    await first.update((record) => ({ ...record, lostSyncs: [{ disk: "vda", active: null }] }));
    await first.close();
    const images = new FileImages(storage);
    const host = {
      storage,
      images,
      random: new SimRandom(new SeededRandom(2)),
      bootId,
      log: new SilentLog(),
      clock: new ManualClock(),
    };
    const { record } = await openAgentState(host, { ...CONFIG, role: "Primary", adoptImages });
    expect(record.lostSyncs).toHaveLength(count);
  });

  it("keeps its role and peers, whatever the command line says, and takes its durability", async () => {
    const storage = storageWithImage();
    const first = await open(storage);
    await first.update((record) => ({ ...record, role: "Primary" }));
    await first.close();
    const { record } = await open(storage, { durability: "process" });
    expect(record).toMatchObject({ role: "Primary", durability: "process" });
  });

  /** What an agent with durability `process` has left when it was killed, and what it was about to promise. */
  async function leftUnsynced(
    role: "Primary" | "Secondary",
    changes: Partial<StateRecord> = {},
  ): Promise<{ storage: MemoryStorage; paths: string[] }> {
    const storage = storageWithImage();
    const state = await open(storage, { role, durability: "process" });
    const history = { lineage: "1".repeat(32), committed: { epoch: 3, atMs: 1 } };
    await state.update((record) => ({ ...record, ...history, ...changes }));
    const files = ["disks/vda/hidden.4.data", "disks/vda/peer-1/dirty.1.journal", "copies/vda.data/dirty.1.journal"];
    const inState = [...files, "bitmaps/1/dirty.1.journal", "vmstate/3.state"].map((name) => `/var/state/${name}`);
    for (const path of [...inState, "/images/vda.img"]) {
      storage.makeDirectory(dirname(path));
      const file = storage.open(path, { kind: "other", create: "if-missing" });
      file.write(Buffer.from("unsynced"), 0);
      file.close();
    }
    storage.crash("process");
    return { storage, paths: [...inState, "/images/vda.img"] };
  }

  it("promises what is fsynced only when all is that an agent which never did has left", async () => {
    for (const role of ["Primary", "Secondary"] as const) {
      const { storage, paths } = await leftUnsynced(role);
      const { record } = await open(storage, { durability: "power" });
      expect(record).toMatchObject({ durability: "power", committed: { epoch: 3 }, lostSyncs: [] });
      storage.disk.crash("power", { keptNames: () => 0, losePower: (inode) => inode.losePowerKeeping(() => NOTHING) });
      for (const path of paths) expect(storage.disk.readFile(path).subarray(0, 8).toString(), path).toBe("unsynced");
    }
  });

  it("also where an image's server has died, and nothing else of a promotion is merged yet", async () => {
    const { storage, paths } = await leftUnsynced("Primary", {
      replaysOwed: ["vda"],
      merge: { epoch: 3, activeEpoch: 3 },
    });
    const { record } = await open(storage, { durability: "power" });
    expect(record).toMatchObject({ durability: "power", tracks: null, pairing: null, merge: { activeEpoch: 3 } });
    storage.disk.crash("power", { keptNames: () => 0, losePower: (inode) => inode.losePowerKeeping(() => NOTHING) });
    for (const path of paths) expect(storage.disk.readFile(path).subarray(0, 8).toString(), path).toBe("unsynced");
  });

  it.each([
    ["an image", "/images/vda.img", null, [{ disk: "vda", active: null }]],
    ["a file beside the images", "/var/state/disks/vda/hidden.4.data", null, []],
    [
      "a served overlay",
      "/var/state/disks/vda/hidden.4.data",
      { epoch: 3, activeEpoch: 3 },
      [{ disk: "vda", active: null }],
    ],
  ] as const)("is suspect where that fails, once and for all: %s", async (_, path, merge, lostSyncs) => {
    for (const role of ["Primary", "Secondary"] as const) {
      const { storage } = await leftUnsynced(role, role === "Primary" ? { merge } : {});
      storage.disk.faults.inject({ op: "sync", path, error: "io-error" });
      const { record } = await open(storage, { durability: "power" });
      expect(record).toMatchObject({ durability: "power", tracks: null, pairing: null });
      if (role === "Secondary") expect(record).toMatchObject({ committed: { epoch: 0 }, lostSyncs: [] });
      else expect(record.lostSyncs).toEqual(lostSyncs);
    }
  });

  it("has copies beside the images made anew where a loss of power may have taken a part of one", async () => {
    const children = [
      { name: "local", image: null, sound: true, tracked: true, lostSync: false, cleanMark: null },
      { name: "b", image: "/images/b.img", sound: true, tracked: true, lostSync: false, cleanMark: null },
    ];
    const quorum = {
      children,
      voteThreshold: 1,
      readPattern: "fifo",
      rewriteCorrupted: false,
      blkverify: false,
    } as const;
    const storage = storageWithImage();
    const state = await open(storage, { role: "Primary", durability: "process" });
    await state.update((record) => ({
      ...record,
      bootId: "boot-0",
      disks: record.disks.map((disk) => ({ ...disk, quorum })),
    }));
    await state.close();
    const { record } = await open(storage, { durability: "process" });
    expect(record.disks[0]?.quorum?.children.map(({ tracked }) => tracked)).toEqual([false, false]);
  });

  it("promises nothing more before that was tried", async () => {
    const { storage } = await leftUnsynced("Secondary");
    let isUnderWay = false;
    storage.hold = (op, path) => {
      if (op !== "sync" || !path.endsWith(".data")) return undefined;
      isUnderWay = true;
      return NEVER;
    };
    void open(storage, { durability: "power" });
    while (!isUnderWay) await turn();
    storage.crash("process");
    storage.hold = undefined;
    expect(StateFile.open(storage, CONFIG.stateDirectory)?.record.durability).toBe("process");
  });

  /** What an agent with durability `power` has left; then starts with `process` that fail once the state is open. */
  async function failingStarts(
    mode: AgentConfig["mode"],
    boots: readonly string[],
  ): Promise<{ start: (changes: Partial<AgentConfig>, bootId: string) => Promise<StateFile> }> {
    const storage = storageWithImage();
    const start = (changes: Partial<AgentConfig>, bootId: string): Promise<StateFile> =>
      open(storage, { mode, ...changes }, new SilentLog(), bootId);
    const state = await start({}, "boot-1");
    const history = { lineage: "1".repeat(32), committed: { epoch: 3, atMs: 1 } };
    await state.update((record) => ({ ...record, ...history }));
    await state.close();
    for (const bootId of boots) await (await start({ durability: "process" }, bootId)).close();
    return { start };
  }

  it.each<readonly [string, AgentConfig["mode"], readonly string[], string, number]>([
    ["the host has lost its power before", "colo", ["boot-2"], "boot-2", 3],
    ["the host has booted once more", "colo", ["boot-2", "boot-2", "boot-3"], "boot-4", 3],
    ["the host has lost its power before, with a block buffer", "mc", ["boot-2", "boot-2"], "boot-2", 3],
    ["a block buffer may have been applied without an fsync", "mc", ["boot-2"], "boot-3", 0],
  ])(
    "that is to fsync no more goes by how it was left until a start succeeds: %s",
    async (_, mode, boots, next, epoch) => {
      for (const durability of ["process", "power"] as const) {
        const { start } = await failingStarts(mode, boots);
        const state = await start({ durability }, next);
        expect(state.record).toMatchObject({ durability, committed: { epoch } });
        const config = { ...CONFIG, mode, durability };
        await state.update((record) => started(record, { bootId: next }, config));
        await state.close();
        expect(state.record).not.toHaveProperty("loweredOn");
        const later = await start({ durability }, "boot-5");
        expect(later.record.committed.epoch).toBe(durability === "power" ? epoch : 0);
        await later.close();
      }
    },
  );

  it("that is to fsync no more knows of fsyncs that may have failed in the last process", async () => {
    const { start } = await failingStarts("colo", ["boot-1"]);
    const state = await start({ durability: "process" }, "boot-1");
    expect(mayHaveLostSyncs(state.record, "boot-1")).toBe(true);
    await state.close();
  });

  it.each<readonly [string, Partial<AgentConfig>, string]>([
    ["another VM", { vm: "vm2" }, "state-mismatch"],
    ["another mode", { mode: "mirror" }, "state-mismatch"],
    ["another cluster size", { clusterBytes: 65_536 }, "state-mismatch"],
    ["another disk", { disks: [{ name: "vdb", image: "/images/vda.img" }] }, "state-mismatch"],
    ["another image", { disks: [{ name: "vda", image: "/images/other.img" }] }, "image-changed"],
  ])("refuses %s than it records, and drops its lock", async (_, changes, code) => {
    const storage = storageWithImage();
    await (await open(storage)).close();
    await expect(open(storage, changes)).rejects.toMatchObject({ code });
    expect(storage.openPaths).toEqual([]);
  });

  /** A primary's, with something that an adoption would take away. */
  async function recorded(storage: MemoryStorage): Promise<StateRecord> {
    const state = await open(storage, { role: "Primary" });
    await state.update((record) => ({
      ...record,
      tracks: "0123456789abcdef0123456789abcdef",
      lostSyncs: [{ disk: "vda", active: null }],
    }));
    await state.close();
    return state.record;
  }

  it.each<readonly [string, Partial<AgentConfig>, string]>([
    ["another VM", { vm: "vm2" }, "state-mismatch"],
    ["another mode", { mode: "mirror" }, "state-mismatch"],
    ["another cluster size", { clusterBytes: 65_536 }, "state-mismatch"],
    ["a disk less", { disks: [{ name: "vdb", image: "/images/vda.img" }] }, "state-mismatch"],
    [
      "a disk more",
      {
        disks: [
          { name: "vda", image: "/images/vda.img" },
          { name: "vdb", image: "/images/huge.img" },
        ],
      },
      "state-mismatch",
    ],
    ["an image that is missing", { disks: [{ name: "vda", image: "/images/none.img" }] }, "image-missing"],
    ["an image of too many clusters", { disks: [{ name: "vda", image: "/images/huge.img" }] }, "usage"],
  ])("is as it was when a start that is to adopt is refused for %s", async (_, changes, code) => {
    const storage = storageWithImage();
    storage.disk.addFile("/images/huge.img", DISK_MAX_CLUSTERS * CONFIG.clusterBytes + 512);
    const before = await recorded(storage);
    await expect(open(storage, { role: "Primary", adoptImages: true, ...changes })).rejects.toMatchObject({ code });
    expect(storage.openPaths).toEqual([]);
    const state = StateFile.open(storage, CONFIG.stateDirectory);
    expect(state?.record).toEqual(before);
    await state?.close();
    const { record } = await open(storage, { role: "Primary", adoptImages: true });
    expect(record).toMatchObject({ tracks: null, lostSyncs: [] });
  });

  it.each<readonly [string, Partial<StateRecord>, string]>([
    ["a secondary", { role: "Secondary" }, "not-primary"],
    ["a primary that merges", { merge: { epoch: 1, activeEpoch: 2 } }, "merge-unfinished"],
  ])("adopts no images of %s", async (_, changes, code) => {
    const storage = storageWithImage();
    const state = await open(storage, { role: "Primary" });
    await state.update((record) => ({ ...record, ...changes }));
    await state.close();
    await expect(open(storage, { role: "Primary", adoptImages: true })).rejects.toMatchObject({ code });
    expect(storage.openPaths).toEqual([]);
  });

  it("adopts the image that a mirror has put in place of the one that the command line says", async () => {
    const storage = storageWithImage();
    storage.disk.addFile("/images/new.img", 131_072);
    const replaced = { name: "vda", image: "/images/new.img", formerImage: "/images/vda.img" };
    const state = await open(storage, { role: "Primary" });
    await state.update((record) => ({ ...record, disks: record.disks.map((disk) => ({ ...disk, ...replaced })) }));
    await state.close();
    for (const _ of ["the first start", "one that a service repeats"]) {
      const log = new SilentLog();
      const again = await open(storage, { role: "Primary", adoptImages: true }, log);
      await again.close();
      expect(again.record.disks).toMatchObject([{ ...replaced, sizeBytes: 131_072 }]);
      expect(log.lines.map(({ fields }) => fields)).toEqual([
        { disk: "vda", image: "/images/new.img", command: "/images/vda.img" },
      ]);
    }
    // The way back to the former one: the recorded one is named once.
    const named = await open(storage, { role: "Primary", disks: [{ name: "vda", image: "/images/new.img" }] });
    await named.close();
    expect(named.record.disks[0]).not.toHaveProperty("formerImage");
    const back = await open(storage, { role: "Primary", adoptImages: true });
    await back.close();
    expect(back.record.disks).toMatchObject([{ image: "/images/vda.img", sizeBytes: 65_536 }]);
  });

  it("is not begun with an image of too many clusters, and can be with larger ones", async () => {
    const storage = storageWithImage();
    const huge = DISK_MAX_CLUSTERS * CONFIG.clusterBytes + 512;
    storage.disk.addFile("/images/huge.img", huge);
    const disks = [{ name: "vda", image: "/images/huge.img" }];
    await expect(open(storage, { disks })).rejects.toMatchObject({
      code: "usage",
      action: expect.stringContaining("--cluster-size"),
    });
    const { record } = await open(storage, { disks, clusterBytes: 2 * CONFIG.clusterBytes });
    expect(record.disks[0]?.sizeBytes).toBe(huge);
  });

  it("is not begun with an image that is missing", async () => {
    const storage = storageWithImage();
    const disks = [{ name: "vda", image: "/images/none.img" }];
    await expect(open(storage, { disks })).rejects.toMatchObject({ code: "image-missing" });
    const { record } = await open(storage, { disks, createImages: true });
    expect(record.disks[0]?.sizeBytes).toBeNull();
  });

  it("is refused to a second agent", async () => {
    const storage = storageWithImage();
    await open(storage);
    await expect(open(storage)).rejects.toMatchObject({ code: "image-busy" });
  });
});
