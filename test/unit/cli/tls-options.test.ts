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
    ["ws://agent:secret@127.0.0.1:1", plain, "the peer's URL at 127.0.0.1 names a user"],
    ["wss://agent@192.0.2.1:1", { ...plain, tls }, "names a user"],
    ["wss://192.0.2.1:1", { ...plain, insecure: true }, "needs something that proves who this agent is"],
  ])("%s may not", (url, config, message) => {
    expect(dialRefusal(url, config)?.message).toContain(message);
  });
});

describe("TLS of NBD clients", () => {
  const listen = { "nbd-listen": "192.0.2.1:10809" };

  it("is required where there are certificates or keys, and off where there are none", () => {
    expect(parseNbdTls({}, tls)).toEqual({ nbdTls: "required", nbdPskFile: undefined });
    expect(parseNbdTls({}, undefined).nbdTls).toBe("off");
    expect(parseNbdTls({ "nbd-tls": "offered" }, tls).nbdTls).toBe("offered");
    expect(parseNbdTls({ "nbd-tls": "off" }, tls).nbdTls).toBe("off");
    const keys = { ...listen, "nbd-psk-file": "/p" };
    for (const certificates of [tls, undefined]) {
      expect(parseNbdTls(keys, certificates)).toEqual({ nbdTls: "required", nbdPskFile: "/p" });
      expect(parseNbdTls({ ...keys, "nbd-tls": "offered" }, certificates).nbdTls).toBe("offered");
    }
  });

  it("needs an authority for the clients, or keys", () => {
    const withoutCa = parseTls({ "tls-cert": "/c", "tls-key": "/k" }, true);
    expect(parseNbdTls({}, withoutCa).nbdTls).toBe("off");
    expect(() => parseNbdTls({ "nbd-tls": "required" }, withoutCa)).toThrow("--nbd-tls required needs a certificate");
  });

  it("is not by keys where there are no clients, or no TLS", () => {
    expect(() => parseNbdTls({ "nbd-psk-file": "/p" }, tls)).toThrow("without --nbd-listen");
    expect(() => parseNbdTls({ ...listen, "nbd-psk-file": "/p", "nbd-tls": "off" }, tls)).toThrow(
      "contradict each other",
    );
  });
});
