import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DiskModel, ModelWrite } from "../../sim/disk-model.ts";

const SIZE_BYTES = 64;

const write = fc.record({
  offset: fc.nat({ max: SIZE_BYTES - 1 }),
  length: fc.integer({ min: 1, max: SIZE_BYTES }),
  /** When a flush covers it. */
  rank: fc.nat({ max: 5 }),
});

describe("DiskModel", () => {
  it("takes what was flushed for what a loss of power leaves, in whatever order writes were flushed", () => {
    fc.assert(
      fc.property(fc.array(write, { maxLength: 8 }), fc.nat({ max: 6 }), fc.boolean(), (drawn, flushes, isForked) => {
        let model = new DiskModel(Buffer.alloc(SIZE_BYTES));
        const left = Buffer.alloc(SIZE_BYTES);
        const writes = drawn.map(({ offset, length, rank }, index) => {
          const within = Math.min(length, SIZE_BYTES - offset);
          if (rank < flushes) left.fill(index + 1, offset, offset + within);
          return { rank, made: new ModelWrite(offset, within, Buffer.alloc(within, index + 1)) };
        });
        for (const { made } of writes) {
          model.begin(made);
          made.settled = true;
        }
        for (let rank = 0; rank < flushes; rank += 1) {
          model.flushed(new Set(writes.filter((one) => one.rank === rank).map(({ made }) => made)));
        }
        if (isForked) model = model.fork();
        model.crashed("power");
        model.check(left, 0, "the disk");
        const isAllFlushed = writes.every(({ rank }) => rank < flushes);
        expect(model.isInDoubt).toBe(!isAllFlushed);
        if (isAllFlushed) expect(model.content()).toEqual(left);
      }),
      { numRuns: 1_000 },
    );
  });
});
