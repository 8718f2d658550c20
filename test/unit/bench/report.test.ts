import { existsSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { withSection } from "../../../tools/generated-sections.ts";
import { BENCHES } from "../../bench/benches.ts";
import { isKept, percentile, rotated, type Target } from "../../bench/measuring.ts";
import { BENCHMARKS_DOC, benchSection, renderText, type Result } from "../../bench/report.ts";

const ROOT = new URL("../../../", import.meta.url);
const DOCUMENT = readFileSync(new URL(BENCHMARKS_DOC, ROOT), "utf8");
const MACHINE = { processor: "CPU", cores: 2, memoryGib: 4, kernel: "6.1", versions: { fio: "3.33" } };
const RESULT: Result = {
  bench: "peers",
  place: "memory",
  rounds: 3,
  tables: [{ title: "load", rows: [{ what: "us", figures: { "IOPS": 12_345.6, "p99 µs": 0.5, "MiB": null } }] }],
  targets: [
    { what: "us beside them", value: 1.234, unit: "times", atLeast: 1.3 },
    { what: "worst", value: 1.5, unit: "ms", atMost: 2 },
    { what: "more", value: 3, unit: "times" },
  ],
  plots: [{ name: "a, b", title: "t", x: { label: "x", scale: "log" }, y: { label: "y", scale: "log" }, series: [] }],
};

describe("a report of the benchmarks", () => {
  it.each(Object.keys(BENCHES))(
    "has a place in docs/benchmarks.md for %s, and leaves what is written by hand",
    (bench) => {
      const written = withSection(DOCUMENT, benchSection(bench, [{ ...RESULT, bench }], MACHINE));
      expect(written).toContain("| us | 12346 | 0.50 | – |");
      const byHand = "## What was tried and did not help";
      expect(written.slice(written.indexOf(byHand))).toBe(DOCUMENT.slice(DOCUMENT.indexOf(byHand)));
      expect(DOCUMENT).toContain(byHand);
    },
  );

  it("shows only plots that are there", () => {
    const shown = [...DOCUMENT.matchAll(/\]\((benchmarks\/[^)]+)\)/g)].map(([, path]) => `docs/${path ?? ""}`);
    expect(shown.filter((path) => !existsSync(new URL(path, ROOT)))).toEqual([]);
  });

  it("names the machine, links its plots, and tells which targets were met", () => {
    const { body } = benchSection("peers", [RESULT], MACHINE);
    expect(body).toContain("Medians of 3 rounds on CPU, 2 cores, 4 GiB of memory, Linux 6.1; fio 3.33.");
    expect(body).toContain("(benchmarks/peers-memory-a-b.svg)");
    expect(body).toContain("| us beside them | 1.23 times | at least 1.3 | no |");
    expect(body).toContain("| worst | 1.50 ms | at most 2 ms | yes |");
    expect(body).toContain("| more | 3.00 times | for information |  |");
    expect(renderText(RESULT)).toContain("us beside them: 1.23 times (at least 1.3: no)");
  });
});

describe("a target", () => {
  const kept = (bounds: Pick<Target, "atLeast" | "atMost">) => isKept({ what: "", unit: "ms", value: 2, ...bounds });

  it("is met on its bounds, and always where it has none", () => {
    expect([kept({}), kept({ atLeast: 2, atMost: 2 })]).toEqual([true, true]);
  });

  it("is not met beyond either bound, nor by what could not be measured", () => {
    expect([kept({ atLeast: 2.1 }), kept({ atMost: 1.9 })]).toEqual([false, false]);
    expect(isKept({ what: "", unit: "times", value: NaN, atLeast: 1 })).toBe(false);
  });
});

describe("measuring", () => {
  it("takes as p99 of few figures the worst of them", () => {
    expect(percentile([3, 1, 2], 0.99)).toBe(3);
    expect(percentile([3, 1, 2, 4], 0.5)).toBe(2);
  });

  it("gives everyone each place in the order once", () => {
    const orders = [1, 2, 3].map((round) => rotated(["a", "b", "c"], round).join(""));
    expect(orders.sort()).toEqual(["abc", "bca", "cab"]);
  });
});
