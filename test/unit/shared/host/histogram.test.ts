import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Histogram } from "../../../../shared/host/histogram.ts";

describe("a histogram", () => {
  it("counts for each bound what is not above it, as often as it was observed", () => {
    const bounds = [1, 2, 5];
    const observed = fc.array(fc.tuple(fc.integer({ min: 0, max: 8 }), fc.integer({ min: 1, max: 3 })));
    fc.assert(
      fc.property(observed, (values) => {
        const histogram = new Histogram(bounds);
        for (const [value, times] of values) histogram.observe(value, times);
        const notAbove = (bound: number): number =>
          values.reduce((sum, [value, times]) => sum + (value <= bound ? times : 0), 0);
        expect(histogram.cumulative()).toEqual([...bounds, Infinity].map(notAbove));
        expect(histogram.sum).toBe(values.reduce((sum, [value, times]) => sum + value * times, 0));
      }),
    );
  });
});
