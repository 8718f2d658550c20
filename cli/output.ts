/**
 * What a command writes: its result to stdout, everything else to stderr.
 *
 * With `--json` stdout carries JSON documents and nothing else. A reader of stdout that goes away (`| head`) is not an
 * error: what would be written later is dropped, and `readerGone` aborts so that a following command ends.
 * Text that came from an agent, or through it from its peer, cannot carry terminal escapes into human output.
 */
import { styleText } from "node:util";
import type { ColobusError } from "../proto/errors.ts";

/** The part of a writable stream that output needs. */
export interface TextSink {
  readonly isTTY?: boolean;
  readonly columns?: number;
  readonly rows?: number;
  write(text: string | Uint8Array, written?: () => void): unknown;
  on(event: "error" | "resize", listener: (error: NodeJS.ErrnoException) => void): unknown;
}

type Tone = "good" | "bad" | "warn" | "heading" | "quiet";

/** Colours text by its meaning; a function that returns its argument where colours are off. */
export type Paint = (tone: Tone, text: string) => string;

const TONES = { good: "green", bad: "red", warn: "yellow", heading: "bold", quiet: "gray" } as const;

export const paintNothing: Paint = (_tone, text) => text;
/** Whether to colour has been decided by then: styleText would ask the process's own stdout. */
const paintForTerminal: Paint = (tone, text) => styleText(TONES[tone], text, { validateStream: false });

/** Of a screen that does not tell. */
const ROWS_DEFAULT = 24;

export class Output {
  readonly #stdout: TextSink;
  readonly #stderr: TextSink;
  readonly #readerGone = new AbortController();
  readonly #hasBlocks: boolean;
  /** Whether stdout is a screen that can be drawn on. */
  readonly canDraw: boolean;
  readonly paint: Paint;

  constructor(stdout: TextSink, stderr: TextSink, env: Readonly<Record<string, string | undefined>>) {
    this.#stdout = stdout;
    this.#stderr = stderr;
    this.canDraw = stdout.isTTY === true && env.TERM !== "dumb";
    this.#hasBlocks = /utf-?8/i.test([env.LC_ALL, env.LC_CTYPE, env.LANG].find((name) => (name ?? "") !== "") ?? "");
    const colours = this.canDraw && (env.NO_COLOR ?? "") === "";
    this.paint = colours ? paintForTerminal : paintNothing;
    stdout.on("error", () => this.loseReader());
    // Nobody is left to be told.
    stderr.on("error", () => {});
  }

  /** Aborts when nobody reads stdout any more. */
  get readerGone(): AbortSignal {
    return this.#readerGone.signal;
  }

  /** Nobody reads stdout any more. */
  loseReader(): void {
    this.#readerGone.abort();
  }

  /** Columns of the screen. */
  get columns(): number {
    return this.#stdout.columns ?? 100;
  }

  /** The screen's size now, and what can be drawn on it. */
  get size(): { readonly columns: number; readonly rows: number; readonly hasBlocks: boolean } {
    return { columns: this.columns, rows: this.#stdout.rows ?? ROWS_DEFAULT, hasBlocks: this.#hasBlocks };
  }

  /** Whether stdout is a terminal. */
  get isScreen(): boolean {
    return this.#stdout.isTTY === true;
  }

  /** Calls `resized` whenever the screen has another size. */
  onResize(resized: () => void): void {
    this.#stdout.on("resize", resized);
  }

  /** What a terminal is told, as it is; `written` is called when it has gone out. */
  control(text: string, written?: () => void): void {
    if (!this.#readerGone.signal.aborted) this.#stdout.write(text, written);
  }

  /** One JSON document, as one line. */
  document(value: unknown): void {
    this.#write(`${JSON.stringify(value)}\n`);
  }

  /** Bytes on stdout, as they are. Resolves when there is room for more. */
  bytes(bytes: Uint8Array): Promise<void> {
    return new Promise((resolve) => {
      if (this.#readerGone.signal.aborted) resolve();
      else this.#stdout.write(bytes, resolve);
    });
  }

  text(text: string): void {
    this.#write(`${text}\n`);
  }

  /** The result of a command: `value` itself as JSON, or what `render` makes of it. */
  result<T>(json: boolean, value: T, render: (value: T, paint: Paint) => string): void {
    if (json) this.document(value);
    else this.text(render(withoutControlCharacters(value), this.paint));
  }

  /** The reason of a failure, on stderr, and with `json` also as the document on stdout. */
  failure(json: boolean, error: ColobusError): void {
    if (json) this.document({ error: error.toJSON() });
    const { message, action } = withoutControlCharacters(error.toJSON());
    this.#stderr.write(action === "" ? `colobus: ${message}\n` : `colobus: ${message}\n  ${action}\n`);
  }

  /** Something that is not the result, on stderr. It may have several lines, and words from anywhere. */
  remark(text: string): void {
    this.#stderr.write(`${text.replace(UNPRINTABLE, "?")}\n`);
  }

  #write(text: string): void {
    if (!this.#readerGone.signal.aborted) this.#stdout.write(text);
  }
}

const CONTROL_CHARACTERS = /\p{Cc}/gu;
const UNPRINTABLE = /[^\P{Cc}\n\t]/gu;
const LINE_BREAKS = /[\r\n\t]+/g;

/** A copy of `value` whose strings are one line each and have `?` in the place of control characters. */
export function withoutControlCharacters<T>(value: T): T {
  return replaceStrings(value) as T;
}

function replaceStrings(value: unknown): unknown {
  if (typeof value === "string") return value.replace(LINE_BREAKS, " ").replace(CONTROL_CHARACTERS, "?");
  if (Array.isArray(value)) return value.map(replaceStrings);
  if (typeof value === "object" && value !== null) {
    return Object.fromEntries(
      Object.entries(value).map(([key, inner]) => [replaceStrings(key), replaceStrings(inner)]),
    );
  }
  return value;
}
