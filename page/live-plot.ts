import uPlot from "uplot";
import { element, setText } from "./element.ts";

export interface PlotOptions {
  readonly title: string;
  /** What a value is written as. */
  readonly format: (value: number) => string;
  readonly windowMs: number;
  /** The scale goes up to this at least. */
  readonly scaleMin: number;
  /** Each value stands for itself, as of a checkpoint, and not for all the time until the next. */
  readonly isOfMoments?: boolean;
  /** Said where there is no value. */
  readonly whenEmpty: string;
}

export interface PlotPoint {
  readonly atMs: number;
  readonly value: number | null;
}

const HEIGHT = 132;
const AXIS_WIDTH = 64;
const AXIS_HEIGHT = 28;
/** What may lie between two marks of time, in seconds. */
const MINUTES = [60, 120, 300];
const FONT = "12px system-ui, sans-serif";

/** One figure over the last minutes. Who cannot see the curve is told the last value and the highest. */
export class LivePlot {
  readonly #options: PlotOptions;
  readonly #now = element("span", { class: "now" });
  readonly #canvas = element("div", { class: "canvas", role: "img" });
  readonly root: HTMLElement;
  #plot: uPlot | undefined;
  #data: uPlot.AlignedData = [[], []];
  #endMs = 0;

  constructor(options: PlotOptions) {
    this.#options = options;
    const caption = element("figcaption", {}, element("h3", {}, options.title), this.#now);
    this.root = element("figure", { class: "plot" }, caption, this.#canvas);
    new ResizeObserver(() => this.#fit()).observe(this.#canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#build());
  }

  /** Shows the points of the window that ends at `nowMs`; they are in the order of their times. */
  update(points: readonly PlotPoint[], nowMs: number): void {
    const { format, title, whenEmpty, windowMs } = this.#options;
    const shown = points.filter(({ atMs }) => atMs >= nowMs - windowMs);
    const values = shown.flatMap(({ value }) => (value === null ? [] : [value]));
    const last = values.at(-1);
    setText(this.#now, last === undefined ? whenEmpty : format(last));
    const minutes = Math.round(windowMs / 60_000);
    const told =
      last === undefined
        ? `${title}: ${whenEmpty}`
        : `${title}: ${format(last)}, at most ${format(Math.max(...values))} in the last ${minutes} minutes`;
    this.#canvas.setAttribute("aria-label", told);
    this.#data = [shown.map(({ atMs }) => atMs / 1000), shown.map(({ value }) => value)];
    this.#endMs = nowMs;
    this.#plot?.setData(this.#data);
  }

  #fit(): void {
    const width = this.#canvas.clientWidth;
    if (width === 0) return;
    if (this.#plot === undefined) this.#build();
    else if (this.#plot.width !== width) this.#plot.setSize({ width, height: HEIGHT });
  }

  /** A plot has its colours from when it is made. */
  #build(): void {
    this.#plot?.destroy();
    const style = getComputedStyle(this.root);
    const colour = (name: string): string => style.getPropertyValue(name).trim();
    const { format, windowMs, scaleMin, isOfMoments = false } = this.#options;
    const axis = {
      font: FONT,
      stroke: colour("--muted"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { stroke: colour("--line"), width: 1, size: 4 },
    };
    this.#plot = new uPlot(
      {
        width: this.#canvas.clientWidth,
        height: HEIGHT,
        padding: [10, 14, 0, 0],
        legend: { show: false },
        cursor: { show: false },
        scales: {
          x: { time: true, range: () => [(this.#endMs - windowMs) / 1000, this.#endMs / 1000] },
          y: { range: (_plot, _min, max) => [0, Math.max(scaleMin, max ?? 0) * 1.15] },
        },
        axes: [
          { ...axis, size: AXIS_HEIGHT, space: 44, incrs: MINUTES, values: (_plot, seconds) => seconds.map(clockTime) },
          {
            ...axis,
            size: AXIS_WIDTH,
            space: 34,
            splits: (_plot, _axis, _min, max) => [0, max / 2.3, max / 1.15],
            values: (_plot, values) => values.map(format),
          },
        ],
        series: [
          {},
          {
            stroke: colour("--accent"),
            width: isOfMoments ? 1 : 2,
            ...(isOfMoments ? {} : { fill: colour("--accent-faint") }),
            points: { show: isOfMoments, size: 5, fill: colour("--accent") },
          },
        ],
      },
      this.#data,
      this.#canvas,
    );
  }
}

/** `09:05`. */
function clockTime(seconds: number): string {
  const at = new Date(seconds * 1000);
  return [at.getHours(), at.getMinutes()].map((part) => String(part).padStart(2, "0")).join(":");
}
