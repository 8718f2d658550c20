import { once } from "node:events";
import type { ChildProcess } from "node:child_process";
import { z } from "zod";
import type { DelayFigures } from "../../shared/host/event-loop-delay.ts";

/** The agents' own measure of it, in the process that is measured, over any time: theirs is of the last minute. */
const MEASURE = new URL("../../dist/shared/host/event-loop-delay.js", import.meta.url);
const CLOCK = new URL("../../dist/shared/host/node-clock.js", import.meta.url);
const PROBE = `
import { EventLoopDelay } from "${MEASURE.href}";
import { NodeClock } from "${CLOCK.href}";
let delay;
process.on("message", (ask) => {
  if (delay !== undefined && ask === "end") process.send(delay.getFigures());
  delay?.stop();
  delay = undefined;
  if (ask === "begin") {
    delay = new EventLoopDelay(new NodeClock());
    delay.start(() => undefined);
  }
});
process.channel.unref();
`;

/** A Node process that is started with these flags, and with an IPC channel, can be asked. */
export const PROBE_FLAGS = ["--import", `data:text/javascript,${encodeURIComponent(PROBE)}`] as const;

const ANSWER_TIMEOUT_MS = 30_000;
const figuresSchema = z.object({
  overMs: z.number(),
  p50Ms: z.number(),
  p99Ms: z.number(),
  p999Ms: z.number(),
  maxMs: z.number(),
});

/** Measures the delay of the process's event loop from now on. */
export function beginProbe(child: ChildProcess): void {
  child.send("begin");
}

/** The delay since `beginProbe`. */
export async function endProbe(child: ChildProcess): Promise<DelayFigures> {
  const answered = once(child, "message", { signal: AbortSignal.timeout(ANSWER_TIMEOUT_MS) });
  child.send("end");
  const [figures] = (await answered) as unknown[];
  return figuresSchema.parse(figures);
}
