import { stripVTControlCharacters } from "node:util";
import { describe, expect, it } from "vitest";
import { paintNothing, type Paint } from "../../../cli/output.ts";
import { renderLiveView, renderSparkline, type LiveView } from "../../../cli/render-live-view.ts";
import type { AgentEvent, Status } from "../../../proto/status.ts";
import { VitalSigns } from "../../../shared/control/vital-signs.ts";
import { lonelySecondary, protectedPrimary, syncingPrimary } from "../../support/status-examples.ts";

const LARGE = { columns: 110, rows: 40, hasBlocks: true };

function eventsOf(count: number): AgentEvent[] {
  return Array.from({ length: count }, (_, index) => ({
    sequence: index + 1,
    at: `2026-01-01T10:00:${String(index).padStart(2, "0")}.000Z`,
    type: "checkpoint-committed" as const,
    data: { epoch: index + 1, commitMs: index + 1 },
  }));
}

/** A view after a minute in which the lag has grown, and `events` have come. */
function viewOf(status: Status, events: readonly AgentEvent[] = eventsOf(5)): LiveView {
  const vitals = new VitalSigns(120_000);
  for (const event of events) vitals.hear(event);
  for (let second = 0; second <= 60; second += 1) {
    const peers = status.peers.map((peer) => ({ ...peer, lagBytes: second * 1024 }));
    vitals.observe(
      { ...status, peers },
      `colobus_device_written_bytes_total{disk="vda"} ${second * 2048}\n`,
      second * 1000,
    );
  }
  return { status, vitals, events, atMs: 60_000 };
}

describe("the live view", () => {
  it("has the status, what became of it, and the last events, the newest first", () => {
    const lines = renderLiveView(viewOf(protectedPrimary()), LARGE, paintNothing);
    expect(lines[0]).toMatch(/^web {2}Primary {2}colo {2}Protected$/);
    const lag = lines.find((line) => line.startsWith("  lag ")) ?? "";
    expect(lag).toContain("60 KiB, at most 60 KiB");
    // 2 s to the column: a minute is 30 columns and the one that has just begun, which grow to the right.
    expect(lag).toMatch(/ ▁?[▂▃▄▅▆▇█]{30,31} {2}60 KiB/);
    expect(lines.find((line) => line.startsWith("  writes "))).toContain("2 KiB/s, at most 2 KiB/s");
    expect(lines.find((line) => line.startsWith("  checkpoint "))).toMatch(/▃▄▆▇█ {2}5 ms, at most 5 ms$/);
    expect(lines.at(-5)).toContain("10:00:04  checkpoint-committed  epoch=5  commitMs=5ms");
    expect(lines.join("\n")).toContain("nbd+unix:///vda");
  });

  it("has the age of the checkpoint where it is shown by a secondary", () => {
    const lines = renderLiveView(viewOf(lonelySecondary()), LARGE, paintNothing);
    expect(lines.some((line) => line.startsWith("  age "))).toBe(true);
    expect(lines.some((line) => line.startsWith("  checkpoint "))).toBe(false);
  });

  it("shows how far a job is, and when it will be done", () => {
    const text = renderLiveView(viewOf(syncingPrimary()), LARGE, paintNothing).join("\n");
    expect(text).toMatch(/full-sync-1.*\[#{8}\.{12}\] {2}40 % .*200 MiB\/s, 31 s left/);
  });

  it("fits into every window, and begins with whether the VM is protected", () => {
    const paint: Paint = (_tone, text) => `\u001b[32m${text}\u001b[39m`;
    const view = viewOf(syncingPrimary(), eventsOf(50));
    for (let rows = 1; rows < 45; rows += 1) {
      for (const columns of [1, 20, 46, 47, 80, 200]) {
        const lines = renderLiveView(view, { columns, rows, hasBlocks: true }, paint);
        expect(lines.length).toBeLessThanOrEqual(rows);
        for (const line of lines) {
          expect(stripVTControlCharacters(line).length).toBeLessThanOrEqual(columns);
          // A colour that was cut must not go on into the next line.
          expect(line.lastIndexOf("\u001b[32m")).toBeLessThanOrEqual(
            Math.max(line.lastIndexOf("\u001b[39m"), line.lastIndexOf("\u001b[0m")),
          );
        }
        expect(stripVTControlCharacters(lines[0] ?? "")).toBe(
          "web  Primary  colo  NotProtected: initial-sync".slice(0, columns),
        );
      }
    }
  });

  it("fills the window with events, and leaves the exports out before them", () => {
    const view = viewOf(protectedPrimary(), eventsOf(50));
    const large = renderLiveView(view, LARGE, paintNothing);
    expect(large).toHaveLength(LARGE.rows);
    const small = renderLiveView(view, { ...LARGE, rows: 20 }, paintNothing);
    expect(small).toHaveLength(20);
    expect(small.join("\n")).not.toContain("nbd+unix");
    expect(small.join("\n")).toContain("EVENTS");
  });
});

describe("a sparkline", () => {
  it("is full at the highest value, empty at 0, and blank where nothing is known", () => {
    expect(renderSparkline([null, 0, 1, 50, 100], 8, true)).toBe("    ▁▂▅█");
    expect(renderSparkline([0, 0], 3, true)).toBe(" ▁▁");
    expect(renderSparkline([], 3, true)).toBe("   ");
    expect(renderSparkline([0, 1, 100], 3, false)).toBe("_.#");
  });
});
