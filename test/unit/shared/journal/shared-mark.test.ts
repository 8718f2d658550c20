import { crc32 } from "node:zlib";
import { describe, expect, it } from "vitest";
import { decodeSharedMark, encodeSharedMark, SHARED_MARK_BYTES } from "../../../../proto/shared-mark-format.ts";
import { SHARED_MARK_STATES } from "../../../../proto/words.ts";
import { SharedMark } from "../../../../shared/journal/shared-mark.ts";
import { seededStorage } from "../../../support/overlay-bench.ts";
import type { MemoryStorage } from "../../../support/memory-storage.ts";
import { SilentLog } from "../../../support/silent-log.ts";

const PATH = "/shared/mark";
const A = "a".repeat(32);
const B = "b".repeat(32);

function sides(): { storage: MemoryStorage; a: SharedMark; b: SharedMark } {
  const storage = seededStorage(1);
  storage.disk.addDirectory("/shared");
  return { storage, a: new SharedMark(storage, PATH, () => A), b: new SharedMark(storage, PATH, () => B) };
}

describe("the mark of a shared disk", () => {
  it("is nothing before it is written, and then what was written last, by whomever", async () => {
    const { a, b } = sides();
    expect(await a.read()).toBeUndefined();
    for (const state of SHARED_MARK_STATES) {
      await a.write(state);
      expect(await b.read()).toMatchObject({ state, agentId: A });
      await b.write(state);
      expect(await a.read()).toMatchObject({ state, agentId: B });
    }
  });

  it("survives a loss of power as the last one that was written, or the one before", async () => {
    const { storage, a } = sides();
    await a.write("protected");
    const writing = a.write("unprotected").catch(() => undefined);
    storage.crash("power");
    void writing;
    const mark = await new SharedMark(storage, PATH, () => A).read();
    expect(["protected", "unprotected"]).toContain(mark?.state);
  });

  it("is durable when it is written", async () => {
    const { storage, a } = sides();
    await a.write("protected");
    await a.write("unprotected");
    storage.crash("power");
    expect(await new SharedMark(storage, PATH, () => B).read()).toMatchObject({ state: "unprotected" });
  });

  it("lets nobody but the one who merges near the disk", async () => {
    const { a, b } = sides();
    const log = new SilentLog();
    await b.write("merging");
    await expect(a.assertNobodyMerges(log)).rejects.toMatchObject({ code: "image-busy" });
    await expect(a.assertProtected(false)).rejects.toMatchObject({ code: "image-busy" });
    await b.assertNobodyMerges(log);
    await b.assertProtected(true);
    await b.write("unprotected");
    await a.assertNobodyMerges(log);
  });

  it("of a merge is ended by the one who has merged, and by nobody else", async () => {
    const { a, b } = sides();
    const log = new SilentLog();
    await a.endMerge(log);
    expect(await a.read()).toBeUndefined();
    await b.write("merging");
    await a.endMerge(log);
    expect(await a.read()).toMatchObject({ state: "merging" });
    await b.endMerge(log);
    expect(await a.read()).toMatchObject({ state: "unprotected", agentId: B });
    await b.write("protected");
    await b.endMerge(log);
    expect(await a.read()).toMatchObject({ state: "protected" });
  });

  it("keeps a former primary from going on without the peer that was promoted", async () => {
    const { storage, a, b } = sides();
    const log = new SilentLog();
    expect(await a.isOwn(log)).toBe(false);
    await a.assertNotTakenBy(B, log);
    await a.write("protected");
    expect(await a.isOwn(log)).toBe(true);
    await a.assertNotTakenBy(B, log);
    await b.write("unprotected");
    expect(await a.isOwn(log)).toBe(false);
    await expect(a.assertNotTakenBy(B, log)).rejects.toMatchObject({ code: "outdated" });
    await a.assertNotTakenBy("c".repeat(32), log);
    await a.assertNotTakenBy(undefined, log);
    for (const slot of [0, SHARED_MARK_BYTES / 2]) storage.disk.corrupt(PATH, slot + 20);
    expect(await b.isOwn(log)).toBe(false);
  });

  it("voids the checkpoint where it says unprotected, where it is damaged, and where it is needed and not there", async () => {
    const { storage, a, b } = sides();
    await b.assertProtected(false);
    await expect(b.assertProtected(true)).rejects.toMatchObject({ code: "unprotected" });
    await a.write("protected");
    await b.assertProtected(true);
    await a.write("unprotected");
    await expect(b.assertProtected(false)).rejects.toMatchObject({ code: "unprotected" });
    await a.write("protected");
    for (const slot of [0, SHARED_MARK_BYTES / 2]) storage.disk.corrupt(PATH, slot + 20);
    await expect(b.assertProtected(false)).rejects.toMatchObject({ code: "unprotected" });
    await a.write("protected");
    await b.assertProtected(true);
  });
});

describe("the bytes of the mark", () => {
  it("are those that the format describes", () => {
    const { slot, offset } = encodeSharedMark({ state: "merging", agentId: A, sequence: 3 });
    expect(offset).toBe(SHARED_MARK_BYTES / 2);
    expect(slot.subarray(0, 64).toString("hex")).toBe(
      `434f4c4f4d41524b00000001000000030000000000000003${"61".repeat(32)}${slot.subarray(56, 60).toString("hex")}00000000`,
    );
  });

  it("are the older mark where the newer one is torn, and nothing of a later version is guessed at", () => {
    const file = Buffer.alloc(SHARED_MARK_BYTES);
    const put = (sequence: number, change?: (slot: Buffer) => void): void => {
      const { slot, offset } = encodeSharedMark({ state: "protected", agentId: A, sequence });
      change?.(slot);
      slot.copy(file, offset);
    };
    expect(decodeSharedMark(file)).toEqual({ kind: "none" });
    put(1);
    put(2, (slot) => slot.fill(0, 30, 40));
    expect(decodeSharedMark(file)).toMatchObject({ kind: "mark", mark: { sequence: 1 } });
    put(1, (slot) => slot.fill(0, 30, 40));
    expect(decodeSharedMark(file)).toEqual({ kind: "unreadable" });
    // Another version, and another state.
    for (const [offset, value] of [
      [8, 2],
      [12, 99],
    ] as const) {
      put(1);
      put(2, (slot) => {
        slot.writeUInt32BE(value, offset);
        slot.writeUInt32BE(crc32(slot.subarray(0, 56)), 56);
      });
      expect(decodeSharedMark(file)).toEqual({ kind: "unreadable" });
    }
  });
});
