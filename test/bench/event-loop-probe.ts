import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { buildSync } from "esbuild";
import { z } from "zod";
import type { DelayFigures } from "../../shared/host/event-loop-delay.ts";

/** The agents' own measure of it, in the process that is measured, over any time: theirs is of the last minute. */
const PROBE = buildSync({
  entryPoints: [fileURLToPath(new URL("probed-process.ts", import.meta.url))],
  bundle: true,
  format: "esm",
  platform: "node",
  write: false,
}).outputFiles[0]?.text;

/** A Node process that is started with these flags, and with an IPC channel, can be asked. */
export const PROBE_FLAGS = ["--import", `data:text/javascript,${encodeURIComponent(PROBE ?? "")}`] as const;

const ANSWER_TIMEOUT_MS = 30_000;
const figuresSchema = z.object({
  overMs: z.number(),
  p50Ms: z.number(),
  p99Ms: z.number(),
  p999Ms: z.number(),
  maxMs: z.number(),
});

/** Measures the delay of the process's event loop from now on. That the process has ended, `endProbe` tells. */
export function beginProbe(child: ChildProcess): void {
  child.send("begin", () => undefined);
}

/** The delay since `beginProbe`. Throws where the process has ended, or hangs. */
export async function endProbe(child: ChildProcess): Promise<DelayFigures> {
  if (!child.connected) throw new Error("the probed process has ended");
  const gone = new AbortController();
  const abort = (): void => gone.abort();
  const timer = setTimeout(abort, ANSWER_TIMEOUT_MS);
  child.once("disconnect", abort);
  try {
    const answered = once(child, "message", { signal: gone.signal });
    child.send("end", () => undefined); // where it fails, the process is gone
    const [figures] = (await answered) as unknown[];
    return figuresSchema.parse(figures);
  } catch (error) {
    throw new Error("the probed process does not answer", { cause: error });
  } finally {
    clearTimeout(timer);
    child.off("disconnect", abort);
  }
}
