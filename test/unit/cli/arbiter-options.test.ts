import { chmodSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openArbiterAccess, parseArbiterAccess, parseArbiters, parseArbiterTtl } from "../../../cli/arbiter-options.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { scratchDirectory } from "../../support/scratch.ts";
import { SilentLog } from "../../support/silent-log.ts";

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
    ["a user that nobody asks for", { "arbiter-user-file": "/etc/user" }],
    ["another protocol", { arbiter: ["etcd://127.0.0.1:2379"] }],
    ["no URL", { arbiter: ["127.0.0.1"] }],
  ])("refuse %s", (_, options) => {
    expect(() => parseArbiters(options)).toThrow(expect.objectContaining({ code: "usage" }));
  });

  it("refuse a password in a URL, and do not repeat it", () => {
    const parse = (): unknown => parseArbiters({ arbiter: ["https://agent:secret@etcd.example:2379"] });
    expect(parse).toThrow(
      expect.objectContaining({ code: "usage", action: expect.stringContaining("--arbiter-user-file") }),
    );
    expect(parse).not.toThrow("secret");
  });

  it.each(["2s", "3500ms", "soon"])("refuse a lease of %s", (text) => {
    expect(() => parseArbiterTtl(text)).toThrow(expect.objectContaining({ code: "usage" }));
  });

  it("read the user from a file of the agent's own, with a name and a password", () => {
    const file = join(scratchDirectory(), "user");
    const open = (): unknown => {
      const access = parseArbiterAccess({ "arbiter-user-file": file });
      return openArbiterAccess(access, new ManualClock(), new SilentLog()).login;
    };
    expect(open).toThrow(/cannot be read/);
    writeFileSync(file, "agent:with:colons\n", { mode: 0o600 });
    expect(open()).toEqual({ name: "agent", password: "with:colons" });
    chmodSync(file, 0o644);
    expect(open).toThrow(/accessible to others/);
    chmodSync(file, 0o600);
    writeFileSync(file, "agent");
    expect(open).toThrow(/has no user/);
  });

  it("refuse a certificate without its key, and name the flag of one that cannot be read", () => {
    expect(() => parseArbiterAccess({ "arbiter-tls-cert": "cert.pem" })).toThrow(/go together/);
    const access = parseArbiterAccess({ "arbiter-tls-ca": "/nowhere/ca.pem" });
    expect(() => openArbiterAccess(access, new ManualClock(), new SilentLog())).toThrow(/^--arbiter-tls-ca \/nowhere/);
  });
});
