import { describe, expect, it } from "vitest";
import { formatImageLocation, parseImageLocation } from "../../../../shared/block/image-location.ts";

describe("the location of an image", () => {
  it.each([
    ["/vm/web.img", { kind: "file", path: "/vm/web.img", isExplicit: false }],
    ["web.img", { kind: "file", path: "web.img", isExplicit: false }],
    ["/vm/a:b.img", { kind: "file", path: "/vm/a:b.img", isExplicit: false }],
    ["raw:/vm/web.img", { kind: "file", path: "/vm/web.img", isExplicit: true }],
    ["qcow2:/vm/web.qcow2", { kind: "format", format: "qcow2", path: "/vm/web.qcow2" }],
    ["vhdx:web", { kind: "format", format: "vhdx", path: "web" }],
    ["nbd://host:1234/vda", { kind: "nbd", exportName: "vda", address: { kind: "tcp", host: "host", port: 1234 } }],
    ["nbd://[::1]/", { kind: "nbd", exportName: "", address: { kind: "tcp", host: "::1", port: 10_809 } }],
    ["nbd://10.0.0.1", { kind: "nbd", exportName: "", address: { kind: "tcp", host: "10.0.0.1", port: 10_809 } }],
    [
      "nbd+unix:///a%20b%2Fc?socket=/run/x+y%3F.sock",
      { kind: "nbd", exportName: "a b/c", address: { kind: "unix", path: "/run/x+y?.sock" } },
    ],
    ["nbd+unix://?socket=/s", { kind: "nbd", exportName: "", address: { kind: "unix", path: "/s" } }],
  ] as const)("%s is understood, and is recorded as something that is understood alike", (text, location) => {
    expect(parseImageLocation(text)).toEqual(location);
    expect(parseImageLocation(formatImageLocation(location))).toEqual(location);
  });

  it.each([
    "luks:/vm/web.luks",
    "qcow2:",
    "raw:",
    "nbd:localhost:10809",
    "nbd:///vda",
    "nbd://host:0/vda",
    "nbd://host:70000/vda",
    "nbd://user@host/vda",
    "nbd://host/vda?socket=/s",
    "nbd+unix:///vda",
    "nbd+unix:///vda?socket=relative",
    "nbd+unix:///vda?socket=/a&tls=1",
    "nbd+unix://host/vda?socket=/a",
    "nbd+unix:///%zz?socket=/a",
    "nbds://host/vda",
    "https://host/vda",
  ])("%s is refused, with what to write instead", (text) => {
    expect(() => parseImageLocation(text)).toThrow(
      expect.objectContaining({ code: "usage", action: expect.stringMatching(/./) }),
    );
  });
});
