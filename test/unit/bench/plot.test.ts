import { describe, expect, it } from "vitest";
import { drawPlot, type Plot } from "../../bench/plot.ts";

const PLOT: Plot = {
  name: "depth",
  title: "a < b & c",
  x: { label: "requests in flight", scale: "log" },
  y: { label: "IOPS", scale: "linear" },
  series: [
    {
      name: "one",
      points: [
        [1, 0],
        [10, 5],
        [100, 10],
      ],
    },
    {
      name: "two",
      points: [
        [1, 10],
        [100, 10],
      ],
    },
  ],
};

describe("a plot", () => {
  it("draws the least value at one end of its axis and the greatest at the other", () => {
    expect(linesOf(PLOT)).toEqual(["72,346 321,193 570,40", "72,40 570,40"]);
  });

  it("marks the points of a line that has few of them", () => {
    const circles = (plot: Plot) => drawPlot(plot).match(/<circle class="s0 dot"/g)?.length ?? 0;
    const withPoints = (count: number): Plot => ({
      ...PLOT,
      series: [{ name: "one", points: Array.from({ length: count }, (_, index): [number, number] => [index + 1, 1]) }],
    });
    expect([circles(withPoints(16)), circles(withPoints(17))]).toEqual([16, 0]);
  });

  it("leaves out what a logarithmic axis cannot show", () => {
    const [series] = PLOT.series;
    expect(linesOf({ ...PLOT, series: [{ name: "one", points: [[0, 3], ...(series?.points ?? [])] }] })[0]).toBe(
      "72,346 321,193 570,40",
    );
  });

  it("marks each decade of a long axis, and more of a short one", () => {
    expect(marksOf(PLOT)).toEqual(["1", "2", "5", "10", "20", "50", "100"]);
    const points = [
      [0.001, 1],
      [1000, 1],
    ] as const;
    expect(marksOf({ ...PLOT, series: [{ name: "one", points }] })).toEqual([
      "0.001",
      "0.01",
      "0.1",
      "1",
      "10",
      "100",
      "1k",
    ]);
  });

  it("gives the same bytes for the same numbers, in light and in dark, with its words escaped", () => {
    const drawn = drawPlot(PLOT);
    expect(drawPlot(structuredClone(PLOT))).toBe(drawn);
    expect(drawn).toContain("prefers-color-scheme:dark");
    expect(drawn).toContain("<title>a &lt; b &amp; c</title>");
  });

  it("draws what has no points yet", () => {
    expect(linesOf({ ...PLOT, series: [{ name: "none", points: [] }] })).toEqual([""]);
  });
});

function linesOf(plot: Plot): (string | undefined)[] {
  return [...drawPlot(plot).matchAll(/<polyline class="s\d" points="([^"]*)"/g)].map(([, points]) => points);
}

/** The marks on the horizontal axis. */
function marksOf(plot: Plot): (string | undefined)[] {
  return [...drawPlot(plot).matchAll(/y="364" text-anchor="middle">([^<]*)</g)].map(([, mark]) => mark);
}
