import { describe, expect, it } from "vitest";
import { dialRefusal, parseNbdTls, parseTls } from "../../../cli/tls-options.ts";

const ALL = { "tls-cert": "/c", "tls-key": "/k", "tls-ca": "/a" };
const tls = parseTls(ALL, false);

describe("the TLS flags", () => {
  it("make a configuration, or none", () => {
    expect(tls).toEqual({ paths: { cert: "/c", key: "/k", ca: "/a" }, peerNames: [] });
    expect(parseTls({}, true)).toBeUndefined();
    expect(parseTls({ "tls-cert": "/c", "tls-key": "/k" }, true)?.paths.ca).toBeUndefined();
  });

  it.each([
    [
      "a certificate without its key",
      { "tls-cert": "/c", "tls-ca": "/a" },
      true,
      "--tls-cert is given without --tls-key",
    ],
    [
      "a key without its certificate",
      { "tls-key": "/k", "tls-ca": "/a" },
      true,
      "--tls-key is given without --tls-cert",
    ],
    [
      "nothing that proves who the peer is",
      { "tls-cert": "/c", "tls-key": "/k" },
      false,
      "without --tls-ca and without",
    ],
    ["a peer whom nobody vouches for", { "tls-peer": ["b"] }, true, "--tls-peer is given without --tls-ca"],
  ])("are refused with %s", (_, flags, hasToken, message) => {
    expect(() => parseTls(flags, hasToken)).toThrow(message);
  });
});

describe("a peer's URL", () => {
  const plain = { tls: undefined, tokenFile: undefined, insecure: false };

  it.each([
    ["ws://127.0.0.1:1", plain],
    ["ws://[::1]:1", plain],
    ["ws://192.0.2.1:1", { ...plain, insecure: true }],
    ["wss://192.0.2.1:1", { ...plain, tls }],
    ["wss://192.0.2.1:1", { ...plain, tokenFile: "/t" }],
  ])("%s may be dialled with what is configured", (url, config) => {
    expect(dialRefusal(url, config)).toBeUndefined();
  });

  it.each([
    ["ws://192.0.2.1:1", { ...plain, tokenFile: "/t", tls }, "is not encrypted and leaves this machine"],
    ["ws://localhost.example:1", plain, "is not encrypted and leaves this machine"],
    ["wss://192.0.2.1:1", { ...plain, insecure: true }, "needs something that proves who this agent is"],
  ])("%s may not", (url, config, message) => {
    expect(dialRefusal(url, config)?.message).toContain(message);
  });
});

describe("TLS of NBD clients", () => {
  it("is required where there are certificates, and off where there are none", () => {
    expect(parseNbdTls(undefined, tls)).toBe("required");
    expect(parseNbdTls(undefined, undefined)).toBe("off");
    expect(parseNbdTls("offered", tls)).toBe("offered");
    expect(parseNbdTls("off", tls)).toBe("off");
  });

  it("needs an authority for the clients", () => {
    const withoutCa = parseTls({ "tls-cert": "/c", "tls-key": "/k" }, true);
    expect(parseNbdTls(undefined, withoutCa)).toBe("off");
    expect(() => parseNbdTls("required", withoutCa)).toThrow("--nbd-tls required needs a certificate");
  });
});
