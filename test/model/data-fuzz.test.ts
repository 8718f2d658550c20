import { expect, it } from "vitest";
import { ColobusError } from "../../proto/errors.ts";
import { decodeMessage, encodeData, type DataMessage, type Operation } from "../../proto/replication-messages.ts";
import { FUZZ_RUNS, FUZZ_SEED } from "../support/fuzz-runs.ts";
import { mutate, seededRandom } from "../support/mutate.ts";
import { CLUSTER_BYTES, pattern, seededStorage } from "../support/overlay-bench.ts";
import { imagePath, makeSecondary, ReplicaBench } from "../support/replica-bench.ts";
import { firstDifference } from "../support/volatile-model.ts";

const SIZE = 4 * CLUSTER_BYTES;
const NAMES = ["vda", "vdb"];

/** The operations of a damaged message that the decoder and the writer both take; undefined where one refuses it. */
function tryPush(bench: ReplicaBench, bytes: Buffer): readonly Operation[] | undefined {
  try {
    const message = decodeMessage(bytes);
    if (message.type !== "data") return undefined;
    bench.writer.push(message);
    return message.operations;
  } catch (error) {
    if (error instanceof ColobusError) return undefined;
    throw new Error(`a bug at ${bytes.toString("hex")}`, { cause: error });
  }
}

function apply(disks: readonly Buffer[], { operations }: Pick<DataMessage, "operations">): void {
  for (const { kind, disk, offset, length, payload } of operations) {
    if (kind === "write") payload.copy(disks[disk] ?? Buffer.alloc(0), offset);
    else disks[disk]?.fill(0, offset, offset + length);
  }
}

it(`changes exactly what damaged data messages name, if they are taken at all (${FUZZ_RUNS} messages)`, async () => {
  const storage = seededStorage(FUZZ_SEED);
  await makeSecondary(
    storage,
    NAMES.map((name, index) => ({ name, content: pattern(SIZE, index) })),
    "process",
  );
  const bench = ReplicaBench.open(storage);
  await bench.begin(1);
  await bench.barrier(1);
  await bench.commit(1);
  const committed = NAMES.map((name) => storage.disk.readFile(imagePath(name)));
  const model = committed.map((disk) => Buffer.from(disk));
  const random = seededRandom(FUZZ_SEED);
  const below = (bound: number): number => Math.floor(random() * bound);
  let sequence = 1;
  let taken = 0;
  for (let run = 1; run <= FUZZ_RUNS; run += 1) {
    const length = 1 + below(64);
    const ranges = [0, below(2), below(SIZE - 64), length, 1 + below(2), below(2), below(SIZE - 512), 1 + below(512)];
    const message = Buffer.concat(encodeData(sequence, ranges, [pattern(length, run)]));
    const operations = tryPush(bench, mutate(message, random));
    if (operations !== undefined) {
      sequence += operations.length;
      taken += 1;
      apply(model, { operations });
    }
    if (run % 500 !== 0 && run !== FUZZ_RUNS) continue;
    await bench.drained();
    expect(bench.failure).toBeUndefined();
    for (const [index, name] of NAMES.entries()) {
      expect(firstDifference(storage.disk.readFile(imagePath(name)), model[index] ?? Buffer.alloc(0))).toBeUndefined();
      expect(firstDifference(await bench.readView(index), committed[index] ?? Buffer.alloc(0))).toBeUndefined();
    }
  }
  expect(taken).toBeGreaterThan(FUZZ_RUNS / 100);
  expect(taken).toBeLessThan(FUZZ_RUNS);
}, 120_000);
