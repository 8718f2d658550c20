import { chmodSync, mkdirSync, readFileSync, statSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { AssertionError } from "node:assert/strict";
import { pbkdf2 } from "node:crypto";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { describe, expect, it, onTestFinished } from "vitest";
import { NodeStorage } from "../../../../shared/host/node-storage.ts";
import type { OpenOptions, StorageFile } from "../../../../shared/host/storage.ts";
import { scratchDirectory } from "../../../support/scratch.ts";

const KIB = 1024;
const storage = new NodeStorage();

function openScratch(options: Partial<OpenOptions> = {}): StorageFile {
  const file = storage.open(join(scratchDirectory(), "file"), { kind: "other", create: "if-missing", ...options });
  onTestFinished(() => {
    file.close();
  });
  return file;
}

function readAll(file: StorageFile, offset: number, length: number): Buffer {
  const target = Buffer.alloc(length, 0xee);
  file.readNow(target, offset);
  return target;
}

describe("a file", () => {
  it("reads back what was written, by all three ways of reading", async () => {
    const file = openScratch();
    const content = Buffer.from("the quick brown fox");
    file.write(content, 1000);
    expect(file.sizeBytes()).toBe(1019);

    const target = Buffer.alloc(content.length);
    expect(file.tryRead(target, 1000)).toBe(true);
    expect(target).toEqual(content);

    target.fill(0);
    await file.read(target, 1000);
    expect(target).toEqual(content);

    target.fill(0);
    file.readNow(target, 1000);
    expect(target).toEqual(content);
  });

  it("takes the bytes at the call: the source can be reused at once", () => {
    const file = openScratch();
    const source = Buffer.alloc(8 * KIB, 1);
    file.write(source, 0);
    source.fill(2);
    file.write(source.subarray(0, 1), 8 * KIB);
    expect(readAll(file, 0, 8 * KIB)).toEqual(Buffer.alloc(8 * KIB, 1));
  });

  it("reads and writes nothing in an empty range", async () => {
    const file = openScratch();
    file.write(Buffer.alloc(0), 10);
    void file.zero(0, 0);
    void file.zeroAllocated(0, 0);
    file.allocate(0, 0);
    file.readNow(Buffer.alloc(0), 0);
    await file.read(Buffer.alloc(0), 0);
    expect(file.tryRead(Buffer.alloc(0), 0)).toBe(true);
    expect(file.sizeBytes()).toBe(0);
  });

  it("is exact beyond 4 GiB and beyond 2 TiB", async () => {
    const file = openScratch();
    for (const offset of [2 ** 32 + 1, 2 ** 41 + 4095]) {
      const content = Buffer.from(`at ${offset}`);
      file.write(content, offset);
      expect(file.sizeBytes()).toBe(offset + content.length);
      expect(readAll(file, offset, content.length)).toEqual(content);
      const target = Buffer.alloc(content.length);
      await file.read(target, offset);
      expect(target).toEqual(content);
      void file.zero(offset + 1, content.length - 1);
      expect(readAll(file, offset, 3)).toEqual(Buffer.from([content[0] ?? 0, 0, 0]));
    }
    // Far offsets that were never written do not alias the near ones.
    expect(readAll(file, 1, 64)).toEqual(Buffer.alloc(64));
  });

  it("rejects a read beyond the end, naming path and offset, and leaves it to the caller to wait with tryRead", async () => {
    const file = openScratch();
    file.write(Buffer.alloc(100), 0);
    const expected = { code: "io-error", message: `cannot read 10 bytes at 95 of ${file.path}: the file ends at 100` };
    expect(file.tryRead(Buffer.alloc(10), 95)).toBe(false);
    await expect(file.read(Buffer.alloc(10), 95)).rejects.toMatchObject(expected);
    expect(() => file.readNow(Buffer.alloc(10), 95)).toThrow(expect.objectContaining(expected));
    await expect(file.read(Buffer.alloc(10), 2000)).rejects.toMatchObject({ code: "io-error" });
  });

  it("settles what was pending when it was closed, and closes the descriptor only then", async () => {
    const directory = scratchDirectory();
    const path = join(directory, "first");
    writeFileSync(path, Buffer.alloc(64 * KIB, 7));
    const file = storage.open(path, { kind: "other", create: "never" });
    // The pool's threads are kept busy, so that the calls below are still queued at the close.
    const busy = Array.from({ length: 16 }, () => promisify(pbkdf2)("", "", 20_000, 32, "sha512"));
    const targets = Array.from({ length: 32 }, () => Buffer.alloc(64 * KIB));
    const pending = targets.map((target) => file.read(target, 0));
    const syncing = file.sync();
    file.close();
    // These would get the descriptor's number if it were free already.
    const others = Array.from({ length: 4 }, (_, n) =>
      storage.open(join(directory, `other-${n}`), { kind: "other", create: "new" }),
    );
    for (const other of others) other.write(Buffer.alloc(64 * KIB, 9), 0);
    await Promise.all([...busy, ...pending, syncing]);
    for (const target of targets) expect(target.equals(Buffer.alloc(64 * KIB, 7))).toBe(true);
    for (const other of others) other.close();
  });

  it("calls any use after the close a bug", async () => {
    const file = storage.open(join(scratchDirectory(), "file"), { kind: "other", create: "new" });
    file.close();
    const byte = Buffer.alloc(1);
    const uses: (() => unknown)[] = [
      () => file.write(byte, 0),
      () => file.tryRead(byte, 0),
      () => file.readNow(byte, 0),
      () => file.zero(0, 1),
      () => file.zeroAllocated(0, 1),
      () => file.allocate(0, 1),
      () => file.truncate(1),
      () => file.nextData(0),
      () => file.nextHole(0),
      () => file.prefetch(0, 1),
      () => file.sizeBytes(),
      () => file.allocatedBytes(),
      () => file.close(),
    ];
    for (const use of uses) expect(use, use.toString()).toThrow(AssertionError);
    await expect(file.read(byte, 0)).rejects.toThrow(AssertionError);
    await expect(file.sync()).rejects.toThrow(AssertionError);
  });
});

describe("holes", () => {
  it("are found between data, and the end of the file counts as one", () => {
    const file = openScratch();
    file.truncate(1024 * KIB);
    expect(file.nextData(0)).toBeUndefined();
    expect(file.nextHole(0)).toBe(0);
    file.write(Buffer.alloc(64 * KIB, 1), 256 * KIB);
    expect(file.nextData(0)).toBe(256 * KIB);
    expect(file.nextData(300 * KIB)).toBe(300 * KIB);
    expect(file.nextHole(256 * KIB)).toBe(320 * KIB);
    expect(file.nextData(320 * KIB)).toBeUndefined();
    file.write(Buffer.alloc(4 * KIB, 1), 1020 * KIB);
    expect(file.nextHole(1020 * KIB)).toBe(1024 * KIB);
    expect(file.nextHole(1024 * KIB)).toBe(1024 * KIB);
    expect(file.nextData(1024 * KIB)).toBeUndefined();
  });

  it("are made by zero, which keeps the size and every byte around the range", () => {
    const file = openScratch();
    file.write(Buffer.alloc(256 * KIB, 1), 0);
    const before = file.allocatedBytes();
    expect(before).toBeGreaterThanOrEqual(256 * KIB);
    void file.zero(64 * KIB, 128 * KIB);
    expect(file.allocatedBytes()).toBeLessThanOrEqual(before - 128 * KIB);
    expect(file.sizeBytes()).toBe(256 * KIB);
    expect(file.nextHole(0)).toBe(64 * KIB);

    void file.zero(5, 3);
    const content = Buffer.alloc(256 * KIB, 1)
      .fill(0, 64 * KIB, 192 * KIB)
      .fill(0, 5, 8);
    expect(readAll(file, 0, 256 * KIB).equals(content)).toBe(true);
  });

  it("do not grow a file that the zeroed range reaches beyond", () => {
    const file = openScratch();
    file.write(Buffer.alloc(1000, 1), 0);
    void file.zero(500, 10_000);
    expect(file.sizeBytes()).toBe(1000);
    expect(readAll(file, 0, 1000)).toEqual(Buffer.alloc(1000, 1).fill(0, 500));
  });

  it("are filled by zeroAllocated", () => {
    const file = openScratch();
    file.truncate(1024 * KIB);
    file.write(Buffer.alloc(4 * KIB, 1), 128 * KIB);
    void file.zeroAllocated(64 * KIB, 512 * KIB);
    expect(file.allocatedBytes()).toBeGreaterThanOrEqual(512 * KIB);
    expect(file.sizeBytes()).toBe(1024 * KIB);
    expect(readAll(file, 0, 1024 * KIB).equals(Buffer.alloc(1024 * KIB))).toBe(true);
  });

  it("are filled by allocate, which changes no content and grows the file", () => {
    const file = openScratch();
    file.write(Buffer.from("kept"), 10);
    file.allocate(0, 256 * KIB);
    expect(file.sizeBytes()).toBe(256 * KIB);
    expect(file.allocatedBytes()).toBeGreaterThanOrEqual(256 * KIB);
    expect(readAll(file, 0, 20)).toEqual(Buffer.concat([Buffer.alloc(10), Buffer.from("kept"), Buffer.alloc(6)]));
  });
});

describe("opening", () => {
  it("creates files that only their owner can read", () => {
    const file = openScratch({ create: "new" });
    expect(statSync(file.path).mode & 0o777).toBe(0o600);
  });

  it("refuses a missing image with the command that makes one", () => {
    const path = join(scratchDirectory(), "vda.img");
    expect(() => storage.open(path, { kind: "image", create: "never" })).toThrow(
      expect.objectContaining({ code: "image-missing", action: expect.stringContaining(`truncate -s SIZE ${path}`) }),
    );
    expect(() => storage.open(path, { kind: "state", create: "never" })).toThrow(
      expect.objectContaining({ code: "not-found" }),
    );
    expect(storage.exists(path)).toBe(false);
  });

  it("refuses to make anew what exists, and leaves it as it is", () => {
    const path = join(scratchDirectory(), "file");
    writeFileSync(path, "precious");
    expect(() => storage.open(path, { kind: "state", create: "new" })).toThrow(
      expect.objectContaining({ code: "io-error", message: expect.stringContaining("EEXIST") }),
    );
    storage.open(path, { kind: "state", create: "if-missing" }).close();
    expect(readFileSync(path, "utf8")).toBe("precious");
  });

  it("names the missing directory of a new file", () => {
    const path = join(scratchDirectory(), "missing", "file");
    expect(() => storage.open(path, { kind: "image", create: "if-missing" })).toThrow(
      expect.objectContaining({ code: "not-found", message: expect.stringContaining(path) }),
    );
  });

  it("refuses what is neither file nor block device", () => {
    expect(() => storage.open("/dev/null", { kind: "image", create: "never" })).toThrow(
      expect.objectContaining({ code: "io-error", message: expect.stringContaining("neither") }),
    );
    expect(() => storage.open(scratchDirectory(), { kind: "image", create: "never" })).toThrow(
      expect.objectContaining({ code: "io-error", message: expect.stringContaining("EISDIR") }),
    );
  });

  it("opens what may not be written when only reading is asked for", () => {
    const path = join(scratchDirectory(), "file");
    writeFileSync(path, "read me");
    chmodSync(path, 0o400);
    const file = storage.open(path, { kind: "image", create: "never", readOnly: true, lock: true });
    expect(readAll(file, 0, 7).toString()).toBe("read me");
    expect(() => file.write(Buffer.alloc(1), 0)).toThrow(AssertionError);
    file.close();
  });
});

describe("directories", () => {
  it("list their names in order", () => {
    const directory = scratchDirectory();
    for (const name of ["b", "c", "a"]) writeFileSync(join(directory, name), "");
    expect(storage.list(directory)).toEqual(["a", "b", "c"]);
    expect(() => storage.list(join(directory, "missing"))).toThrow(expect.objectContaining({ code: "not-found" }));
  });

  it("are made with their parents, and left alone when they exist", () => {
    const path = join(scratchDirectory(), "a", "b");
    storage.makeDirectory(path);
    writeFileSync(join(path, "file"), "");
    storage.makeDirectory(path);
    expect(storage.list(path)).toEqual(["file"]);
    expect(statSync(path).mode & 0o777).toBe(0o700);
  });

  it.each([
    ["a file", "file", "file", "io-error"],
    ["below a file", "file/x/y", "file", "io-error"],
    ["a link to nothing", "link", "link", "io-error"],
    ["below a link to nothing", "link/x", "link", "io-error"],
    // Node's recursive `mkdir` never returns from there.
    ["where none can be made", "/proc/colobus/x", "/proc/colobus", "not-found"],
  ])("are refused, naming what is in the way: %s", (_what, path, named, code) => {
    const directory = scratchDirectory();
    writeFileSync(join(directory, "file"), "");
    symlinkSync(join(directory, "missing"), join(directory, "link"));
    const message = expect.stringContaining(`${resolve(directory, named)}: `) as string;
    expect(() => storage.makeDirectory(resolve(directory, path))).toThrow(expect.objectContaining({ code, message }));
  });

  it("lose and rename names, and say so when there are none", async () => {
    const directory = scratchDirectory();
    const [a, b] = [join(directory, "a"), join(directory, "b")];
    writeFileSync(a, "A");
    writeFileSync(b, "B");
    storage.rename(a, b);
    await storage.syncDirectory(directory);
    expect(readFileSync(b, "utf8")).toBe("A");
    storage.remove(b);
    expect(storage.exists(b)).toBe(false);
    expect(() => storage.remove(b)).toThrow(expect.objectContaining({ code: "not-found" }));
    await expect(storage.removeBehind(b)).rejects.toMatchObject({ code: "not-found" });
    expect(() => storage.rename(a, b)).toThrow(expect.objectContaining({ code: "not-found" }));
    await expect(storage.syncDirectory(a)).rejects.toMatchObject({ code: "not-found" });
    writeFileSync(a, "A");
    await storage.removeBehind(a);
    expect(storage.exists(a)).toBe(false);
  });

  it("get a new name where nothing has it", () => {
    const directory = scratchDirectory();
    const [a, b] = [join(directory, "a"), join(directory, "b")];
    writeFileSync(a, "A");
    storage.renameNew(a, b);
    expect(storage.list(directory)).toEqual(["b"]);
    writeFileSync(a, "another");
    expect(() => storage.renameNew(a, b)).toThrow(expect.objectContaining({ code: "io-error" }));
    expect(readFileSync(b, "utf8")).toBe("A");
    expect(readFileSync(a, "utf8")).toBe("another");
  });

  it("do not take a link to nothing for a file", () => {
    const directory = scratchDirectory();
    symlinkSync(join(directory, "nothing"), join(directory, "link"));
    expect(storage.exists(join(directory, "link"))).toBe(false);
    mkdirSync(join(directory, "real"));
    expect(storage.exists(join(directory, "real"))).toBe(true);
  });

  it("know the free space of their file system, in bytes", () => {
    const free = storage.freeBytes(scratchDirectory());
    expect(free).toBeGreaterThan(0);
    expect(Number.isInteger(free)).toBe(true);
  });
});

describe("a file that another program shortens", () => {
  it("fails reads instead of returning old or partial bytes", async () => {
    const file = openScratch();
    file.write(Buffer.alloc(64 * KIB, 1), 0);
    truncateSync(file.path, 10 * KIB);
    expect(file.tryRead(Buffer.alloc(4 * KIB), 8 * KIB)).toBe(false);
    await expect(file.read(Buffer.alloc(4 * KIB), 8 * KIB)).rejects.toMatchObject({
      code: "io-error",
      message: expect.stringContaining(`ends at ${10 * KIB}`),
    });
  });
});
