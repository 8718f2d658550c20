/**
 * Line plots as SVG: the same numbers always give the same bytes. The drawing has a background of its own and follows the
 * reader's preference for light or dark, so that it is readable wherever it is shown.
 */

export interface Axis {
  readonly label: string;
  readonly scale: "linear" | "log";
}

export interface Plot {
  /** Becomes the name of the file. */
  readonly name: string;
  readonly title: string;
  readonly x: Axis;
  readonly y: Axis;
  /** At most as many as there are colours. The points ascend in x; on a log scale only those above 0 are drawn. */
  readonly series: readonly { readonly name: string; readonly points: readonly (readonly [x: number, y: number])[] }[];
}

const WIDTH = 800;
const HEIGHT = 400;
const AREA = { left: 72, top: 40, right: 570, bottom: 346 };
/** So few points are marked each, so that one sees what was measured and what only joins it. */
const MARKED_MAX = 16;
/** About as many marks on an axis. */
const TICKS = 5;

/** Colours that also the colour-blind tell apart (Okabe and Ito), lighter where the background is dark. */
const LIGHT = ["#0072b2", "#d55e00", "#009e73", "#aa4499", "#8a6d00", "#555555"];
const DARK = ["#56b4e9", "#ff8c3a", "#2fd6a3", "#e58fc8", "#e6c229", "#bbbbbb"];
const DASHES = ["", "8 3", "2 3", "10 3 2 3", "5 5", "1 5"];

/** The plot as an SVG document. */
export function drawPlot(plot: Plot): string {
  const series = plot.series.map(({ name, points }) => ({
    name,
    points: points.filter(([x, y]) => isDrawable(x, plot.x) && isDrawable(y, plot.y)),
  }));
  const points = series.flatMap((one) => one.points);
  if (points.length === 0) points.push([1, 1]); // for the axes
  const x = scaleOf(
    plot.x,
    points.map(([value]) => value),
    [AREA.left, AREA.right],
  );
  const y = scaleOf(
    plot.y,
    points.map(([, value]) => value),
    [AREA.bottom, AREA.top],
  );
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}" role="img">`,
    `<title>${escaped(plot.title)}</title>`,
    `<style>${STYLE}</style>`,
    `<rect class="back" width="${WIDTH}" height="${HEIGHT}"/>`,
    text(AREA.left, 24, "start", plot.title, "title"),
    ...x.ticks.flatMap((value) => [
      line(x.at(value), AREA.top, x.at(value), AREA.bottom),
      text(x.at(value), AREA.bottom + 18, "middle", shortNumber(value)),
    ]),
    ...y.ticks.flatMap((value) => [
      line(AREA.left, y.at(value), AREA.right, y.at(value)),
      text(AREA.left - 8, y.at(value) + 4, "end", shortNumber(value)),
    ]),
    text((AREA.left + AREA.right) / 2, AREA.bottom + 40, "middle", plot.x.label),
    `<g transform="translate(16 ${(AREA.top + AREA.bottom) / 2}) rotate(-90)">${text(0, 0, "middle", plot.y.label)}</g>`,
    ...series.flatMap(({ name, points }, index) => [
      `<polyline class="s${index}" points="${path(points.map(([px, py]) => [x.at(px), y.at(py)]))}"/>`,
      ...(points.length > MARKED_MAX ? [] : points.map(([px, py]) => mark(index, x.at(px), y.at(py)))),
      `<line class="s${index}" x1="${AREA.right + 14}" x2="${AREA.right + 40}" y1="${legendY(index)}" y2="${legendY(index)}"/>`,
      text(AREA.right + 46, legendY(index) + 4, "start", name),
    ]),
    "</svg>",
    "",
  ].join("\n");
}

