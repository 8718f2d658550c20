import { expect, it } from "vitest";
import { ClusterTable } from "../../../secondary/cluster-table.ts";
import { SeededRandom } from "../../sim/seeded-random.ts";

it("has what a Map has, through growth and removals, for clusters of the largest disks", () => {
  const random = new SeededRandom(1);
  const table = new ClusterTable();
  const expected = new Map<number, number>();
  for (let step = 0; step < 20_000; step += 1) {
    const cluster = random.below(2000) + (random.below(2) === 0 ? 0 : 2 ** 32 - 2000);
    if (random.below(3) === 0) {
      table.remove(cluster);
      expected.delete(cluster);
    } else {
      table.set(cluster, step);
      expected.set(cluster, step);
    }
    const asked = random.below(2000);
    expect(table.get(asked)).toBe(expected.get(asked) ?? -1);
  }
  for (const [cluster, value] of expected) expect(table.get(cluster)).toBe(value);
});
