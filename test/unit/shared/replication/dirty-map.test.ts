import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DirtyMap } from "../../../../shared/replication/dirty-map.ts";
import { clusterGeometry } from "../../../../shared/block/cluster-geometry.ts";

/** Nine whole clusters and one of 512 bytes. */
const GEOMETRY = clusterGeometry(9 * 4096 + 512, 4096);

describe("the dirty map", () => {
  it("is empty at first, and holds the whole disk when told so", () => {
    const dirty = new DirtyMap(GEOMETRY);
    expect([dirty.isEmpty, dirty.bytes, dirty.nextRun(0, 100)]).toEqual([true, 0, undefined]);
    dirty.addAll();
    expect([dirty.isEmpty, dirty.bytes, dirty.nextRun(0, 100)]).toEqual([
      false,
      GEOMETRY.sizeBytes,
      { first: 0, end: 10 },
    ]);
    dirty.removeClusters(0, 10);
    expect(dirty.isEmpty).toBe(true);
  });

  it("takes every cluster that a range touches by a single byte", () => {
    const dirty = new DirtyMap(GEOMETRY);
    dirty.addBytes(4095, 2);
    expect(dirty.nextRun(0, 100)).toEqual({ first: 0, end: 2 });
    dirty.addBytes(GEOMETRY.sizeBytes - 1, 1);
    dirty.removeClusters(0, 2);
    expect(dirty.nextRun(0, 100)).toEqual({ first: 9, end: 10 });
  });

  it("covers a range only when every cluster of it is dirty", () => {
    const dirty = new DirtyMap(GEOMETRY);
    dirty.addClusters(2, 4);
    expect(dirty.covers(2 * 4096, 2 * 4096)).toBe(true);
    expect(dirty.covers(2 * 4096 + 1, 1)).toBe(true);
    expect(dirty.covers(2 * 4096, 2 * 4096 + 1)).toBe(false);
    expect(dirty.covers(2 * 4096 - 1, 2)).toBe(false);
  });

  it("gives the first run from a cluster on, at most as long as asked for", () => {
    const dirty = new DirtyMap(GEOMETRY);
    dirty.addClusters(3, 6);
    dirty.addClusters(8, 10);
    expect(dirty.nextRun(0, 1)).toEqual({ first: 3, end: 4 });
    expect(dirty.nextRun(0, 3)).toEqual({ first: 3, end: 6 });
    expect(dirty.nextRun(0, 4)).toEqual({ first: 3, end: 6 });
    expect(dirty.nextRun(4, 4)).toEqual({ first: 4, end: 6 });
    expect(dirty.nextRun(6, 1000)).toEqual({ first: 8, end: 10 });
    expect(dirty.nextRun(10, 1000)).toBeUndefined();
    dirty.removeClusters(3, 6);
    expect(dirty.nextRun(0, 1000)).toEqual({ first: 8, end: 10 });
  });

  it("gives the runs within a range, cut at its ends", () => {
    const dirty = new DirtyMap(GEOMETRY);
    dirty.addClusters(3, 6);
    dirty.addClusters(8, 10);
    expect([...dirty.runsIn(0, 10)]).toEqual([
      { first: 3, end: 6 },
      { first: 8, end: 10 },
    ]);
    expect([...dirty.runsIn(4, 9)]).toEqual([
      { first: 4, end: 6 },
      { first: 8, end: 9 },
    ]);
    expect([...dirty.runsIn(6, 8)]).toEqual([]);
  });

  it("agrees with a set of clusters", () => {
    const range = fc
      .tuple(fc.nat({ max: 9 }), fc.nat({ max: 10 }))
      .map(([first, count]) => [first, Math.min(10, first + count)] as const);
    const step = fc.record({ add: fc.boolean(), range });
    fc.assert(
      fc.property(
        fc.array(step, { maxLength: 20 }),
        fc.integer({ min: 1, max: 12 }),
        fc.nat({ max: 11 }),
        (steps, maxClusters, from) => {
          const dirty = new DirtyMap(GEOMETRY);
          const model = new Set<number>();
          for (const {
            add,
            range: [first, end],
          } of steps) {
            if (add) dirty.addClusters(first, end);
            else dirty.removeClusters(first, end);
            for (let cluster = first; cluster < end; cluster += 1) {
              if (add) model.add(cluster);
              else model.delete(cluster);
            }
          }
          const first = Math.min(...[...model].filter((cluster) => cluster >= from));
          let end = first;
          while (model.has(end) && end - first < maxClusters) end += 1;
          expect(dirty.nextRun(from, maxClusters)).toEqual(first === Infinity ? undefined : { first, end });
          expect(dirty.isEmpty).toBe(model.size === 0);
          expect(dirty.bytes).toBe(Math.min(model.size * 4096, GEOMETRY.sizeBytes));
        },
      ),
    );
  });
});
