import { describe, expect, it } from "vitest";
import { Output, withoutControlCharacters, type TextSink } from "../../../cli/output.ts";
import { ColobusError } from "../../../proto/errors.ts";

class RecordingSink implements TextSink {
  readonly isTTY: boolean;
  text = "";
  fail: (error: NodeJS.ErrnoException) => void = () => {};

  constructor(isTTY = false) {
    this.isTTY = isTTY;
  }

  write(text: string): void {
    this.text += text;
  }

  on(event: "error" | "resize", listener: (error: NodeJS.ErrnoException) => void): void {
    if (event === "error") this.fail = listener;
  }
}

describe("colours", () => {
  it.each([
    [true, {}, true],
    [true, { NO_COLOR: "" }, true],
    [true, { NO_COLOR: "1" }, false],
    [true, { TERM: "dumb" }, false],
    [false, {}, false],
  ])("terminal %s, environment %j: coloured %s", (isTTY, env, coloured) => {
    const output = new Output(new RecordingSink(isTTY), new RecordingSink(), env);
    expect(output.paint("bad", "x") !== "x").toBe(coloured);
  });
});

describe("stdout", () => {
  it("carries nothing more when its reader has gone, and says so once", () => {
    const stdout = new RecordingSink();
    const output = new Output(stdout, new RecordingSink(), {});
    output.text("before");
    expect(output.readerGone.aborted).toBe(false);
    stdout.fail(Object.assign(new Error("write EPIPE"), { code: "EPIPE" }));
    output.text("after");
    output.document({});
    expect(output.readerGone.aborted).toBe(true);
    expect(stdout.text).toBe("before\n");
  });

  it("cannot be steered by text that came from a peer", () => {
    const stdout = new RecordingSink(true);
    const output = new Output(stdout, new RecordingSink(), {});
    const hostile = { message: "\u001b[2Jall is well\u0007\u009b31m", lines: ["a\nb\tc"] };
    output.result(false, hostile, ({ message, lines }) => `${message} ${lines.join()}`);
    expect(stdout.text).toBe("?[2Jall is well??31m a b c\n");
    const stderr = new RecordingSink(true);
    new Output(stdout, stderr, {}).remark("two\n\tlines\u001b[2J\r");
    expect(stderr.text).toBe("two\n\tlines?[2J?\n");
  });

  it("carries the same text unchanged as JSON", () => {
    const stdout = new RecordingSink();
    const value = { message: "\u001b[2J\n" };
    new Output(stdout, new RecordingSink(), {}).result(true, value, () => "");
    expect(JSON.parse(stdout.text)).toEqual(value);
  });
});

describe("a failure", () => {
  it("goes to stderr, and with JSON to stdout as well", () => {
    const error = new ColobusError("no-peer", "No secondary is connected.", "Start it.");
    const stdout = new RecordingSink();
    const stderr = new RecordingSink();
    const output = new Output(stdout, stderr, {});
    output.failure(false, error);
    expect(stdout.text).toBe("");
    output.failure(true, error);
    expect(stdout.text).toBe(
      '{"error":{"code":"no-peer","message":"No secondary is connected.","action":"Start it."}}\n',
    );
    expect(stderr.text).toBe("colobus: No secondary is connected.\n  Start it.\n".repeat(2));
  });
});

it("control characters are replaced at any depth, and numbers and nulls are left alone", () => {
  expect(withoutControlCharacters({ a: [{ "k\u0000": "v\u001b" }], n: 1, z: null })).toEqual({
    a: [{ "k?": "v?" }],
    n: 1,
    z: null,
  });
});
