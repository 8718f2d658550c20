import { describe, expect, it } from "vitest";
import type { Site } from "../../../../proto/replication-messages.ts";
import { hostNameOf, imageAt, siteOf } from "../../../../shared/replication/site.ts";

const own: Site = { host: "alpha", bootId: "1", disks: [] };

describe("the name of a peer's host", () => {
  it.each([
    ["what it calls itself", { host: "beta", bootId: "2" }, "192.0.2.2:7000", "beta"],
    ["this host's, on one machine", { host: "container", bootId: "1" }, "192.0.2.2:7000", "alpha"],
    [
      "told from this host's where the two are called alike",
      { host: "alpha", bootId: "2" },
      "192.0.2.2:7000",
      "alpha at 192.0.2.2",
    ],
    ["its address before it has said so", undefined, "wss://[2001:db8::2]:7000", "2001:db8::2"],
    ["a tunnel's end before it has said so", undefined, "ws://127.0.0.1:7000", "127.0.0.1:7000"],
    ["not known", undefined, null, null],
  ] as const)("is %s", (_, site, at, name) => {
    expect(hostNameOf(site === undefined ? undefined : { ...site, disks: [] }, own, at)).toBe(name);
  });
});

it("tells no image whose name would not fit", () => {
  const disk = { name: "vda", image: "/srv/vda.raw", sizeBytes: 4096, cleanMark: null };
  const site = siteOf({ bootId: "1", disks: [disk, { ...disk, name: "vdb", image: `/${"ä".repeat(300)}` }] }, "alpha");
  expect(imageAt(site, disk.name)).toBe(disk.image);
  expect(imageAt(site, "vdb")).toBeNull();
});
