import { describe, expect, it } from "vitest";
import { parseArbiters, parseArbiterTtl } from "../../../cli/arbiter-options.ts";

describe("the flags about an arbiter", () => {
  it("take several members, and whole seconds", () => {
    const urls = ["http://127.0.0.1:2379", "https://etcd.example:2379"];
    expect(parseArbiters({ "arbiter": urls, "failover": "automatic", "arbiter-ttl": "5s" })).toEqual(urls);
    expect(parseArbiters({})).toEqual([]);
    expect(parseArbiterTtl("5s")).toBe(5_000);
    expect(parseArbiterTtl(undefined)).toBeUndefined();
  });

  it.each([
    ["a secondary that takes over with nobody to ask", { failover: "automatic" as const }],
    ["a lease that nobody gives", { "arbiter-ttl": "5s" }],
    ["another protocol", { arbiter: ["etcd://127.0.0.1:2379"] }],
    ["no URL", { arbiter: ["127.0.0.1"] }],
  ])("refuse %s", (_, options) => {
    expect(() => parseArbiters(options)).toThrow(expect.objectContaining({ code: "usage" }));
  });

  it.each(["2s", "3500ms", "soon"])("refuse a lease of %s", (text) => {
    expect(() => parseArbiterTtl(text)).toThrow(expect.objectContaining({ code: "usage" }));
  });
});
