import type { Status } from "../proto/status.ts";
import { formatBytes, formatDuration, formatRate } from "../cli/quantities.ts";
import type { VitalSigns } from "../shared/control/vital-signs.ts";
import { element, section } from "./element.ts";
import { LivePlot } from "./live-plot.ts";

/** What the plots show of the past. */
export const PLOTTED_MS = 5 * 60_000;

/** Live plots: on a primary how long checkpoints take, on a secondary how old the last one is; lag; what guests write. */
export class PlotsSection {
  readonly #checkpoints = new LivePlot({
    title: "Checkpoint latency",
    format: formatDuration,
    scaleMin: 1,
    windowMs: PLOTTED_MS,
    isOfMoments: true,
    whenEmpty: "none",
  });
  readonly #age = new LivePlot({
    title: "Age of the checkpoint",
    format: formatDuration,
    scaleMin: 1,
    windowMs: PLOTTED_MS,
    whenEmpty: "none",
  });
  readonly #lag = new LivePlot({
    title: "Lag",
    format: formatBytes,
    scaleMin: 1024,
    windowMs: PLOTTED_MS,
    whenEmpty: "not known yet",
  });
  readonly #writes = new LivePlot({
    title: "Guests' writes",
    format: formatRate,
    scaleMin: 1024,
    windowMs: PLOTTED_MS,
    whenEmpty: "not known yet",
  });
  readonly root = section(
    "plots",
    "The last 5 minutes",
    element("div", { class: "plots" }, this.#checkpoints.root, this.#age.root, this.#lag.root, this.#writes.root),
  );

  /** `agentAheadMs`: what the agent's clock has more than this machine's. */
  update({ role }: Status, vitals: VitalSigns, nowMs: number, agentAheadMs: number): void {
    this.#checkpoints.root.hidden = role !== "Primary";
    this.#age.root.hidden = role === "Primary";
    this.#checkpoints.update(
      vitals.checkpoints.map(({ atMs, tookMs }) => ({ atMs: atMs - agentAheadMs, value: tookMs })),
      nowMs,
    );
    const { samples } = vitals;
    this.#age.update(
      samples.map(({ atMs, checkpointAgeMs }) => ({ atMs, value: checkpointAgeMs })),
      nowMs,
    );
    this.#lag.update(
      samples.map(({ atMs, lagBytes }) => ({ atMs, value: lagBytes })),
      nowMs,
    );
    this.#writes.update(
      samples.map(({ atMs, writtenPerSecond }) => ({ atMs, value: writtenPerSecond })),
      nowMs,
    );
  }
}
