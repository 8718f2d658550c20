import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../proto/errors.ts";
import type { StorageFile } from "../../../shared/host/storage.ts";
import type { HostOptions, SimHost } from "../../sim/sim-host.ts";
import { SimulatedCrash } from "../../sim/simulated-crash.ts";
import { SimWorld } from "../../sim/world.ts";

const KIB = 1024;
const OTHER = { kind: "other", create: "if-missing" } as const;

function setUp(seed = 1, options: HostOptions = {}): { world: SimWorld; host: SimHost } {
  const world = new SimWorld(seed);
  const host = world.host("a", options);
  host.disk.addDirectory("/d");
  return { world, host };
}

function codeOf(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    if (error instanceof ColobusError) return error.code;
    throw error;
  }
  return "none";
}

function contentOf(file: StorageFile): Buffer {
  const content = Buffer.alloc(file.sizeBytes());
  file.readNow(content, 0);
  return content;
}

describe("SimStorage: the contract of Storage", () => {
  it("opens by the three creation modes", () => {
    const { host } = setUp();
    const { storage } = host;
    expect(codeOf(() => storage.open("/d/f", { kind: "image", create: "never" }))).toBe("image-missing");
    expect(codeOf(() => storage.open("/d/f", { kind: "journal", create: "never" }))).toBe("not-found");
    expect(codeOf(() => storage.open("/no/f", OTHER))).toBe("not-found");
    storage.open("/d/f", { kind: "other", create: "new" }).close();
    expect(codeOf(() => storage.open("/d/f", { kind: "other", create: "new" }))).toBe("io-error");
    storage.open("/d/f", { kind: "other", create: "if-missing" }).close();
    storage.open("/d/f", { kind: "other", create: "never" }).close();
  });

  it("reads what was written, zeroes elsewhere, and fails behind the end", async () => {
    const { world, host } = setUp();
    const file = host.storage.open("/d/f", OTHER);
    file.write(Buffer.from("across the border of pages"), 4 * KIB - 10);
    expect(file.sizeBytes()).toBe(4 * KIB + 16);
    expect(
      contentOf(file)
        .subarray(4 * KIB - 10)
        .toString(),
    ).toBe("across the border of pages");
    expect(
      contentOf(file)
        .subarray(0, 4 * KIB - 10)
        .every((byte) => byte === 0),
    ).toBe(true);
    const target = Buffer.alloc(26);
    await world.runFor("read", file.read(target, 4 * KIB - 10));
    expect(target.toString()).toBe("across the border of pages");
    expect(codeOf(() => file.readNow(Buffer.alloc(2), 4 * KIB + 15))).toBe("io-error");
    expect(file.tryRead(Buffer.alloc(2), 4 * KIB + 15)).toBe(false);
    await expect(world.runFor("read", file.read(Buffer.alloc(2), 4 * KIB + 15))).rejects.toThrow(/ends before/);
  });

  it("sometimes answers tryRead with false, and spoils the target then", () => {
    const { host } = setUp(1, { storage: { coldProbability: 0.5 } });
    const file = host.storage.open("/d/f", OTHER);
    file.write(Buffer.alloc(100, 1), 0);
    const results = new Set<boolean>();
    for (let index = 0; index < 50; index++) {
      const target = Buffer.alloc(100);
      const done = file.tryRead(target, 0);
      results.add(done);
      expect(target.every((byte) => byte === 1)).toBe(done);
    }
    expect(results.size).toBe(2);
  });

  it("knows holes by pages of 4 KiB, and counts what is allocated", () => {
    const { host } = setUp();
    const file = host.storage.open("/d/f", OTHER);
    file.truncate(64 * KIB);
    expect([file.nextData(0), file.nextHole(0), file.allocatedBytes()]).toEqual([undefined, 0, 0]);
    file.write(Buffer.from("x"), 9 * KIB);
    file.write(Buffer.from("x"), 12 * KIB);
    expect([file.nextData(0), file.nextData(9 * KIB), file.nextHole(9 * KIB)]).toEqual([8 * KIB, 9 * KIB, 16 * KIB]);
    expect(file.allocatedBytes()).toBe(8 * KIB);
    void file.zero(8 * KIB, 4 * KIB);
    expect([file.nextData(0), file.allocatedBytes(), file.sizeBytes()]).toEqual([12 * KIB, 4 * KIB, 64 * KIB]);
    file.allocate(60 * KIB, 8 * KIB);
    expect([file.nextData(16 * KIB), file.allocatedBytes(), file.sizeBytes()]).toEqual([undefined, 12 * KIB, 68 * KIB]);
    void file.zeroAllocated(12 * KIB, 4 * KIB);
    expect([file.nextData(0), file.allocatedBytes()]).toEqual([undefined, 12 * KIB]);
    file.truncate(10 * KIB);
    file.truncate(20 * KIB);
    expect([file.nextHole(12 * KIB), file.allocatedBytes()]).toEqual([12 * KIB, 0]);
  });

  it("runs out of space where the space ends, and not where it is allocated", () => {
    const { host } = setUp();
    host.disk.capacityBytes = 16 * KIB;
    const file = host.storage.open("/d/f", OTHER);
    file.allocate(0, 8 * KIB);
    expect(host.storage.freeBytes("/d/f")).toBe(8 * KIB);
    expect(codeOf(() => file.allocate(8 * KIB, 12 * KIB))).toBe("out-of-space");
    expect(codeOf(() => file.write(Buffer.alloc(12 * KIB, 1), 8 * KIB))).toBe("out-of-space");
    expect(host.storage.freeBytes("/d")).toBe(0);
    file.write(Buffer.alloc(16 * KIB, 2), 0);
    expect(codeOf(() => file.zeroAllocated(16 * KIB, 1))).toBe("out-of-space");
    void file.zero(0, 4 * KIB);
    expect(host.storage.freeBytes("/d")).toBe(4 * KIB);
    host.storage.remove("/d/f");
    expect(host.storage.freeBytes("/d")).toBe(4 * KIB);
    file.close();
    expect(host.storage.freeBytes("/d")).toBe(16 * KIB);
  });

  it("locks a file for one opener, until that closes it or dies", () => {
    const { host } = setUp();
    const locked = { ...OTHER, lock: true };
    const file = host.storage.open("/d/f", locked);
    expect(codeOf(() => host.storage.open("/d/f", locked))).toBe("image-busy");
    host.storage.open("/d/f", OTHER).close();
    file.close();
    host.storage.open("/d/f", locked);
    host.crash("process");
    host.restart();
    host.storage.open("/d/f", locked).close();
  });

  it("lists, renames and removes names", async () => {
    const { world, host } = setUp();
    const { storage } = host;
    storage.makeDirectory("/d/e/f");
    for (const name of ["b", "a", "c"]) storage.open(`/d/e/${name}`, OTHER).close();
    const old = storage.open("/d/e/b", OTHER);
    old.write(Buffer.from("b"), 0);
    storage.rename("/d/e/b", "/d/e/c");
    expect(storage.list("/d/e")).toEqual(["a", "c", "f"]);
    expect(contentOf(storage.open("/d/e/c", OTHER)).toString()).toBe("b");
    storage.remove("/d/e/a");
    await expect(world.runFor("remove", storage.removeBehind("/d/e/a"))).rejects.toThrow(/ENOENT/);
    storage.open("/d/e/g", OTHER).close();
    await world.runFor("removeBehind", storage.removeBehind("/d/e/g"));
    expect([storage.exists("/d/e/a"), storage.exists("/d/e/g"), storage.exists("/d/e/c")]).toEqual([
      false,
      false,
      true,
    ]);
    expect(codeOf(() => storage.remove("/d/e/a"))).toBe("not-found");
    expect(codeOf(() => storage.list("/d/x"))).toBe("not-found");
  });
});

