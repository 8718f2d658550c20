import { describe, expect, it } from "vitest";
import { VERIFY_DIFFERENCES_MAX } from "../../../proto/limits.ts";
import { VerifyFindings } from "../../../primary/verify-findings.ts";
import { clusterGeometry } from "../../../shared/block/cluster-geometry.ts";

const CLUSTER = 4096;
const DISKS = [
  { name: "vda", geometry: clusterGeometry(1000 * CLUSTER + 512, CLUSTER) },
  { name: "vdb", geometry: clusterGeometry(1000 * CLUSTER, CLUSTER) },
];

function findings(): { found: VerifyFindings; told: unknown[] } {
  const told: unknown[] = [];
  return { found: new VerifyFindings(DISKS, (difference) => told.push(difference)), told };
}

describe("what a verify has found", () => {
  it("joins neighbouring clusters, cuts the last one at the disk's end, and keeps disks apart", () => {
    const { found, told } = findings();
    for (const cluster of [0, 1, 3, 999, 1000]) found.add(0, cluster);
    found.add(1, 1);
    const expected = [
      { disk: "vda", offset: 0, length: 2 * CLUSTER },
      { disk: "vda", offset: 3 * CLUSTER, length: CLUSTER },
      { disk: "vda", offset: 999 * CLUSTER, length: CLUSTER + 512 },
      { disk: "vdb", offset: CLUSTER, length: CLUSTER },
    ];
    expect(found.describe()).toEqual({ differences: expected, ranges: 4, differingBytes: 5 * CLUSTER + 512 });
    expect(told).toEqual(expected.slice(0, 3)); // the last one may go on
    found.close();
    expect(told).toEqual(expected);
    expect(found.describe().differences).toEqual(expected);
    expect([...found.runs()]).toEqual([
      [0, { first: 0, end: 2 }],
      [0, { first: 3, end: 4 }],
      [0, { first: 999, end: 1001 }],
      [1, { first: 1, end: 2 }],
    ]);
  });

  it("lists and tells so many ranges, and counts all", () => {
    const { found, told } = findings();
    for (let cluster = 0; cluster < 2 * (VERIFY_DIFFERENCES_MAX + 5); cluster += 2) found.add(0, cluster);
    const { differences, ranges, differingBytes } = found.describe();
    found.close();
    expect(differences).toHaveLength(VERIFY_DIFFERENCES_MAX);
    expect(told).toHaveLength(VERIFY_DIFFERENCES_MAX);
    expect(ranges).toBe(VERIFY_DIFFERENCES_MAX + 5);
    expect(differingBytes).toBe(ranges * CLUSTER);
    expect([...found.runs()]).toHaveLength(ranges);
  });
});
