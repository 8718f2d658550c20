import { describe, expect, it } from "vitest";
import type { Extent } from "../../../../shared/block/block-device.ts";
import { cutIntoPieces, readReplyBytes, sparseReplyBytes } from "../../../../shared/nbd/read-reply.ts";

const KIB = 1024;
const data = (length: number): Extent => ({ length, hole: false, zero: false });
const zero = (length: number): Extent => ({ length, hole: true, zero: true });

const cut = (extents: Extent[], offset: number, length: number): [number, number, boolean][] | undefined =>
  cutIntoPieces(extents, offset, length)?.map((piece) => [piece.offset, piece.length, piece.zero]);

describe("cutting a read into pieces", () => {
  it("leaves a range without zeroes in one", () => {
    expect(cut([data(64 * KIB)], 0, 64 * KIB)).toBeUndefined();
    expect(cut([], 0, 64 * KIB)).toBeUndefined();
  });

  it("leaves out the zero extents", () => {
    expect(cut([data(16 * KIB), zero(32 * KIB), data(16 * KIB)], 512, 64 * KIB)).toEqual([
      [512, 16 * KIB, false],
      [512 + 16 * KIB, 32 * KIB, true],
      [512 + 48 * KIB, 16 * KIB, false],
    ]);
    expect(cut([zero(64 * KIB)], 0, 64 * KIB)).toEqual([[0, 64 * KIB, true]]);
  });

  it("sends a short zero extent as data, joined with its neighbours", () => {
    expect(cut([data(4 * KIB), zero(4 * KIB), data(24 * KIB), zero(32 * KIB)], 0, 64 * KIB)).toEqual([
      [0, 32 * KIB, false],
      [32 * KIB, 32 * KIB, true],
    ]);
  });

  it("takes what the extents do not cover as data, and cuts what they cover beyond the range", () => {
    expect(cut([zero(32 * KIB)], 0, 64 * KIB)).toEqual([
      [0, 32 * KIB, true],
      [32 * KIB, 32 * KIB, false],
    ]);
    expect(cut([data(32 * KIB), zero(1024 * KIB)], 0, 64 * KIB)).toEqual([
      [0, 32 * KIB, false],
      [32 * KIB, 32 * KIB, true],
    ]);
  });

  it("never makes the reply larger", () => {
    const alternating = Array.from({ length: 64 }, (_, index) => (index % 2 === 0 ? zero(16 * KIB) : data(512)));
    const length = alternating.reduce((sum, extent) => sum + extent.length, 0);
    const pieces = cutIntoPieces(alternating, 0, length);
    expect(sparseReplyBytes(pieces ?? [])).toBeLessThan(readReplyBytes(length, true));
  });
});
