/**
 * The text that Prometheus reads (exposition format 0.0.4). The agent counts for itself, and this is put together when
 * somebody asks: nothing is registered, and no series outlives what it is about.
 */
import assert from "node:assert/strict";
import { METRICS, type MetricName, type MetricRow } from "../../proto/metrics.ts";
import type { Histogram } from "../host/histogram.ts";

export const EXPOSITION_TYPE = "text/plain; version=0.0.4; charset=utf-8";

export type Labels = Readonly<Record<string, string>>;

export class Exposition {
  readonly #samples = new Map<MetricName, string[]>();
  readonly #common: Labels;

  /** `common`: labels of every series. */
  constructor(common: Labels) {
    this.#common = common;
  }

  /** A series of a gauge or a counter. The labels are those that the metric is declared with. */
  add(name: MetricName, labels: Labels, value: number): void {
    this.#push(name, labels, `${name}${this.#render(labels)} ${formatValue(value)}`);
  }

  /** One series for each of `all`: 1 for `current`, 0 for the others. */
  addStates(name: MetricName, labels: Labels, label: string, all: readonly string[], current: string | null): void {
    for (const state of all) this.add(name, { ...labels, [label]: state }, state === current ? 1 : 0);
  }

  addHistogram(name: MetricName, labels: Labels, histogram: Histogram): void {
    const counts = histogram.cumulative();
    const buckets = counts.map((count, index) => {
      const bound = histogram.bounds[index];
      const le = bound === undefined ? "+Inf" : String(bound);
      return `${name}_bucket${this.#render({ ...labels, le })} ${count}`;
    });
    const rendered = this.#render(labels);
    this.#push(
      name,
      labels,
      ...buckets,
      `${name}_sum${rendered} ${formatValue(histogram.sum)}`,
      `${name}_count${rendered} ${counts.at(-1) ?? 0}`,
    );
  }

  /** Everything that was added, a metric's series together, in the order of their declarations. */
  render(): string {
    const lines: string[] = [];
    for (const [name, row] of Object.entries<MetricRow>(METRICS)) {
      const samples = this.#samples.get(name as MetricName);
      if (samples === undefined) continue;
      lines.push(`# HELP ${name} ${row.help}.`, `# TYPE ${name} ${row.type}`, ...samples);
    }
    return `${lines.join("\n")}\n`;
  }

  #push(name: MetricName, labels: Labels, ...samples: string[]): void {
    const declared: readonly string[] = METRICS[name].labels;
    assert.deepEqual(Object.keys(labels), declared, `the labels of ${name}`);
    const before = this.#samples.get(name);
    if (before === undefined) this.#samples.set(name, samples);
    else before.push(...samples);
  }

  #render(labels: Labels): string {
    const all = Object.entries({ ...this.#common, ...labels });
    return `{${all.map(([label, value]) => `${label}="${escapeLabel(value)}"`).join(",")}}`;
  }
}

function escapeLabel(value: string): string {
  return value.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}

function formatValue(value: number): string {
  if (Number.isFinite(value)) return String(value);
  return value > 0 ? "+Inf" : value < 0 ? "-Inf" : "NaN";
}
