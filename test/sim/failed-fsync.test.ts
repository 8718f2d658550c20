import { describe, expect, it } from "vitest";
import { WHOLE_CLUSTER_MASK, type JournalEntry } from "../../proto/cluster-journal-format.ts";
import { ClusterJournal } from "../../shared/journal/cluster-journal.ts";
import { SimWorld } from "./world.ts";

/**
 * A failed fsync: the kernel tells of it once, and has forgotten what it could not write; readers still see it, and the
 * next fsync succeeds. What counts as durable after that must be so all the same.
 */
const SEEDS = 40;
const PATH = "/journal";
const HEADER = { kind: "generation", diskSizeBytes: 1024 * 4096, clusterBytes: 4096, epoch: 1 } as const;

const entry = (cluster: number): JournalEntry => ({
  firstCluster: cluster,
  clusterCount: 1,
  mask: WHOLE_CLUSTER_MASK,
  operation: "held",
});

/** Appends clusters with a sync after each, of which those in `failing` fail; returns what a loss of power leaves. */
async function liveThrough(seed: number, failing: readonly number[]): Promise<number[]> {
  const world = new SimWorld(seed);
  const host = world.host("b");
  const outcomes: string[] = [];
  const live = async (): Promise<void> => {
    const journal = ClusterJournal.create(host.storage, PATH, { ...HEADER, id: Buffer.alloc(16, 7) });
    for (let cluster = 0; cluster < 6; cluster += 1) {
      journal.append([entry(cluster)]);
      if (failing.includes(cluster)) host.disk.faults.inject({ op: "sync", error: "io-error" });
      await journal.sync().then(
        () => outcomes.push("synced"),
        () => outcomes.push("failed"),
      );
      if (cluster === 0) await host.storage.syncDirectory("/");
    }
  };
  world.schedule(0, () => void live());
  await world.run({ until: () => outcomes.length === 6 });
  expect(outcomes.filter((outcome) => outcome === "failed")).toHaveLength(failing.length);
  host.crash("power");
  host.restart();
  const left: number[] = [];
  ClusterJournal.open(host.storage, PATH, HEADER, ({ firstCluster }) => left.push(firstCluster));
  return left;
}

describe("a journal of which an fsync has failed", () => {
  it.each([[[1]], [[3]], [[2, 3]], [[0, 1, 4]]])(
    "has everything after the next good one, when %j fail",
    async (failing) => {
      for (let seed = 0; seed < SEEDS; seed += 1) {
        expect(await liveThrough(seed, failing), `seed ${seed}`).toEqual([0, 1, 2, 3, 4, 5]);
      }
    },
  );
});
