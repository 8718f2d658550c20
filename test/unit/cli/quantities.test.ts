import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { formatBytes, formatDuration, formatRate, parseDuration, parseSize } from "../../../cli/quantities.ts";

const usageError = expect.objectContaining({ code: "usage" });

describe("durations", () => {
  it.each([
    ["100ms", 100],
    ["5s", 5000],
    ["2m", 120_000],
    ["2min", 120_000],
    ["1.5h", 5_400_000],
    ["1d", 86_400_000],
    [" 5 s ", 5000],
    ["0", 0],
    ["0.5ms", 0.5],
  ])("reads %j as %d ms", (text, ms) => {
    expect(parseDuration(text, "--timeout")).toBe(ms);
  });

  it.each(["", "5", "s", "-5s", "5 parsecs", "5S", "1e3s", "Infinity", "5s5s", "0x5s", "constructor", "5constructor"])(
    "refuses %j",
    (text) => {
      expect(() => parseDuration(text, "--timeout")).toThrow(usageError);
    },
  );

  it("names the flag and what a duration looks like", () => {
    expect(() => parseDuration("5", "--timeout")).toThrow('--timeout "5" is not a duration.');
  });

  it.each([
    [0, "0 ms"],
    [0.04, "0.04 ms"],
    [0.8, "0.8 ms"],
    [0.55, "0.6 ms"],
    [9.96, "10 ms"],
    [120.4, "120 ms"],
    [999.4, "999 ms"],
    [999.6, "1 s"],
    [1234, "1.2 s"],
    [59_400, "59 s"],
    [59_600, "1 min"],
    [125_000, "2 min 5 s"],
    [3_599_600, "1 h"],
    [11_520_000, "3 h 12 min"],
    [86_399_000, "1 d"],
    [187_200_000, "2 d 4 h"],
  ])("writes %d ms as %s", (ms, text) => {
    expect(formatDuration(ms)).toBe(text);
  });
});

describe("sizes", () => {
  it.each([
    ["0", 0],
    ["4096", 4096],
    ["512B", 512],
    ["4k", 4096],
    ["64KiB", 65_536],
    ["10G", 10 * 1024 ** 3],
    ["1.5TiB", 1.5 * 1024 ** 4],
    ["2 MiB", 2 * 1024 ** 2],
  ])("reads %j as %d bytes", (text, bytes) => {
    expect(parseSize(text, "--window")).toBe(bytes);
  });

  it.each(["", "-1", "1.5", "0.3K", "10MB", "10 Mb", "1KB", "1e9", "8192P", "G", "1GiBB", "0x10"])(
    "refuses %j",
    (text) => {
      expect(() => parseSize(text, "--window")).toThrow(usageError);
    },
  );

  it.each([
    [0, "0 B"],
    [1023, "1023 B"],
    [1024, "1 KiB"],
    [1536, "1.5 KiB"],
    [12_288, "12 KiB"],
    [1024 ** 2 - 1, "1 MiB"],
    [64 * 1024 ** 2, "64 MiB"],
    [1.25 * 1024 ** 4, "1.3 TiB"],
    [2048 * 1024 ** 5, "2048 PiB"],
  ])("writes %d as %s", (bytes, text) => {
    expect(formatBytes(bytes)).toBe(text);
  });

  it("writes what it reads back within its rounding", () => {
    fc.assert(
      fc.property(fc.nat(2 ** 31), fc.constantFrom(1, 1024, 2 ** 20), (count, unit) => {
        const bytes = count * unit;
        const [value = "", name = ""] = formatBytes(bytes).split(" ");
        const readBack = Number(value) * parseSize(`1${name}`, "size");
        expect(Math.abs(readBack - bytes)).toBeLessThanOrEqual(bytes * 0.051);
      }),
    );
  });

  it("writes rates", () => {
    expect(formatRate(50 * 1024 ** 2)).toBe("50 MiB/s");
    expect(formatRate(0.4)).toBe("0 B/s");
  });
});
