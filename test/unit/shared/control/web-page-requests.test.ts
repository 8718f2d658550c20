import { describe, expect, it } from "vitest";
import { forwardedPageRefusal, pageRefusal } from "../../../../shared/control/web-page-requests.ts";

const LOCAL_HOSTS = ["localhost", "localhost:7001", "127.0.0.1:7001", "127.1.2.3", "[::1]:7001", "[::1]", "agent", ""];
const FOREIGN_HOSTS = ["evil.example", "evil.example:7001", "127.0.0.1.evil.example", "[2001:db8::1]:7001", "10.0.0.1"];

describe("a request over TLS", () => {
  it.each([
    ["of a program", { host: "db1:7001" }],
    ["of the page itself", { "host": "db1:7001", "origin": "https://db1:7001", "sec-fetch-site": "same-origin" }],
    ["of somebody who typed the address", { "host": "db1:7001", "sec-fetch-site": "none" }],
  ])("%s may be made", (_, headers) => {
    expect(pageRefusal(headers)).toBeUndefined();
  });

  it.each([
    ["another page", { host: "db1:7001", origin: "https://evil.example" }],
    ["another port of the same host", { host: "db1:7001", origin: "https://db1:8443" }],
    ["the same name without TLS", { host: "db1:7001", origin: "http://db1:7001" }],
    ["a page that hides where it is from", { host: "db1:7001", origin: "null" }],
    ["an image in another page", { "host": "db1:7001", "sec-fetch-site": "cross-site" }],
    ["another name of the same site", { "host": "db1:7001", "sec-fetch-site": "same-site" }],
  ])("of %s is refused", (_, headers) => {
    expect(pageRefusal(headers)).toMatchObject({ code: "auth-failed" });
  });
});

describe("a request at the unix socket", () => {
  it.each(LOCAL_HOSTS)("by the name %j may be made", (host) => {
    expect(forwardedPageRefusal({ host })).toBeUndefined();
    expect(forwardedPageRefusal({ host, origin: `http://${host}` })).toBeUndefined();
  });

  it.each(FOREIGN_HOSTS)("by the name %j, which somebody may have lead here, is refused", (host) => {
    expect(forwardedPageRefusal({ host, origin: `http://${host}` })).toMatchObject({ code: "auth-failed" });
    expect(forwardedPageRefusal({ host })).toMatchObject({ code: "auth-failed" });
  });

  it("of another page is refused", () => {
    expect(forwardedPageRefusal({ host: "localhost:7001", origin: "http://localhost:8080" })).toBeDefined();
    expect(forwardedPageRefusal({ "host": "localhost:7001", "sec-fetch-site": "cross-site" })).toBeDefined();
  });
});
