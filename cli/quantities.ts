/** Durations and sizes as people write and read them. */
import type { JobSpeed } from "../proto/status.ts";
import { ColobusError } from "../proto/errors.ts";

const DURATION_UNITS_MS = new Map([
  ["ms", 1],
  ["s", 1000],
  ["m", 60_000],
  ["min", 60_000],
  ["h", 3_600_000],
  ["d", 86_400_000],
]);

const SIZE_PREFIXES = ["K", "M", "G", "T", "P"] as const;

const NUMBER_WITH_UNIT = /^(\d+(?:\.\d+)?)\s*([A-Za-z]*)$/;

/**
 * Milliseconds of `5s`, `100ms`, `1.5m`, `2h`, `1d`. A unit is required, except with 0.
 * `name` is what the text was given for, such as `--timeout`; it begins the message of the `usage` error.
 */
export function parseDuration(text: string, name: string): number {
  const match = NUMBER_WITH_UNIT.exec(text.trim());
  const value = Number(match?.[1]);
  if (match !== null && match[2] === "" && value === 0) return 0;
  const unitMs = match?.[2] === undefined ? undefined : DURATION_UNITS_MS.get(match[2]);
  if (unitMs === undefined) {
    throw new ColobusError(
      "usage",
      `${name} ${quoted(text)} is not a duration.`,
      "Write a number and a unit: 100ms, 5s, 2m, 1h.",
    );
  }
  return value * unitMs;
}

/**
 * Bytes of `4096`, `64KiB`, `10G`, `1.5TiB`. K, M, G, T and P are powers of 1024, with or without `iB`.
 * `name` is what the text was given for; it begins the message of the `usage` error.
 */
export function parseSize(text: string, name: string): number {
  const match = NUMBER_WITH_UNIT.exec(text.trim());
  const factor = match?.[2] === undefined ? undefined : sizeFactor(match[2]);
  const bytes = factor === undefined ? Number.NaN : Number(match?.[1]) * factor;
  if (!Number.isSafeInteger(bytes)) {
    throw new ColobusError(
      "usage",
      `${name} ${quoted(text)} is not a size in bytes.`,
      "Write a number with or without a binary unit: 4096, 64KiB, 512M, 10GiB.",
    );
  }
  return bytes;
}

/** Bytes per second of `50MiB`, `50MiB/s` or `0` (no limit), or `dynamic`. `name` as for `parseSize`. */
export function parseJobSpeed(text: string, name: string): JobSpeed {
  return text.trim() === "dynamic" ? "dynamic" : parseSize(text.trim().replace(/\/s$/, ""), name);
}

function sizeFactor(unit: string): number | undefined {
  if (unit === "" || unit === "B") return 1;
  const match = /^([kKMGTP])(?:iB)?$/.exec(unit);
  if (match === null) return undefined;
  return 1024 ** (SIZE_PREFIXES.findIndex((prefix) => prefix === match[1]?.toUpperCase()) + 1);
}

/** `0 B`, `512 B`, `4 KiB`, `1.5 GiB`: three significant digits. */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = "B";
  for (const prefix of SIZE_PREFIXES) {
    // What would be rounded to 1024 of this unit is 1 of the next.
    if (Number(value.toPrecision(4)) < 1023.5) break;
    value /= 1024;
    unit = `${prefix}iB`;
  }
  return `${unit === "B" ? Math.round(value) : shortNumber(value)} ${unit}`;
}

export function formatRate(bytesPerSecond: number): string {
  return `${formatBytes(bytesPerSecond)}/s`;
}

/** `0.8 ms`, `120 ms`, `1.2 s`, `59 s`, `2 min 5 s`, `3 h 12 min`, `2 d 4 h`. */
export function formatDuration(ms: number): string {
  if (ms < 999.5) return `${shortNumber(ms)} ms`;
  if (ms < 59_500) return `${shortNumber(ms / 1000)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return pair(Math.floor(seconds / 60), "min", seconds % 60, "s");
  const minutes = Math.round(ms / 60_000);
  if (minutes < 24 * 60) return pair(Math.floor(minutes / 60), "h", minutes % 60, "min");
  const hours = Math.round(ms / 3_600_000);
  return pair(Math.floor(hours / 24), "d", hours % 24, "h");
}

function pair(large: number, largeUnit: string, small: number, smallUnit: string): string {
  return small === 0 ? `${large} ${largeUnit}` : `${large} ${largeUnit} ${small} ${smallUnit}`;
}

/** At least two significant digits, and no digits after the point from ten on, without trailing zeroes. */
function shortNumber(value: number): string {
  if (value >= 9.95) return String(Math.round(value));
  if (value >= 0.095) return String(Math.round(value * 10) / 10);
  return String(Math.round(value * 1000) / 1000);
}

function quoted(text: string): string {
  return JSON.stringify(text);
}
