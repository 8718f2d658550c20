import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { PageTable } from "../../sim/page-table.ts";

const SIZE_BYTES = 6 * 4096;

const operation = fc.record({
  what: fc.constantFrom("write", "zero", "zeroAllocated", "allocate", "truncate", "clone"),
  offset: fc.nat({ max: SIZE_BYTES - 1 }),
  length: fc.integer({ min: 1, max: 9_000 }),
  fill: fc.integer({ min: 1, max: 255 }),
});

describe("PageTable", () => {
  it("reads like an array of bytes, and never changes under a copy", () => {
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 25 }), (operations) => {
        let table = new PageTable();
        let model = Buffer.alloc(0);
        const copies: [PageTable, Buffer][] = [];
        const grow = (end: number): void => {
          if (end > model.length) model = Buffer.concat([model, Buffer.alloc(end - model.length)]);
        };
        for (const { what, offset, length, fill } of operations) {
          const end = offset + length;
          if (what === "write") {
            table.write(Buffer.alloc(length, fill), offset);
            grow(end);
            model.fill(fill, offset, end);
          } else if (what === "allocate") {
            table.allocate(offset, length);
            grow(end);
          } else if (what === "truncate") {
            table.truncate(offset);
            grow(offset);
            model = Buffer.from(model.subarray(0, offset));
          } else if (what === "clone") {
            const copy = table.clone();
            copies.push([fill % 2 === 0 ? copy : table, Buffer.from(model)]);
            if (fill % 2 !== 0) table = copy;
          } else {
            table.zero(offset, length, what === "zeroAllocated");
            model.subarray(offset, end).fill(0);
          }
        }
        for (const [copy, expected] of [...copies, [table, model] as const]) {
          const content = Buffer.alloc(copy.sizeBytes, 0xaa);
          copy.read(content, 0);
          expect(content.equals(expected)).toBe(true);
        }
      }),
      { numRuns: 300 },
    );
  });
});
