import { describe, expect, it } from "vitest";
import { parseSecondaries } from "../../../cli/secondaries-options.ts";

describe("the flags about several secondaries", () => {
  it.each([
    ["none", {}, {}],
    ["one peer", { peer: ["ws://b"] }, {}],
    ["as many as are dialled", { peer: ["ws://b", "ws://c"] }, { secondaries: 2 }],
    ["more than are dialled", { peer: ["ws://b"], secondaries: "3" }, { secondaries: 3 }],
    ["those that dial", { secondaries: "2" }, { secondaries: 2 }],
    ["a shared disk with a mark", { "secondaries": "2", "mode": "shared", "shared-mark": "M" }, { secondaries: 2 }],
    ["a shared disk without a mark for one", { mode: "shared" }, {}],
    ["an arbiter", { secondaries: "2", arbiter: ["http://e"] }, { secondaries: 2 }],
  ] as const)("take %s", (_, options, expected) => {
    expect(parseSecondaries(options, "Primary")).toEqual(expected);
  });

  it.each([
    ["fewer than are dialled", { peer: ["ws://b", "ws://c"], secondaries: "1" }, "Primary"],
    ["one that is dialled twice", { peer: ["ws://b", "ws://c", "ws://b"] }, "Primary"],
    ["too many", { secondaries: "5" }, "Primary"],
    ["no number", { secondaries: "two" }, "Primary"],
    ["a shared disk without a mark", { secondaries: "2", mode: "shared" }, "Primary"],
    ["an arbiter over a shared disk", { secondaries: "2", mode: "shared", arbiter: ["http://e"] }, "Primary"],
    ["a secondary that dials two", { peer: ["ws://b", "ws://c"] }, "Secondary"],
  ] as const)("refuse %s", (_, options, role) => {
    expect(() => parseSecondaries(options, role)).toThrow(expect.objectContaining({ code: "usage" }));
  });
});
