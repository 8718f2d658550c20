import { crc32 } from "node:zlib";
import { describe, expect, it } from "vitest";
import {
  decodeMarkClaims,
  decodeSharedMark,
  encodeMarkClaim,
  encodeSharedMark,
  MARK_CLAIMS_BYTES,
  SHARED_MARK_BYTES,
} from "../../../../proto/shared-mark-format.ts";
import { SharedMark } from "../../../../shared/journal/shared-mark.ts";
import { seededStorage } from "../../../support/overlay-bench.ts";
import type { MemoryStorage } from "../../../support/memory-storage.ts";
import { SilentLog } from "../../../support/silent-log.ts";

const PATH = "/shared/mark";
const A = "a".repeat(32);
const B = "b".repeat(32);
const C = "c".repeat(32);

function sides(): { storage: MemoryStorage; a: SharedMark; b: SharedMark; c: SharedMark } {
  const storage = seededStorage(1);
  storage.disk.addDirectory("/shared");
  const side = (agentId: string): SharedMark => new SharedMark(storage, PATH, () => agentId);
  return { storage, a: side(A), b: side(B), c: side(C) };
}

const isBy =
  (...agentIds: readonly string[]) =>
  ({ agentId }: { readonly agentId: string }): boolean =>
    agentIds.includes(agentId);

/** The checkpoints of `holders` stand, by the word of a side that takes a mark of `others` for that of a promoted one. */
function stand(
  mark: SharedMark,
  holders: readonly string[],
  others: readonly string[] = [],
): Promise<readonly string[]> {
  return mark.stand({ holders: () => holders, isTaken: isBy(...others), before: () => Promise.resolve() });
}

/** Nobody's checkpoint stands. */
function unprotect(mark: SharedMark): Promise<readonly string[]> {
  return stand(mark, []);
}

/** The side is promoted. */
async function merge(mark: SharedMark): Promise<void> {
  const claim = await mark.claim();
  await claim.merge();
}

describe("the mark of a shared disk", () => {
  it("is nothing before it is written, and then what was written last, by whomever", async () => {
    const { a, b } = sides();
    expect(await a.read()).toBeUndefined();
    for (const [write, state] of [
      [unprotect, "unprotected"],
      [merge, "merging"],
    ] as const) {
      await write(a);
      expect(await b.read()).toMatchObject({ state, agentId: A, holders: [] });
      await unprotect(a);
      await write(b);
      expect(await a.read()).toMatchObject({ state, agentId: B, holders: [] });
    }
    for (const holders of [[B], [B, C], []]) {
      expect(await stand(a, holders)).toEqual(holders);
      const state = holders.length === 0 ? "unprotected" : "protected";
      expect(await b.read()).toMatchObject({ state, agentId: A, holders });
    }
  });

  it("survives a loss of power as the last one that was written, or the one before", async () => {
    const { storage, a } = sides();
    await stand(a, [B]);
    const writing = unprotect(a).catch(() => undefined);
    storage.crash("power");
    void writing;
    const mark = await new SharedMark(storage, PATH, () => A).read();
    expect(["protected", "unprotected"]).toContain(mark?.state);
  });

  it("is durable when it is written", async () => {
    const { storage, a } = sides();
    await stand(a, [B]);
    await unprotect(a);
    storage.crash("power");
    expect(await new SharedMark(storage, PATH, () => B).read()).toMatchObject({ state: "unprotected" });
  });

  it("lets nobody but the one who merges near the disk", async () => {
    const { a, b } = sides();
    const log = new SilentLog();
    await merge(b);
    await expect(a.assertNobodyMerges(log)).rejects.toMatchObject({ code: "image-busy" });
    await expect(a.assertProtected(false)).rejects.toMatchObject({ code: "image-busy" });
    await b.assertNobodyMerges(log);
    await b.assertProtected(true);
    await unprotect(b);
    await a.assertNobodyMerges(log);
  });

  it("of a merge is ended by the one who has merged, and by nobody else", async () => {
    const { a, b } = sides();
    const log = new SilentLog();
    await a.endMerge(log);
    expect(await a.read()).toBeUndefined();
    await merge(b);
    await a.endMerge(log);
    expect(await a.read()).toMatchObject({ state: "merging" });
    await b.endMerge(log);
    expect(await a.read()).toMatchObject({ state: "unprotected", agentId: B });
    await stand(b, [A]);
    await b.endMerge(log);
    expect(await a.read()).toMatchObject({ state: "protected" });
  });

  it("of a merge is not ended over one that was written meanwhile", async () => {
    const { a, b } = sides();
    await merge(b);
    await Promise.all([stand(b, [A]), b.endMerge(new SilentLog())]);
    expect(await a.read()).toMatchObject({ state: "protected", holders: [A] });
  });

  it("keeps a former primary from going on without the peer that was promoted", async () => {
    const { storage, a, b } = sides();
    const log = new SilentLog();
    expect(await a.isOwn(log)).toBe(false);
    await a.assertNotTaken(isBy(B));
    await stand(a, [B]);
    expect(await a.isOwn(log)).toBe(true);
    await a.assertNotTaken(isBy(B));
    await unprotect(b);
    expect(await a.isOwn(log)).toBe(false);
    await expect(a.assertNotTaken(isBy(C, B))).rejects.toMatchObject({ code: "outdated" });
    await expect(stand(a, [C], [B])).rejects.toMatchObject({ code: "outdated" });
    expect(await a.read()).toMatchObject({ state: "unprotected", agentId: B });
    await a.assertNotTaken(isBy(C));
    for (const slot of [0, SHARED_MARK_BYTES / 2]) storage.disk.corrupt(PATH, slot + 20);
    expect(await b.isOwn(log)).toBe(false);
  });

  it("voids the checkpoint where it says unprotected, where it is damaged, and where it is needed and not there", async () => {
    const { storage, a, b } = sides();
    await b.assertProtected(false);
    await expect(b.assertProtected(true)).rejects.toMatchObject({ code: "unprotected" });
    await stand(a, [B]);
    await b.assertProtected(true);
    await unprotect(a);
    await expect(b.assertProtected(false)).rejects.toMatchObject({ code: "unprotected" });
    await stand(a, [B]);
    for (const slot of [0, SHARED_MARK_BYTES / 2]) storage.disk.corrupt(PATH, slot + 20);
    await expect(b.assertProtected(false)).rejects.toMatchObject({ code: "unprotected" });
    await stand(a, [B]);
    await b.assertProtected(true);
  });
});

