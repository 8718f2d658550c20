/**
 * The screen of `status --watch`: the status, with what became of it in the last minutes and the last events, in as many
 * lines and columns as there are. Where the window is too small, exports go first, then events, then what is below its end.
 */
import { stripVTControlCharacters } from "node:util";
import type { AgentEvent, Status } from "../proto/status.ts";
import type { VitalSigns } from "../shared/control/vital-signs.ts";
import { renderEventFields } from "./event-fields.ts";
import type { Paint } from "./output.ts";
import { formatBytes, formatDuration, formatRate } from "./quantities.ts";
import { statusSections } from "./render-status.ts";

export interface LiveView {
  readonly status: Status;
  readonly vitals: VitalSigns;
  /** Newest last. */
  readonly events: readonly AgentEvent[];
  /** When the status was asked for, on the clock of the vital signs. */
  readonly atMs: number;
}

export interface ScreenSize {
  readonly columns: number;
  readonly rows: number;
  /** Whether the terminal knows more than ASCII. */
  readonly hasBlocks: boolean;
}

/** What a column of a sparkline stands for, where it stands for time. */
const COLUMN_MS = 2000;
const SPARK_COLUMNS_MAX = 60;
/** What a reader of the vital signs has to keep for the widest sparkline. */
export const LIVE_KEPT_MS = COLUMN_MS * SPARK_COLUMNS_MAX;

const BLOCKS = "▁▂▃▄▅▆▇█";
const ASCII = "_.,-=+*#";
const LABEL_COLUMNS = 13;
/** Of the figures behind a sparkline. */
const FIGURES_COLUMNS = 34;
const EVENT_LINES_MIN = 3;
const EVENT_TYPE_COLUMNS = 20;

/** At most `rows` lines, none wider than the screen. */
export function renderLiveView(view: LiveView, size: ScreenSize, paint: Paint): string[] {
  const { headline, peers, disks, jobs, exports } = statusSections(view.status, paint);
  const always = [headline, renderTrends(view, size, paint), peers, disks, jobs];
  const withoutExports = joined(always);
  const withExports = joined([...always, exports]);
  const events = renderEvents(view.events, paint);
  const eventLines = Math.min(events.length, EVENT_LINES_MIN + 1);
  const above = withExports.length + 1 + eventLines <= size.rows ? withExports : withoutExports;
  const left = Math.max(0, size.rows - above.length - 1);
  const lines = left < 2 || events.length < 2 ? above : joined([above, events.slice(0, left)]);
  return lines.slice(0, size.rows).map((line) => cut(line, size.columns));
}

/** Sections with an empty line between each two, without those that have nothing to say. */
function joined(sections: readonly (readonly string[])[]): string[] {
  return sections.filter((lines) => lines.length > 0).flatMap((lines, index) => (index === 0 ? lines : ["", ...lines]));
}

function renderTrends({ status, vitals, atMs }: LiveView, size: ScreenSize, paint: Paint): string[] {
  const width = Math.min(SPARK_COLUMNS_MAX, size.columns - LABEL_COLUMNS - FIGURES_COLUMNS);
  const over = (valueOf: (sample: VitalSigns["samples"][number]) => number | null): (number | null)[] =>
    columnsOf(
      vitals.samples.map((sample) => ({ atMs: sample.atMs, value: valueOf(sample) })),
      atMs,
      Math.max(1, width),
    );
  const line = (name: string, values: readonly (number | null)[], format: (value: number) => string): string => {
    const known = values.flatMap((value) => (value === null ? [] : [value]));
    const last = known.at(-1);
    const figures = last === undefined ? "" : `${format(last)}, at most ${format(Math.max(...known))}`;
    const spark = width < 1 ? "" : `${paint("good", renderSparkline(values.slice(-width), width, size.hasBlocks))}  `;
    return `  ${name.padEnd(LABEL_COLUMNS - 2)}${spark}${figures}`.trimEnd();
  };
  const checkpoints = vitals.checkpoints.slice(-Math.max(1, width)).map(({ tookMs }) => tookMs);
  const first =
    status.role === "Primary"
      ? line("checkpoint", checkpoints, formatDuration)
      : line(
          "age",
          over(({ checkpointAgeMs }) => checkpointAgeMs),
          formatDuration,
        );
  return [
    first,
    line(
      "lag",
      over(({ lagBytes }) => lagBytes),
      formatBytes,
    ),
    line(
      "writes",
      over(({ writtenPerSecond }) => writtenPerSecond),
      formatRate,
    ),
  ];
}

/** The highest value of each column's time, the last column ending at `endMs`. */
function columnsOf(
  samples: readonly { readonly atMs: number; readonly value: number | null }[],
  endMs: number,
  columns: number,
): (number | null)[] {
  const highest = Array.from({ length: columns }, (): number | null => null);
  for (const { atMs, value } of samples) {
    const column = columns - 1 - Math.floor((endMs - atMs) / COLUMN_MS);
    if (value === null || column < 0 || column >= columns) continue;
    highest[column] = Math.max(highest[column] ?? 0, value);
  }
  return highest;
}

/** One character for each value, the highest full, 0 empty and what is not known blank; at the right of `width` columns. */
export function renderSparkline(values: readonly (number | null)[], width: number, hasBlocks: boolean): string {
  const ramp = hasBlocks ? BLOCKS : ASCII;
  const highest = Math.max(0, ...values.map((value) => value ?? 0));
  const marks = values.map((value) => {
    if (value === null) return " ";
    if (value <= 0) return ramp.charAt(0);
    return ramp.charAt(Math.max(1, Math.ceil((value / highest) * (ramp.length - 1))));
  });
  return marks.join("").padStart(width);
}

/** A heading, then the newest first. */
function renderEvents(events: readonly AgentEvent[], paint: Paint): string[] {
  const lines = events
    .map((event) =>
      [paint("quiet", event.at.slice(11, 19)), event.type.padEnd(EVENT_TYPE_COLUMNS), ...renderEventFields(event)].join(
        "  ",
      ),
    )
    .reverse();
  return [paint("heading", "EVENTS (UTC)"), ...lines];
}

const ESCAPE_OR_CHARACTER = /\p{Cc}\[[\d;]*m|[^]/gu;
const RESET = "\u001b[0m";

/** `line` without what is beyond the last column; colours end there. */
function cut(line: string, columns: number): string {
  if (stripVTControlCharacters(line).length <= columns) return line;
  let kept = "";
  let left = columns;
  for (const [part] of line.matchAll(ESCAPE_OR_CHARACTER)) {
    if (part.startsWith("\u001b[")) kept += part;
    else if (left > 0) {
      kept += part;
      left -= 1;
    }
  }
  return kept.includes("\u001b[") ? `${kept}${RESET}` : kept;
}
