import { describe, expect, it } from "vitest";
import { nearestWord } from "../../../cli/nearest-word.ts";

const commands = ["list", "status", "events", "jobs", "job", "checkpoint", "commit", "discard", "failover", "wait"];

describe("the nearest word", () => {
  it.each([
    ["statsu", "status"],
    ["chekpoint", "checkpoint"],
    ["Wait", "wait"],
    ["comit", "commit"],
    ["fail-over", "failover"],
    ["jbos", "jobs"],
  ])("takes %j for %j", (typed, meant) => {
    expect(nearestWord(typed, commands)).toBe(meant);
  });

  it.each(["", "xyz", "reboot", "status-of-everything"])("makes nothing of %j", (typed) => {
    expect(nearestWord(typed, commands)).toBeUndefined();
  });
});