describe("the mark of a shared disk that several secondaries have", () => {
  it("says of each whether its checkpoint stands", async () => {
    const { a, b, c } = sides();
    await stand(a, [B, C]);
    await b.assertProtected(true);
    await c.assertProtected(true);
    await stand(a, [C]);
    await expect(b.assertProtected(true)).rejects.toMatchObject({ code: "unprotected" });
    await c.assertProtected(true);
  });

  it("voids the others' checkpoints with a promotion, also when the promoted side has a secondary again", async () => {
    const { a, b, c } = sides();
    await stand(a, [B, C]);
    await merge(b);
    await expect(c.assertProtected(true)).rejects.toMatchObject({ code: "image-busy" });
    await unprotect(b);
    await expect(c.assertProtected(true)).rejects.toMatchObject({ code: "unprotected" });
    await stand(b, [A]);
    await a.assertProtected(true);
    await expect(c.assertProtected(true)).rejects.toMatchObject({ code: "unprotected" });
  });

  it("tells whose primary is not the one that writes the disk any more", async () => {
    const { a, b, c } = sides();
    await c.assertWrittenBy(A);
    await stand(a, [B, C]);
    await c.assertWrittenBy(A);
    await unprotect(b);
    await expect(c.assertWrittenBy(A)).rejects.toMatchObject({ code: "image-busy" });
    await c.assertWrittenBy(B);
    await b.assertWrittenBy(A);
  });

  it.each([
    ["protected", [[B, C]]],
    ["unprotected, and knows them", [[B, C], []]],
    ["unprotected, and knows neither", [[]]],
    ["nothing yet", []],
  ])(
    "lets one of those that are promoted at once go on at most, whatever comes first, where it says %s",
    async (_, marks) => {
      for (let turn = 0; turn < 40; turn += 1) {
        const { storage, a, b, c } = sides();
        for (const holders of marks) await stand(a, holders);
        let reads = 0;
        // One of the two is held up at each of its accesses in turn.
        storage.hold = () => {
          reads += 1;
          if (reads !== turn) return undefined;
          return new Promise((resolve) => {
            setImmediate(() => setImmediate(() => setImmediate(resolve)));
          });
        };
        const promoted = await Promise.allSettled(
          [b, c].map(async (side) => {
            await merge(side);
          }),
        );
        const refused = promoted.filter(({ status }) => status === "rejected");
        expect(refused.length, `held up at access ${turn}`).toBeGreaterThan(0);
        for (const one of refused) expect(one).toMatchObject({ reason: { code: "image-busy" } });
      }
    },
  );

  it("has a claim until it is withdrawn, by the next process too, or a mark comes after it", async () => {
    const { storage, a, b, c } = sides();
    const log = new SilentLog();
    await stand(a, [B, C]);
    const { withdraw } = await b.claim();
    await expect(c.claim()).rejects.toMatchObject({ code: "image-busy" });
    await b.claim();
    await withdraw();
    await c.claim();
    await expect(b.claim()).rejects.toMatchObject({ code: "image-busy" });
    await new SharedMark(storage, PATH, () => C).withdraw(log);
    await b.claim();
    await stand(a, [B, C]);
    await c.claim();
  });

  it("has its slot also when it says unprotected, for all that it has known", async () => {
    const { a, b, c } = sides();
    await stand(a, [B, C]);
    await unprotect(a);
    expect(await a.read()).toMatchObject({ holders: [], others: [B, C] });
    await merge(b);
    await b.endMerge(new SilentLog());
    expect(await c.read()).toMatchObject({ agentId: B, holders: [], others: [C, A] });
  });

  it("is lost with its slot, and another one's claim in that is not withdrawn with it", async () => {
    const { storage, a, b, c } = sides();
    await unprotect(a);
    const claim = await b.claim();
    // C has looked before B's claim was there, and writes its own only now.
    const lateClaim = encodeMarkClaim({ agentId: C, sequence: 1, isWithdrawn: false }, undefined);
    const file = storage.open(PATH, { kind: "other", create: "never" });
    file.write(lateClaim.slot, lateClaim.offset);
    file.close();
    await expect(claim.merge()).rejects.toMatchObject({ code: "image-busy" });
    await claim.withdraw();
    await expect(b.claim()).rejects.toMatchObject({ code: "image-busy" });
    await merge(c);
  });

  it("is over when another agent merges", async () => {
    const { storage, a, b } = sides();
    await stand(a, [B, C]);
    const claim = await b.claim();
    // C has not seen it.
    const merging = encodeSharedMark({ state: "merging", agentId: C, sequence: 2, holders: [], others: [B, A] });
    const file = storage.open(PATH, { kind: "other", create: "never" });
    file.write(merging.slot, merging.offset);
    file.close();
    await expect(claim.merge()).rejects.toMatchObject({ code: "image-busy" });
    expect(await a.read()).toMatchObject({ state: "merging", agentId: C });
  });

  it("takes the claim of one that it does not name", async () => {
    const { a, b, c } = sides();
    await stand(a, [B]);
    const { withdraw } = await c.claim();
    await expect(b.claim()).rejects.toMatchObject({ code: "image-busy" });
    await withdraw();
    await merge(b);
    await expect(c.claim()).rejects.toMatchObject({ code: "image-busy" });
  });
});

