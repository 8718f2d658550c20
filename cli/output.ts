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
  write(text: string | Uint8Array, written?: () => void): unknown;
  on(event: "error", listener: (error: NodeJS.ErrnoException) => void): unknown;
}

type Tone = "good" | "bad" | "warn" | "heading" | "quiet";

/** Colours text by its meaning; a function that returns its argument where colours are off. */
export type Paint = (tone: Tone, text: string) => string;

const TONES = { good: "green", bad: "red", warn: "yellow", heading: "bold", quiet: "gray" } as const;

export const paintNothing: Paint = (_tone, text) => text;
/** Whether to colour has been decided by then: styleText would ask the process's own stdout. */
const paintForTerminal: Paint = (tone, text) => styleText(TONES[tone], text, { validateStream: false });

const CLEAR_SCREEN = "\u001b[H\u001b[2J";

export class Output {
  readonly #stdout: TextSink;
  readonly #stderr: TextSink;
  readonly #readerGone = new AbortController();
  readonly paint: Paint;

  constructor(stdout: TextSink, stderr: TextSink, env: Readonly<Record<string, string | undefined>>) {
    this.#stdout = stdout;
    this.#stderr = stderr;
    const colours = stdout.isTTY === true && (env.NO_COLOR ?? "") === "" && env.TERM !== "dumb";
    this.paint = colours ? paintForTerminal : paintNothing;
    stdout.on("error", () => this.#readerGone.abort());
    // Nobody is left to be told.
    stderr.on("error", () => {});
  }

  /** Aborts when nobody reads stdout any more. */
  get readerGone(): AbortSignal {
    return this.#readerGone.signal;
  }

  /** Whether stdout is a screen that can be redrawn. */
  get isScreen(): boolean {
    return this.#stdout.isTTY === true;
  }

  /** Columns of the screen. */
  get columns(): number {
    return this.#stdout.columns ?? 100;
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

  /** Replaces what is on the screen; elsewhere, adds the text. */
  redraw<T>(value: T, render: (value: T, paint: Paint) => string): void {
    const text = render(withoutControlCharacters(value), this.paint);
    this.#write(this.isScreen ? `${CLEAR_SCREEN}${text}\n` : `${text}\n\n`);
  }

  /** The reason of a failure, on stderr, and with `json` also as the document on stdout. */
  failure(json: boolean, error: ColobusError): void {
    if (json) this.document({ error: error.toJSON() });
    const { message, action } = withoutControlCharacters(error.toJSON());
    this.#stderr.write(action === "" ? `colobus: ${message}\n` : `colobus: ${message}\n  ${action}\n`);
  }

  /** Something that is not the result, on stderr. */
  remark(text: string): void {
    this.#stderr.write(`${text}\n`);
  }

  #write(text: string): void {
    if (!this.#readerGone.signal.aborted) this.#stdout.write(text);
  }
}

const CONTROL_CHARACTERS = /\p{Cc}/gu;
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
