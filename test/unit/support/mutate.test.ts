import { describe, expect, it } from "vitest";
import { mutate, seededRandom } from "../../support/mutate.ts";

const bytes = Buffer.from("GET /v1/status HTTP/1.1\r\n\r\n");

describe("seeded damage", () => {
  it("is the same for the same seed, and another for another", () => {
    const damage = (seed: number): string => {
      const random = seededRandom(seed);
      return Array.from({ length: 20 }, () => mutate(bytes, random).toString("hex")).join();
    };
    expect(damage(7)).toBe(damage(7));
    expect(damage(7)).not.toBe(damage(8));
  });

  it("leaves the original alone, and changes most copies", () => {
    const random = seededRandom(1);
    const before = bytes.toString();
    const changed = Array.from({ length: 1000 }, () => mutate(bytes, random)).filter((copy) => !copy.equals(bytes));
    expect(bytes.toString()).toBe(before);
    expect(changed.length).toBeGreaterThan(950);
  });
});
