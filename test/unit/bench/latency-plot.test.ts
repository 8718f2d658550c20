import { describe, expect, it } from "vitest";
import type { Load } from "../../bench/fio.ts";
import { latencyPlot } from "../../bench/latency-plot.ts";

const LOAD: Load = {
  requestsPerSecond: 1,
  bytesPerSecond: 1,
  meanUs: 1,
  p50Us: 1,
  p99Us: 1,
  p999Us: 1,
  maxUs: 1,
  latencies: [],
};

describe("a plot of latencies", () => {
  it("has the share of all requests of all rounds that took longer, down to what is chance", () => {
    const loads = [
      {
        ...LOAD,
        latencies: [
          [10, 30_000],
          [40, 9_998],
        ] as const,
      },
      {
        ...LOAD,
        latencies: [
          [20, 10_000],
          [40, 1],
          [90, 1],
        ] as const,
      },
    ];
    const [series] = latencyPlot("load", [{ name: "one", loads }]).series;
    expect(series?.points).toEqual([
      [10, 0.4],
      [20, 0.2],
    ]);
  });

  it("has no points of a contestant without a round", () => {
    expect(latencyPlot("load", [{ name: "one", loads: [] }]).series).toEqual([{ name: "one", points: [] }]);
  });
});
