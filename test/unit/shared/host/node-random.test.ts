import { describe, expect, it } from "vitest";
import { NodeRandom } from "../../../../shared/host/node-random.ts";

const random = new NodeRandom();

describe("NodeRandom", () => {
  it("gives as many bytes as asked for, others each time", () => {
    expect(random.bytes(0)).toHaveLength(0);
    const drawn = new Set(Array.from({ length: 50 }, () => random.bytes(16).toString("hex")));
    expect(drawn.size).toBe(50);
    expect([...drawn].every((hex) => hex.length === 32)).toBe(true);
  });

  it("gives fractions that fill [0, 1)", () => {
    const fractions = Array.from({ length: 1000 }, () => random.fraction());
    expect(fractions.every((fraction) => fraction >= 0 && fraction < 1)).toBe(true);
    expect(new Set(fractions.map((fraction) => Math.floor(fraction * 4))).size).toBe(4);
  });
});