const STYLE = [
  "text{font:12px sans-serif;fill:#222}.title{font-weight:bold}.back{fill:#fff}.grid{stroke:#ddd}",
  "polyline,line{fill:none;stroke-width:1}",
  ...LIGHT.map((colour, index) => `.s${index}{stroke:${colour};stroke-width:2;stroke-dasharray:${dash(index)}}`),
  ".dot{stroke-width:3;stroke-dasharray:none}",
  "@media(prefers-color-scheme:dark){text{fill:#ddd}.back{fill:#161b22}.grid{stroke:#333}",
  ...DARK.map((colour, index) => `.s${index}{stroke:${colour}}`),
  "}",
].join("");

function dash(index: number): string {
  return DASHES[index] === "" ? "none" : (DASHES[index] ?? "none");
}

interface Scale {
  readonly ticks: readonly number[];
  /** The coordinate of a value, rounded to a tenth. */
  at(value: number): number;
}

function scaleOf({ scale }: Axis, values: readonly number[], [from, to]: readonly [number, number]): Scale {
  const [low, high, ticks] = scale === "log" ? logarithmic(values) : fromZero(values);
  const inner = scale === "log" ? Math.log10 : (value: number): number => value;
  const share = (value: number): number => (inner(value) - inner(low)) / (inner(high) - inner(low));
  return { ticks, at: (value) => Math.round((from + share(value) * (to - from)) * 10) / 10 };
}

/** From 1, 2 or 5 times a power of ten to another, around the values; marked at each of them, or only at the powers. */
function logarithmic(values: readonly number[]): [low: number, high: number, ticks: number[]] {
  const first = Math.floor(Math.log10(Math.min(...values)));
  const last = Math.floor(Math.log10(Math.max(...values))) + 1;
  const marks = [];
  for (let power = first; power <= last; power += 1) for (const factor of [1, 2, 5]) marks.push(factor * 10 ** power);
  const low = marks.findLast((mark) => mark <= Math.min(...values)) ?? 1;
  const high = marks.find((mark) => mark > low && mark >= Math.max(...values)) ?? 10;
  const within = marks.filter((mark) => mark >= low && mark <= high);
  const powers = within.filter((mark) => Number.isInteger(Math.log10(mark)));
  return [low, high, powers.length < TICKS ? within : powers];
}

/** From 0 to above the values, in steps of 1, 2 or 5 times a power of ten. */
function fromZero(values: readonly number[]): [low: number, high: number, ticks: number[]] {
  const greatest = Math.max(...values) || 1;
  const rough = greatest / TICKS;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const count = Math.ceil(greatest / step);
  return [0, count * step, Array.from({ length: count + 1 }, (_, index) => index * step)];
}

function isDrawable(value: number, { scale }: Axis): boolean {
  return Number.isFinite(value) && (scale === "linear" || value > 0);
}

/** The points' coordinates; of those in one column of a pixel only the first, and the very last. */
function path(points: readonly (readonly [x: number, y: number])[]): string {
  const kept = points.filter(
    ([x], index) => index === points.length - 1 || Math.round(x) !== Math.round(points[index - 1]?.[0] ?? NaN),
  );
  return kept.map(([x, y]) => `${x},${y}`).join(" ");
}

function legendY(index: number): number {
  return AREA.top + 12 + index * 22;
}

function mark(index: number, x: number, y: number): string {
  return `<circle class="s${index} dot" cx="${x}" cy="${y}" r="1.5"/>`;
}

function line(x1: number, y1: number, x2: number, y2: number): string {
  return `<line class="grid" x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}"/>`;
}

function text(x: number, y: number, anchor: "start" | "middle" | "end", content: string, cssClass = ""): string {
  const attribute = cssClass === "" ? "" : ` class="${cssClass}"`;
  return `<text${attribute} x="${x}" y="${y}" text-anchor="${anchor}">${escaped(content)}</text>`;
}

/** 1500000 is 1.5M, 0.001 stays. */
function shortNumber(value: number): string {
  const steps = [
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ] as const;
  const [unit, suffix] = steps.find(([unit]) => value >= unit) ?? [1, ""];
  return `${Number((value / unit).toPrecision(4))}${suffix}`;
}

function escaped(content: string): string {
  return content.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
