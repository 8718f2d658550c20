import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ServerSentEventParser } from "../../../../shared/control/server-sent-events.ts";

describe("server-sent events", () => {
  it("gives the same events however the bytes are split", () => {
    const stream = Buffer.from(
      'id: 1\nevent: a\ndata: {"x":"ü"}\n\n: comment\n\r\ndata:one\r\ndata: two\r\n\r\nid: 3\n\ndata: last\n\n',
    );
    fc.assert(
      fc.property(fc.array(fc.nat(stream.length)), (cuts) => {
        const parser = new ServerSentEventParser(1000);
        const bounds = [0, ...cuts.sort((a, b) => a - b), stream.length];
        const events = bounds.slice(1).flatMap((end, index) => parser.push(stream.subarray(bounds[index], end)));
        expect(events).toEqual(['{"x":"ü"}', "one\ntwo", "last"]);
      }),
    );
  });

  it("refuses an event above the limit, whether in one line or in many", () => {
    const endless = new ServerSentEventParser(100);
    expect(() => endless.push(Buffer.from("x".repeat(101)))).toThrow(
      expect.objectContaining({ code: "protocol-error" }),
    );
    const many = new ServerSentEventParser(100);
    expect(() => many.push(Buffer.from("data: 0123456789\n".repeat(11)))).toThrow(
      expect.objectContaining({ code: "protocol-error" }),
    );
  });
});
