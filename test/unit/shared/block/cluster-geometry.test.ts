import { describe, expect, it } from "vitest";
import { CLUSTER_MAX_BYTES, CLUSTER_MIN_BYTES, DISK_MAX_CLUSTERS } from "../../../../proto/limits.ts";
import {
  clusterEndOffset,
  clusterGeometry,
  clustersToBytes,
  endClusterOf,
  firstClusterOf,
} from "../../../../shared/block/cluster-geometry.ts";
import { isZero } from "../../../../shared/block/zeroes.ts";

describe("the division of a disk into clusters", () => {
  const geometry = clusterGeometry(10 * 4096 + 512, 4096);

  it("counts a last, shorter cluster", () => {
    expect(geometry.clusterCount).toBe(11);
    expect(clusterGeometry(10 * 4096, 4096).clusterCount).toBe(10);
    expect(clusterEndOffset(geometry, 10)).toBe(10 * 4096);
    expect(clusterEndOffset(geometry, 11)).toBe(geometry.sizeBytes);
    expect(clustersToBytes(geometry, 11)).toBe(geometry.sizeBytes);
  });

  it.each([
    [0, 1, 0, 1],
    [4095, 1, 0, 1],
    [4095, 2, 0, 2],
    [4096, 4096, 1, 2],
    [4096, 4097, 1, 3],
    [10 * 4096, 512, 10, 11],
  ])("says which clusters %d, %d bytes long, touches: [%d, %d)", (offset, length, first, end) => {
    expect([firstClusterOf(geometry, offset), endClusterOf(geometry, offset, length)]).toEqual([first, end]);
  });

  it("is exact for the largest disk", () => {
    const largest = clusterGeometry(DISK_MAX_CLUSTERS * CLUSTER_MAX_BYTES, CLUSTER_MAX_BYTES);
    expect(firstClusterOf(largest, largest.sizeBytes - 1)).toBe(2 ** 32 - 1);
    expect(endClusterOf(largest, largest.sizeBytes - 1, 1)).toBe(2 ** 32);
  });

  it.each([0, 1, 4095, 5000, CLUSTER_MIN_BYTES / 2, CLUSTER_MAX_BYTES * 2, -4096, Number.NaN, 1.5])(
    "refuses clusters of %d bytes",
    (bytes) => {
      expect(() => clusterGeometry(1 << 20, bytes)).toThrow(expect.objectContaining({ code: "usage" }) as Error);
    },
  );

  it("refuses a disk with more clusters than their numbers reach", () => {
    expect(() => clusterGeometry(DISK_MAX_CLUSTERS * 4096 + 512, 4096)).toThrow(
      expect.objectContaining({ action: expect.stringContaining("--cluster-size") as string }) as Error,
    );
  });
});

describe("a stretch of zeroes", () => {
  it("is told from one with any other byte, at any place and length", () => {
    for (const length of [0, 1, 511, 1 << 20, (1 << 20) + 1, (2 << 20) + 77]) {
      const bytes = Buffer.alloc(length);
      expect(isZero(bytes)).toBe(true);
      for (const at of [0, length >> 1, length - 1]) {
        if (length === 0) continue;
        bytes[at] = 1;
        expect(isZero(bytes)).toBe(false);
        bytes[at] = 0;
      }
    }
  });
});