describe("SimStorage: crashes", () => {
  it("keeps everything that the kernel was handed when only the process dies", () => {
    for (let seed = 0; seed < 20; seed++) {
      const { host } = setUp(seed);
      host.storage.open("/d/f", OTHER).write(Buffer.alloc(5_000, 3), 100);
      host.crash("process");
      host.restart();
      const content = contentOf(host.storage.open("/d/f", { ...OTHER, create: "never" }));
      expect(content.length).toBe(5_100);
      expect(content.subarray(100).every((byte) => byte === 3)).toBe(true);
    }
  });

  it("loses nothing that was synced with the power, but over many seeds all, none and parts of what was not", async () => {
    const outcomes = new Set<string>();
    let torn = 0;
    for (let seed = 0; seed < 200; seed++) {
      const { world, host } = setUp(seed);
      host.disk.addFile("/d/f", 8 * KIB, Buffer.alloc(8 * KIB, 1));
      const file = host.storage.open("/d/f", OTHER);
      file.write(Buffer.alloc(4 * KIB, 2), 0);
      await world.runFor("sync", file.sync());
      file.write(Buffer.alloc(4 * KIB, 3), 4 * KIB);
      host.crash("power");
      host.restart();
      const content = contentOf(host.storage.open("/d/f", OTHER));
      expect(content.subarray(0, 4 * KIB).every((byte) => byte === 2)).toBe(true);
      const sectors = Array.from({ length: 8 }, (_, index) => content.subarray(4 * KIB + index * 512).subarray(0, 512));
      for (const sector of sectors) expect(sector.every((byte) => byte === sector[0])).toBe(true);
      const written = sectors.filter((sector) => sector[0] === 3).length;
      outcomes.add(written === 0 ? "none" : written === 8 ? "all" : "torn");
      if (written > 0 && written < 8) torn++;
    }
    expect([...outcomes].sort()).toEqual(["all", "none", "torn"]);
    expect(torn).toBeGreaterThan(20);
  });

  it("makes durable what was written before the call to sync, not what came after it", async () => {
    let lostLater = 0;
    for (let seed = 0; seed < 100; seed++) {
      const { world, host } = setUp(seed);
      host.disk.addFile("/d/f", 8 * KIB);
      const file = host.storage.open("/d/f", OTHER);
      file.write(Buffer.alloc(512, 1), 0);
      const synced = file.sync();
      file.write(Buffer.alloc(512, 2), 512);
      await world.runFor("sync", synced);
      host.crash("power");
      const content = host.disk.readFile("/d/f");
      expect(content[0]).toBe(1);
      if (content[512] === 0) lostLater++;
    }
    expect(lostLater).toBeGreaterThan(20);
    expect(lostLater).toBeLessThan(100);
  });

  it("leaves every sector at a version that it went through, however writes, zeroes and syncs are mixed", async () => {
    for (let seed = 0; seed < 60; seed++) {
      const { world, host } = setUp(seed);
      const sectorCount = 32;
      host.disk.addFile("/d/f", sectorCount * 512);
      const file = host.storage.open("/d/f", OTHER);
      const versions = Array.from({ length: sectorCount }, () => [Buffer.alloc(512).toString("latin1")]);
      const now = Buffer.alloc(sectorCount * 512);
      for (let step = 1; step <= 30; step++) {
        const offset = world.random.below(now.length);
        const length = 1 + world.random.below(Math.min(5_000, now.length - offset));
        if (world.random.chance(0.2)) {
          void file.zero(offset, length);
          now.fill(0, offset, offset + length);
        } else {
          file.write(Buffer.alloc(length, step), offset);
          now.fill(step, offset, offset + length);
        }
        for (const [index, seen] of versions.entries()) {
          const sector = now.subarray(index * 512, (index + 1) * 512).toString("latin1");
          if (seen.at(-1) !== sector) seen.push(sector);
        }
        if (world.random.chance(0.1)) {
          await world.runFor("sync", file.sync());
          for (const seen of versions) seen.splice(0, seen.length - 1);
        }
      }
      expect(contentOf(file).equals(now)).toBe(true);
      host.crash("power");
      const left = host.disk.readFile("/d/f");
      expect(left.length).toBe(sectorCount * 512);
      for (const [index, seen] of versions.entries()) {
        expect(seen).toContain(left.subarray(index * 512, (index + 1) * 512).toString("latin1"));
      }
    }
  });

  it("never shows content from before a truncation behind it, nor a size that the file never had", () => {
    const sizes = new Set<number>();
    for (let seed = 0; seed < 200; seed++) {
      const { host } = setUp(seed);
      host.disk.addFile("/d/f", 8 * KIB, Buffer.alloc(8 * KIB, 1));
      const file = host.storage.open("/d/f", OTHER);
      file.truncate(0);
      file.truncate(16 * KIB);
      file.write(Buffer.alloc(512, 2), 12 * KIB);
      host.crash("power");
      const content = host.disk.readFile("/d/f");
      sizes.add(content.length);
      const old = content.filter((byte) => byte === 1).length;
      expect(old).toBe(content.length === 8 * KIB ? 8 * KIB : 0);
    }
    expect([...sizes].sort((left, right) => left - right)).toEqual([0, 8 * KIB, 16 * KIB]);
  });

  it("keeps a prefix of the changes of names of each directory, and all that was synced", async () => {
    const outcomes = new Set<string>();
    for (let seed = 0; seed < 100; seed++) {
      const { world, host } = setUp(seed);
      const { storage } = host;
      host.disk.addFile("/d/old", 4, Buffer.from("old!"));
      storage.open("/d/synced", OTHER).close();
      await world.runFor("sync", storage.syncDirectory("/d"));
      storage.open("/d/one", OTHER).close();
      storage.remove("/d/old");
      storage.rename("/d/one", "/d/two");
      host.crash("power");
      const names = host.disk.directory("/d", "list").names;
      outcomes.add([...names.keys()].sort().join(" "));
      expect(names.has("old") ? host.disk.readFile("/d/old").toString() : "old!").toBe("old!");
    }
    expect([...outcomes].sort()).toEqual(["old one synced", "old synced", "one synced", "synced two"]);
  });

  it("counts the space anew after a loss of power", async () => {
    const { world, host } = setUp(3);
    const file = host.storage.open("/d/f", OTHER);
    file.write(Buffer.alloc(8 * KIB, 1), 0);
    await world.runFor("sync", file.sync());
    await world.runFor("sync", host.storage.syncDirectory("/d"));
    host.storage.open("/d/g", OTHER).write(Buffer.alloc(64 * KIB, 1), 0);
    host.crash("power");
    const pages = ["/d/f", "/d/g"].map((path) =>
      host.disk.find(path) === undefined ? 0 : host.disk.file(path).content.pageCount,
    );
    expect(host.disk.usedBytes).toBe(((pages[0] ?? 0) + (pages[1] ?? 0)) * 4 * KIB);
    expect(pages[0]).toBe(2);
  });

  it("dies at exactly the call that was named, and everything later is without effect", async () => {
    const lengths = new Set<number>();
    for (let seed = 0; seed < 60; seed++) {
      const { world, host } = setUp(seed);
      const { storage, clock } = host;
      const file = storage.open("/d/f", OTHER);
      const log: string[] = [];
      host.disk.faults.crashAt(3);
      clock.after(1, () => log.push("a timer of the dead"));
      void file.sync().then(() => log.push("a promise of the dead")); // call 1
      file.write(Buffer.alloc(KIB, 1), 0); // call 2
      expect(() => file.write(Buffer.alloc(2 * KIB, 2), KIB)).toThrow(SimulatedCrash); // call 3
      expect(host.alive).toBe(false);
      expect(() => file.write(Buffer.alloc(KIB, 9), 0)).toThrow(SimulatedCrash);
      expect(() => file.sync()).toThrow(SimulatedCrash);
      expect(() => file.close()).toThrow(SimulatedCrash);
      expect(() => storage.exists("/d/f")).toThrow(SimulatedCrash);
      clock.after(1, () => log.push("a new timer of the dead"));
      clock.defer(() => log.push("a deferred call of the dead"));
      await world.run();
      expect(log).toEqual([]);
      const content = host.disk.readFile("/d/f");
      lengths.add(content.length);
      expect(content.includes(9)).toBe(false);
      expect(content.subarray(0, KIB).every((byte) => byte === 1)).toBe(true);
      host.restart();
      host.storage.open("/d/f", OTHER).write(Buffer.from("alive"), 0);
    }
    expect([...lengths].sort((left, right) => left - right)).toEqual([1_024, 1_536, 2_048, 2_560, 3_072]);
  });

  it("lets code that dies inside an event reject as it likes", async () => {
    const { world, host } = setUp();
    const work = async (): Promise<void> => {
      try {
        host.storage.exists("/d");
      } finally {
        host.storage.remove("/d/never");
      }
    };
    host.disk.faults.inject({ op: "exists", crash: "power" });
    world.schedule(1, () => void work());
    expect(await world.run()).toBe("idle");
    expect([host.alive, host.isOff]).toEqual([false, true]);
  });
});

