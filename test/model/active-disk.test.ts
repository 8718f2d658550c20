import * as fc from "fast-check";
import { expect, it } from "vitest";
import { ActiveDisk } from "../../secondary/active-disk.ts";
import { turn } from "../support/memory-storage.ts";
import { VolatileModel } from "../support/volatile-model.ts";
import { CLUSTER_BYTES, overlaysOn, pattern, seededStorage } from "../support/overlay-bench.ts";

const SIZE = 5 * CLUSTER_BYTES + 1536;
const EPOCH = 3;

type Step =
  | { readonly do: "write" | "zero"; readonly offset: number; readonly length: number }
  | { readonly do: "flush" | "crash" | "power" };

const unit = fc.constantFrom(1, 7, CLUSTER_BYTES / 32, 512, CLUSTER_BYTES);
const change: fc.Arbitrary<Step> = fc
  .record({
    do: fc.constantFrom("write" as const, "zero" as const),
    unit,
    at: fc.nat({ max: SIZE }),
    count: fc.integer({ min: 1, max: 40 }),
  })
  .map(({ do: what, unit: bytes, at, count }) => {
    const offset = Math.min(SIZE - 1, Math.floor(at / bytes) * bytes);
    return { do: what, offset, length: Math.min(SIZE - offset, count * bytes) };
  });
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 10, arbitrary: change },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("flush" as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constantFrom("crash" as const, "power" as const) }) },
);

async function runSteps(seed: number, steps: readonly Step[], concurrent: boolean): Promise<void> {
  const below = pattern(SIZE, seed);
  const readBelow = (target: Uint8Array, offset: number): Promise<void> | undefined => {
    const fill = (): void => target.set(below.subarray(offset, offset + target.length));
    if ((seed + offset) % 3 === 0) return turn().then(fill);
    fill();
    return undefined;
  };
  const storage = seededStorage(seed, 0.3);
  const context = overlaysOn(storage, SIZE);
  let active = new ActiveDisk(context, EPOCH);
  const model = new VolatileModel(below);

  const view = async (): Promise<Buffer> => {
    const bytes = Buffer.from(below);
    for (let at = 0; at < SIZE;) {
      const clusterEnd = Math.min(SIZE, (Math.floor(at / CLUSTER_BYTES) + 1) * CLUSTER_BYTES);
      const { held, end } = active.stretch(at, clusterEnd);
      expect(active.has(Math.floor(at / CLUSTER_BYTES)) || !held).toBe(true);
      if (held) await active.readData(bytes.subarray(at, end), at);
      at = end;
    }
    return bytes;
  };

  let pending: Promise<void>[] = [];
  for (const [index, action] of steps.entries()) {
    if (action.do === "write" || action.do === "zero") {
      const bytes = action.do === "write" ? pattern(action.length, seed * 1000 + index) : Buffer.alloc(action.length);
      const writing = active.write(action.do === "write" ? bytes : action.length, action.offset, readBelow);
      model.change(bytes, action.offset);
      await writing;
      continue;
    }
    if (action.do === "flush") {
      // A flush that runs beside later writes covers those before it: the model learns of none.
      if (concurrent) pending.push(active.flush());
      else {
        await active.flush();
        model.flushed();
      }
      continue;
    }
    await Promise.all(pending);
    pending = [];
    const power = action.do === "power";
    storage.crash(power ? "power" : "process");
    active = ActiveDisk.recover(context, EPOCH, power);
    const found = await view();
    if (power) model.lostPower(found);
    expect(found.equals(model.content)).toBe(true);
  }
  await Promise.all(pending);
  expect((await view()).equals(model.content)).toBe(true);
}

it("holds every write through crashes, and every flushed one through losses of power", async () => {
  await fc.assert(
    fc.asyncProperty(fc.nat(), fc.array(step, { maxLength: 40, size: "max" }), (seed, steps) =>
      runSteps(seed, steps, false),
    ),
    { numRuns: 200 },
  );
});

it("holds every write while flushes run beside them", async () => {
  await fc.assert(
    fc.asyncProperty(fc.nat(), fc.array(step, { maxLength: 40, size: "max" }), (seed, steps) =>
      runSteps(seed, steps, true),
    ),
    { numRuns: 60 },
  );
});
