import { afterEach, describe, expect, it, vi } from "vitest";
import { requirePeers } from "../../support/peers.ts";

afterEach(() => {
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
});

describe("requirePeers", () => {
  it("is true when every program is on the PATH", () => {
    expect(requirePeers("sh", "ls")).toBe(true);
  });

  it("throws in CI, naming only what is missing and how to install it", () => {
    vi.stubEnv("CI", "true");
    expect(() => requirePeers("sh", "no-such-peer", "python3:no_such_module")).toThrow(
      'Not installed: no-such-peer, python3:no_such_module. Install the peers with "npm run setup:peers".',
    );
  });

  it("warns once elsewhere, and is false", () => {
    vi.stubEnv("CI", "");
    const write = vi.spyOn(process.stderr, "write").mockReturnValue(true);
    expect(requirePeers("no-such-peer")).toBe(false);
    expect(requirePeers("no-such-peer")).toBe(false);
    expect(write).toHaveBeenCalledTimes(1);
    expect(write.mock.calls[0]?.[0]).toContain("npm run setup:peers");
  });
});
