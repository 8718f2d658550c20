import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { JournalEntry } from "../../../../proto/cluster-journal-format.ts";
import {
  applyJournalEntry,
  ClusterBitmap,
  clusterRuns,
  intersectsRange,
} from "../../../../shared/block/cluster-bitmap.ts";

/** Clusters around the borders of the bitmap's containers, and at the end of the largest disk. */
const cluster = fc
  .record({ base: fc.constantFrom(0, 65_530, 131_066, 2 ** 32 - 12), step: fc.nat({ max: 11 }) })
  .map(({ base, step }) => base + step);
const range = fc
  .record({ first: cluster, length: fc.nat({ max: 70_000 }), short: fc.nat({ max: 4 }), isShort: fc.boolean() })
  .map(({ first, length, short, isShort }) => ({ first, end: Math.min(2 ** 32, first + (isShort ? short : length)) }));
const change = fc.record({ range, add: fc.boolean() });

/** A bitmap and, as runs, what it must hold. */
function build(changes: readonly { range: { first: number; end: number }; add: boolean }[]): {
  bitmap: ClusterBitmap;
  has: (cluster: number) => boolean;
} {
  const bitmap = new ClusterBitmap();
  for (const { range, add } of changes) {
    if (add) bitmap.addRange(range.first, range.end);
    else bitmap.removeRange(range.first, range.end);
  }
  const has = (cluster: number): boolean =>
    changes.findLast(({ range }) => range.first <= cluster && cluster < range.end)?.add ?? false;
  return { bitmap, has };
}

describe("the cluster bitmap", () => {
  it("holds what was added and not removed, at every border", () => {
    fc.assert(
      fc.property(fc.array(change, { maxLength: 6 }), fc.array(cluster), (changes, probes) => {
        const { bitmap, has } = build(changes);
        for (const probe of probes) expect(bitmap.has(probe)).toBe(has(probe));
      }),
    );
  });

  it("meets a range exactly when it holds a cluster of it, the last one too", () => {
    fc.assert(
      fc.property(fc.array(change, { maxLength: 6 }), cluster, fc.nat({ max: 5 }), (changes, first, length) => {
        const { bitmap, has } = build(changes);
        const end = Math.min(2 ** 32, first + length);
        const clusters = Array.from({ length: end - first }, (_, index) => first + index);
        expect(intersectsRange(bitmap, first, end)).toBe(clusters.some(has));
        expect(end === first || bitmap.hasRange(first, end)).toBe(clusters.every(has));
        expect(ClusterBitmap.fromRange(first, end).andNotInPlace(bitmap).toArray()).toEqual(
          clusters.filter((at) => !has(at)),
        );
      }),
    );
  });

  it("gives its runs, ascending, adjacent ones as one", () => {
    const runs = (clusters: readonly number[]): unknown => [...clusterRuns(new ClusterBitmap(clusters))];
    expect(runs([])).toEqual([]);
    expect(runs([0])).toEqual([{ first: 0, end: 1 }]);
    expect(runs([9, 3, 4, 5, 2 ** 32 - 1])).toEqual([
      { first: 3, end: 6 },
      { first: 9, end: 10 },
      { first: 2 ** 32 - 1, end: 2 ** 32 },
    ]);
  });

  it("gives the same runs of large sets, up to every cluster of the largest disk", () => {
    fc.assert(
      fc.property(fc.array(change, { maxLength: 6 }), (changes) => {
        const { bitmap } = build(changes);
        const expected: { first: number; end: number }[] = [];
        for (const at of bitmap.toArray()) {
          const last = expected.at(-1);
          if (last?.end === at) last.end += 1;
          else expected.push({ first: at, end: at + 1 });
        }
        expect([...clusterRuns(bitmap)]).toEqual(expected);
      }),
    );
    const end = 2 ** 32;
    const whole = ClusterBitmap.fromRange(0, end);
    expect([...clusterRuns(whole)]).toEqual([{ first: 0, end }]);
    whole.delete(7_000_000);
    expect([...clusterRuns(whole)]).toEqual([
      { first: 0, end: 7_000_000 },
      { first: 7_000_001, end },
    ]);
  });

  it("follows journal entries for whole clusters", () => {
    const entry = (operation: JournalEntry["operation"], firstCluster: number, clusterCount: number): JournalEntry => ({
      operation,
      firstCluster,
      clusterCount,
      mask: 0xffff_ffff,
    });
    const bitmap = new ClusterBitmap();
    applyJournalEntry(bitmap, entry("held", 10, 5));
    applyJournalEntry(bitmap, entry("released", 11, 1));
    expect(bitmap.toArray()).toEqual([10, 12, 13, 14]);
  });
});
