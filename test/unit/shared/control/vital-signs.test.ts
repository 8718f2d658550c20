import { describe, expect, it } from "vitest";
import type { AgentEvent } from "../../../../proto/status.ts";
import type { EventType } from "../../../../proto/words.ts";
import { VitalSigns } from "../../../../shared/control/vital-signs.ts";
import { lonelySecondary, protectedPrimary } from "../../../support/status-examples.ts";

const written = (vda: number, vdb: number): string =>
  `# HELP colobus_device_written_bytes_total Bytes\ncolobus_device_written_bytes_total{vm="web",disk="vda"} ${vda}\n` +
  `colobus_device_written_bytes_total{vm="web",disk="vdb"} ${vdb}\ncolobus_lag_bytes{vm="web"} 7\n`;

let sequence = 0;
function event(type: EventType, data: Record<string, unknown>): AgentEvent {
  sequence += 1;
  return { sequence, type, data, at: new Date(1_700_000_000_000 + sequence).toISOString() };
}

describe("vital signs", () => {
  it("tell the rate of guests' writes between two looks, and not across a restart of the agent", () => {
    const vitals = new VitalSigns(60_000);
    vitals.observe(protectedPrimary(), written(1000, 500), 0);
    vitals.observe(protectedPrimary(), written(3000, 1500), 2000);
    vitals.observe(protectedPrimary(), written(10, 0), 3000);
    vitals.observe(protectedPrimary(), written(20, 0), 3500);
    expect(vitals.samples.map(({ writtenPerSecond }) => writtenPerSecond)).toEqual([null, 1500, null, 20]);
  });

  it("tell lag and age, and forget what is too old", () => {
    const vitals = new VitalSigns(1000);
    for (const atMs of [0, 500, 1500]) vitals.observe(protectedPrimary(), "", atMs);
    vitals.observe({ ...lonelySecondary(), recoverable: null }, "", 2500);
    expect(vitals.samples).toEqual([
      { atMs: 1500, lagBytes: 12_288, writtenPerSecond: 0, checkpointAgeMs: 1234 },
      { atMs: 2500, lagBytes: 0, writtenPerSecond: 0, checkpointAgeMs: null },
    ]);
  });

  it("tell how long checkpoints took, with what lies between prepare and commit left out", () => {
    const vitals = new VitalSigns(1000);
    vitals.hear(event("checkpoint-prepared", { epoch: 4, prepareMs: 1 }));
    vitals.hear(event("checkpoint-prepared", { epoch: 5, prepareMs: 2 }));
    vitals.hear(event("checkpoint-committed", { epoch: 5, commitMs: 0.5 }));
    // A secondary, and a primary that hears of its last commit at the handshake, know no times.
    vitals.hear(event("checkpoint-committed", { epoch: 6 }));
    vitals.hear(event("job-changed", { id: "merge-1" }));
    vitals.hear(event("checkpoint-committed", { epoch: 7, commitMs: 3 }));
    expect(vitals.checkpoints.map(({ epoch, tookMs }) => ({ epoch, tookMs }))).toEqual([
      { epoch: 5, tookMs: 2.5 },
      { epoch: 7, tookMs: 3 },
    ]);
  });
});
