import { describe, expect, it } from "vitest";
import { paintNothing } from "../../../cli/output.ts";
import { renderBar } from "../../../cli/render-jobs.ts";
import { renderStatus } from "../../../cli/render-status.ts";
import { renderTable } from "../../../cli/render-table.ts";
import { protectedPrimary } from "../../support/status-examples.ts";

describe("progress bars", () => {
  it.each([
    [0, 100, "[....................]"],
    [1, 100, "[#...................]"],
    [50, 100, "[##########..........]"],
    [99.99, 100, "[###################.]"],
    [100, 100, "[####################]"],
    [0, 0, "[####################]"],
  ])("%d of %d", (done, total, bar) => {
    expect(renderBar(done, total)).toBe(bar);
  });
});

describe("tables", () => {
  it("align columns by what is seen, not by colour codes", () => {
    const paint = (_tone: string, text: string): string => `\u001b[31m${text}\u001b[39m`;
    const lines = renderTable(
      [{ title: "A" }, { title: "N", align: "right" }, { title: "Z" }],
      [
        [paint("bad", "long"), "1", "x"],
        ["s", "100", ""],
      ],
      paintNothing,
    );
    expect(lines).toEqual(["A       N  Z", "\u001b[31mlong\u001b[39m    1  x", "s     100"]);
  });
});

describe("the status screen", () => {
  it("paints protection green and its absence red", () => {
    const paint = (tone: string, text: string): string => `<${tone}>${text}</>`;
    expect(renderStatus(protectedPrimary(), paint)).toContain("<good>Protected</>");
    const unprotected = {
      ...protectedPrimary(),
      protection: { state: "NotProtected", reason: "no-peer", nextAction: "" },
    } as const;
    expect(renderStatus(unprotected, paint)).toContain("<bad>NotProtected: no-peer</>");
  });

  it("says that the agent was held up, but nothing of the delays that any process has", () => {
    const delayed = (maxMs: number) =>
      renderStatus(
        {
          ...protectedPrimary(),
          eventLoopDelay: { overMs: 55_000, p50Ms: 0.2, p99Ms: 1, p999Ms: maxMs, maxMs, stalls: 0 },
        },
        (tone, text) => `<${tone}>${text}</>`,
      );
    expect(delayed(249)).not.toContain("held up");
    expect(delayed(250)).toContain("held up   <warn>for 250 ms in the last 55 s: requests had to wait</>");
    expect(delayed(1000)).toContain("<bad>for 1 s in the last 55 s");
  });

  it("leaves out what there is none of", () => {
    const bare = {
      ...protectedPrimary(),
      peers: [],
      disks: [],
      copies: [],
      hosts: [],
      jobs: [],
      exports: [],
      recoverable: null,
    };
    const text = renderStatus(bare, paintNothing);
    expect(text).not.toMatch(/PEER|DISK|JOB|EXPORT/);
    expect(text).toContain("not possible: no secondary holds the last checkpoint");
  });
});