describe("the bytes of the mark", () => {
  it("are those that the format describes", () => {
    const { slot, offset } = encodeSharedMark({
      state: "protected",
      agentId: A,
      sequence: 3,
      holders: [B, C],
      others: [A],
    });
    expect(offset).toBe(SHARED_MARK_BYTES / 2);
    const holders = `00000002${"62".repeat(32)}${"63".repeat(32)}${"61".repeat(32)}${"00".repeat(32)}`;
    expect(slot.subarray(0, 196).toString("hex")).toBe(
      `434f4c4f4d41524b00000001000000010000000000000003${"61".repeat(32)}${holders}${slot.subarray(188, 192).toString("hex")}00000000`,
    );
  });

  it("have a slot for the claim of each agent that the mark names, and one for any other", () => {
    const claims = Buffer.alloc(MARK_CLAIMS_BYTES);
    const mark = { state: "protected", agentId: A, sequence: 7, holders: [B], others: [C] } as const;
    const put = (agentId: string, sequence: number, isWithdrawn = false): number => {
      const { slot, offset } = encodeMarkClaim({ agentId, sequence, isWithdrawn }, mark);
      slot.copy(claims, offset - SHARED_MARK_BYTES);
      return offset;
    };
    expect(decodeMarkClaims(claims)).toEqual([]);
    expect([put(B, 7), put(C, 8), put(A, 9)]).toEqual([8192, 12_288, 24_576]);
    const told = (): unknown => decodeMarkClaims(claims).map(({ agentId, sequence }) => [agentId, sequence]);
    expect(told()).toEqual([
      [B, 7],
      [C, 8],
      [A, 9],
    ]);
    put(C, 8, true);
    claims[30] = 0xff; // of B's
    expect(told()).toEqual([[A, 9]]);
  });

  it("are the older mark where the newer one is torn, and nothing of a later version is guessed at", () => {
    const file = Buffer.alloc(SHARED_MARK_BYTES);
    const put = (sequence: number, change?: (slot: Buffer) => void): void => {
      const { slot, offset } = encodeSharedMark({ state: "protected", agentId: A, sequence, holders: [B], others: [] });
      change?.(slot);
      slot.copy(file, offset);
    };
    expect(decodeSharedMark(file)).toEqual({ kind: "none" });
    put(1);
    put(2, (slot) => slot.fill(0, 30, 40));
    expect(decodeSharedMark(file)).toMatchObject({ kind: "mark", mark: { sequence: 1 } });
    put(1, (slot) => slot.fill(0, 30, 40));
    expect(decodeSharedMark(file)).toEqual({ kind: "unreadable" });
    // Another version, another state, and more agents than there can be.
    for (const [offset, value] of [
      [8, 2],
      [12, 99],
      [56, 99],
    ] as const) {
      put(1);
      put(2, (slot) => {
        slot.writeUInt32BE(value, offset);
        slot.writeUInt32BE(crc32(slot.subarray(0, 188)), 188);
      });
      expect(decodeSharedMark(file)).toEqual({ kind: "unreadable" });
    }
  });
});
