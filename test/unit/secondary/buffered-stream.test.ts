import { expect, it } from "vitest";
import type { Operation } from "../../../proto/replication-messages.ts";
import { CLUSTER_BYTES, pattern, seededStorage } from "../../support/overlay-bench.ts";
import { imagePath, makeSecondary, ReplicaBench } from "../../support/replica-bench.ts";

const SIZE = 8 * CLUSTER_BYTES;
const storage = () => seededStorage(3, 0.2);

function write(offset: number, length: number, seed: number): Operation {
  return { kind: "write", disk: 0, offset, length, payload: pattern(length, seed) };
}

async function begin(files: ReturnType<typeof storage>): Promise<ReplicaBench> {
  await makeSecondary(files, [{ name: "vda", content: Buffer.alloc(SIZE) }], "power", { mode: "mc" });
  const bench = ReplicaBench.open(files);
  await bench.begin(1);
  return bench;
}

it("writes to the base until there is a barrier, and beside it from then on", async () => {
  const files = storage();
  const bench = await begin(files);
  bench.push([write(0, SIZE, 1)]);
  await bench.barrier(1);
  expect(files.disk.readFile(imagePath("vda"))).toEqual(pattern(SIZE, 1));
  await bench.commit(1);
  bench.push([write(100, 5000, 2)]);
  await bench.drained();
  expect(files.disk.readFile(imagePath("vda"))).toEqual(pattern(SIZE, 1));
  expect(await bench.readView(0)).toEqual(pattern(SIZE, 1));
});

it("keeps the order of what came before and after the only checkpoint was withdrawn", async () => {
  const files = storage();
  const bench = await begin(files);
  bench.push([write(0, SIZE, 1)]);
  await bench.barrier(1);
  bench.push([write(0, 3000, 2)]);
  await bench.drained();
  await bench.checkpoints.discard([1]);
  bench.push([write(1000, 3000, 3)]);
  await bench.prepareAndCommit(2);
  const expected = pattern(SIZE, 1);
  pattern(3000, 2).copy(expected, 0);
  pattern(3000, 3).copy(expected, 1000);
  expect(await bench.readView(0)).toEqual(expected);
  await bench.applied();
  expect(files.disk.readFile(imagePath("vda"))).toEqual(expected);
});

it("has everything in the base when the checkpoint is given up, also after a death on the way", async () => {
  const files = storage();
  let bench = await begin(files);
  bench.push([write(0, SIZE, 1)]);
  await bench.prepareAndCommit(1);
  bench.push([write(500, 4000, 2)]);
  await bench.barrier(2);
  bench.push([write(2000, 4000, 3)]);
  await bench.drained();
  await bench.writer.makeStable();
  // It is recorded that there is no checkpoint, and the process dies before anything is moved.
  await bench.state.update((record) => ({ ...record, committed: { epoch: 0, atMs: 0 }, prepared: [] }));
  bench = await bench.restart("process");
  await bench.begin(5);
  const expected = pattern(SIZE, 1);
  pattern(4000, 2).copy(expected, 500);
  pattern(4000, 3).copy(expected, 2000);
  expect(files.disk.readFile(imagePath("vda"))).toEqual(expected);
  bench.push([write(0, 10, 4)]);
  await bench.prepareAndCommit(5);
  pattern(10, 4).copy(expected, 0);
  expect(await bench.readView(0)).toEqual(expected);
});

it("finds equal what a buffer has already, and takes nothing for it", async () => {
  const files = storage();
  const bench = await begin(files);
  bench.push([write(0, SIZE, 1)]);
  await bench.prepareAndCommit(1);
  bench.push([write(700, 9000, 2)]);
  await bench.drained();
  const [disk] = bench.disks;
  const before = disk?.epochs.allocatedBytes;
  bench.writer.compare({ comparing: true, rewriting: false });
  bench.push([write(700, 9000, 2)]);
  await bench.drained();
  expect(disk?.epochs.allocatedBytes).toBe(before);
  bench.push([write(700, 9000, 1)]);
  await bench.drained();
  expect(disk?.epochs.allocatedBytes).toBeGreaterThan(before ?? 0);
});