describe("SimStorage: faults", () => {
  it("hits the calls that a rule names, as often as it says", () => {
    const { host } = setUp();
    const journal = host.storage.open("/d/j", { kind: "journal", create: "new" });
    const other = host.storage.open("/d/o", OTHER);
    host.disk.faults.inject({ op: ["write", "zero"], kind: "journal", skip: 1, times: 2, error: "io-error" });
    const codes = [1, 2, 3, 4].map(() => codeOf(() => journal.write(Buffer.alloc(10), 0)));
    expect(codes).toEqual(["none", "io-error", "io-error", "none"]);
    expect(codeOf(() => other.write(Buffer.alloc(10), 0))).toBe("none");
    const undo = host.disk.faults.inject({ path: "/d/o", times: 100, error: "out-of-space" });
    expect(codeOf(() => other.allocate(0, 10))).toBe("out-of-space");
    undo();
    expect(codeOf(() => other.allocate(0, 10))).toBe("none");
  });

  it("asks the interceptor about every call", () => {
    const { host } = setUp();
    const seen: string[] = [];
    host.disk.faults.intercept = (call) => {
      seen.push(`${call.op} ${call.path} ${call.kind ?? "-"} ${call.offset} ${call.length}`);
      return call.op === "zero" ? { error: "io-error" } : undefined;
    };
    const file = host.storage.open("/d/f", OTHER);
    file.write(Buffer.alloc(3), 5);
    expect(codeOf(() => file.zero(0, 4))).toBe("io-error");
    expect(seen).toEqual(["open /d/f other 0 0", "write /d/f other 5 3", "zero /d/f other 0 4"]);
  });

  it("rejects a sync that fails, and keeps no promise for what was written before it", async () => {
    let lost = 0;
    for (let seed = 0; seed < 40; seed++) {
      const { world, host } = setUp(seed);
      host.disk.addFile("/d/f", 512);
      const file = host.storage.open("/d/f", OTHER);
      file.write(Buffer.alloc(512, 1), 0);
      host.disk.faults.inject({ op: "sync", error: "io-error" });
      await expect(world.runFor("sync", file.sync())).rejects.toThrow(/EIO/);
      await world.runFor("sync", file.sync());
      expect(contentOf(file)[0]).toBe(1);
      if (host.disk.readDurable("/d/f")[0] === 0) lost++;
    }
    expect(lost).toBeGreaterThan(5);
    expect(lost).toBeLessThan(40);
  });

  it("forks a disk that shares nothing that either side changes", async () => {
    const { world, host } = setUp(5);
    host.disk.addFile("/d/f", 8 * KIB, Buffer.alloc(8 * KIB, 1));
    const file = host.storage.open("/d/f", { ...OTHER, lock: true });
    file.write(Buffer.alloc(KIB, 2), 0);
    const fork = host.disk.fork();
    file.write(Buffer.alloc(KIB, 3), 0);
    const other = new SimWorld(9).host("b", { disk: fork });
    const forked = other.storage.open("/d/f", { ...OTHER, lock: true });
    forked.write(Buffer.alloc(KIB, 4), 4 * KIB);
    expect([contentOf(file)[0], contentOf(file)[4 * KIB]]).toEqual([3, 1]);
    expect([contentOf(forked)[0], contentOf(forked)[4 * KIB]]).toEqual([2, 4]);
    await world.runFor("sync", file.sync());
    other.crash("power");
    expect([1, 2]).toContain(fork.readFile("/d/f")[0]);
    expect(host.disk.readDurable("/d/f")[0]).toBe(3);
    fork.corrupt("/d/f", 7 * KIB);
    expect([fork.readFile("/d/f")[7 * KIB], contentOf(file)[7 * KIB]]).toEqual([0, 1]);
  });
});
