import { describe, expect, it } from "vitest";
import { ChunkPool } from "../../../primary/chunk-pool.ts";
import { bringAll, nextPieces, stepBytes, type SyncSource } from "../../../primary/sync-pieces.ts";
import { JOB_CHUNK_BYTES, SYNC_HOLE_BYTES, SYNC_STEP_BYTES, SYNC_STEP_PIECES } from "../../../proto/limits.ts";
import { clusterGeometry } from "../../../shared/block/cluster-geometry.ts";
import { DirtyMap } from "../../../shared/replication/dirty-map.ts";

const CLUSTER = 65_536;
const IN_CHUNK = JOB_CHUNK_BYTES / CLUSTER;

/** A disk of which `dirty` clusters are, from one to another; what lies in `holes` has no data. */
function source(
  clusters: number,
  dirty: readonly (readonly [number, number])[],
  holes: readonly (readonly [number, number])[] = [],
  { asks = false, lessBytes = 0 } = {},
): SyncSource {
  const geometry = clusterGeometry(clusters * CLUSTER - lessBytes, CLUSTER);
  const map = new DirtyMap(geometry);
  for (const [first, end] of dirty) map.addClusters(first, end);
  return {
    geometry,
    nextDirty: (from, maxClusters) => map.nextRun(from, maxClusters),
    disk: {
      startsWithHole: (offset, length) => {
        const isHole = holes.some(([first, end]) => first * CLUSTER <= offset && offset + length <= end * CLUSTER);
        return asks ? Promise.resolve(isHole) : isHole;
      },
    },
  };
}

describe("the pieces of a step", () => {
  it("are the dirty stretches, in their order, disk by disk", async () => {
    const sources = [
      source(100, [
        [3, 5],
        [9, 10],
      ]),
      source(100, []),
      source(100, [[0, 1]]),
    ];
    expect(await nextPieces(sources, SYNC_STEP_BYTES)).toEqual([
      { source: 0, offset: 3 * CLUSTER, length: 2 * CLUSTER, isHole: false },
      { source: 0, offset: 9 * CLUSTER, length: CLUSTER, isHole: false },
      { source: 2, offset: 0, length: CLUSTER, isHole: false },
    ]);
  });

  it("have a chunk at most, and together what the step may take", async () => {
    const pieces = await nextPieces([source(100 * IN_CHUNK, [[0, 100 * IN_CHUNK]])], 3 * JOB_CHUNK_BYTES);
    expect(pieces.map(({ offset, length }) => [offset, length])).toEqual(
      [0, 1, 2].map((chunk) => [chunk * JOB_CHUNK_BYTES, JOB_CHUNK_BYTES]),
    );
  });

  it("have a whole cluster at least, however little the step may take", async () => {
    const pieces = await nextPieces([source(100, [[7, 20]])], 1);
    expect(pieces).toEqual([{ source: 0, offset: 7 * CLUSTER, length: CLUSTER, isHole: false }]);
  });

  it("end where the disk does", async () => {
    const pieces = await nextPieces([source(10, [[9, 10]], [], { lessBytes: 100 })], SYNC_STEP_BYTES);
    expect(pieces).toEqual([{ source: 0, offset: 9 * CLUSTER, length: CLUSTER - 100, isHole: false }]);
  });

  it.each([false, true])("have long holes as one, which take a share of the step (asks %s)", async (asks) => {
    const end = (SYNC_HOLE_BYTES + 2 * JOB_CHUNK_BYTES) / CLUSTER;
    const sources = [source(end, [[0, end]], [[0, IN_CHUNK]], { asks })];
    const share = JOB_CHUNK_BYTES / SYNC_HOLE_BYTES / 2;
    expect(await nextPieces(sources, JOB_CHUNK_BYTES, 2 * share)).toHaveLength(1);
    expect(await nextPieces(sources, JOB_CHUNK_BYTES, share)).toEqual([
      { source: 0, offset: 0, length: SYNC_HOLE_BYTES, isHole: true },
      { source: 0, offset: SYNC_HOLE_BYTES, length: JOB_CHUNK_BYTES, isHole: false },
    ]);
  });

  it("have a long hole as a chunk, where nobody says otherwise", async () => {
    const inHole = SYNC_HOLE_BYTES / CLUSTER;
    const end = 2 * inHole;
    const sources = [
      source(
        end,
        [[0, end]],
        [
          [0, IN_CHUNK],
          [inHole, inHole + IN_CHUNK],
        ],
      ),
    ];
    const pieces = await nextPieces(sources, SYNC_STEP_BYTES);
    expect(pieces.map(({ isHole }) => isHole)).toEqual([true, true]);
    expect(await nextPieces(sources, JOB_CHUNK_BYTES)).toHaveLength(1);
  });

  it("are not more than a step may have", async () => {
    const dirty = Array.from({ length: 10 * SYNC_STEP_PIECES }, (_, index) => [2 * index, 2 * index + 1] as const);
    expect(await nextPieces([source(20 * SYNC_STEP_PIECES, dirty)], Infinity)).toHaveLength(SYNC_STEP_PIECES);
  });

  it("are fewer beside guests, and never more than the job may take", () => {
    expect(stepBytes(Infinity, false)).toBe(SYNC_STEP_BYTES);
    expect(stepBytes(Infinity, true)).toBe(JOB_CHUNK_BYTES);
    expect(stepBytes(5, true)).toBe(5);
  });
});

describe("what is brought side by side", () => {
  const pieces = [1, 2, 3].map((offset) => ({ source: 0, offset, length: 1, isHole: false }));

  it("adds up", async () => {
    expect(await bringAll(pieces, ({ offset }) => Promise.resolve(offset))).toBe(6);
  });

  it("fails only when nothing is under way any more", async () => {
    const settled: number[] = [];
    const error = new Error("the first");
    const brought = bringAll(pieces, async ({ offset }) => {
      if (offset === 1) throw error;
      await Promise.resolve();
      settled.push(offset);
      return offset;
    });
    await expect(brought).rejects.toBe(error);
    expect(settled).toEqual([2, 3]);
  });
});

describe("the memory of pieces", () => {
  it("is used again where it is a whole chunk", () => {
    const chunks = new ChunkPool();
    const chunk = chunks.take(JOB_CHUNK_BYTES + 1);
    expect(chunk).toHaveLength(JOB_CHUNK_BYTES);
    expect(chunks.take(JOB_CHUNK_BYTES)).not.toBe(chunk);
    chunks.giveBack(chunk);
    expect(chunks.take(JOB_CHUNK_BYTES)).toBe(chunk);
    const small = chunks.take(100);
    expect(small).toHaveLength(100);
    chunks.giveBack(small);
    expect(chunks.take(100)).not.toBe(small);
  });
});
