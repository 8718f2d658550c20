import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../../proto/errors.ts";
import type { LogLevel } from "../../../../proto/words.ts";
import { createLogger } from "../../../../shared/host/log.ts";

function collect(level: LogLevel): { lines: Record<string, unknown>[]; log: ReturnType<typeof createLogger> } {
  const lines: Record<string, unknown>[] = [];
  const destination = { write: (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>) };
  return { lines, log: createLogger({ level, name: "vm1", destination }) };
}

describe("the log", () => {
  it("is one JSON object a line, with level, time, name and fields", () => {
    const { lines, log } = collect("info");
    log.info({ peer: "ws://b:1" }, "peer connected");
    expect(lines).toEqual([
      {
        level: "info",
        time: expect.stringMatching(/^\d{4}-\d\d-\d\dT.*Z$/),
        pid: process.pid,
        name: "vm1",
        peer: "ws://b:1",
        msg: "peer connected",
      },
    ]);
  });

  it("leaves out what is below its level", () => {
    const { lines, log } = collect("warn");
    log.debug("a");
    log.info("b");
    log.warn("c");
    log.error("d");
    expect(lines.map((line) => line["msg"])).toEqual(["c", "d"]);
  });

  it("shows the code and the action of an error", () => {
    const { lines, log } = collect("info");
    log.error({ err: new ColobusError("out-of-space", "no room", "Free space.") }, "write failed");
    expect(lines[0]?.["err"]).toMatchObject({ code: "out-of-space", message: "no room", action: "Free space." });
  });
});
