import { createHash } from "node:crypto";
import { expect, it } from "vitest";
import { JOB_CHUNK_BYTES } from "../../../proto/limits.ts";
import { ReplicaChecksums } from "../../../secondary/replica-checksums.ts";
import { CLUSTER_BYTES, pattern, seededStorage } from "../../support/overlay-bench.ts";
import { makeSecondary, ReplicaBench } from "../../support/replica-bench.ts";

const SIZE = 2 * JOB_CHUNK_BYTES + CLUSTER_BYTES;

function sha256(content: Buffer): Buffer {
  return createHash("sha256").update(content).digest();
}

async function begun(mode: "colo" | "mc", content: Buffer): Promise<ReplicaBench> {
  const files = seededStorage(3, 0.2);
  await makeSecondary(files, [{ name: "vda", content }], "process", { mode });
  const bench = ReplicaBench.open(files);
  await bench.begin(1);
  return bench;
}

async function checksum(bench: ReplicaBench, offset: number, length: number): Promise<Buffer> {
  const [disk] = bench.disks;
  if (disk === undefined) throw new Error("there is no disk");
  return new ReplicaChecksums().read(disk, offset, length);
}

it.each(["colo", "mc"] as const)("the checksum is that of the newest content, in mode %s", async (mode) => {
  const bench = await begun(mode, pattern(SIZE, 1));
  await bench.prepareAndCommit(1);
  bench.push([{ kind: "write", disk: 0, offset: 3000, length: 5000, payload: pattern(5000, 2) }]);
  await bench.drained();
  const expected = pattern(SIZE, 1);
  pattern(5000, 2).copy(expected, 3000);
  for (const [offset, length] of [
    [0, CLUSTER_BYTES],
    [3000, 1],
    [512, JOB_CHUNK_BYTES - 512],
  ] as const) {
    expect(await checksum(bench, offset, length)).toEqual(sha256(expected.subarray(offset, offset + length)));
  }
});

it("the checksum of zeroes is empty, in a hole or not, and one byte is enough for another", async () => {
  const content = Buffer.alloc(SIZE);
  const bench = await begun("colo", content);
  expect(await checksum(bench, 0, SIZE)).toHaveLength(0);
  expect(await checksum(bench, 100, 5000)).toHaveLength(0);
  bench.push([{ kind: "write", disk: 0, offset: 0, length: CLUSTER_BYTES, payload: Buffer.alloc(CLUSTER_BYTES) }]);
  bench.push([{ kind: "write", disk: 0, offset: SIZE - 1, length: 1, payload: Buffer.from([1]) }]);
  await bench.drained();
  expect(await checksum(bench, 0, SIZE - 1)).toHaveLength(0);
  expect(await checksum(bench, 0, SIZE)).toHaveLength(32);
  const last = Buffer.alloc(CLUSTER_BYTES);
  last[CLUSTER_BYTES - 1] = 1;
  expect(await checksum(bench, SIZE - CLUSTER_BYTES, CLUSTER_BYTES)).toEqual(sha256(last));
});
