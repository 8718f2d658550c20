import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, expect, it } from "vitest";

const ANOTHER_USER = 65_534;

/** Has its hook begun as this user, and then becomes another one, as if the hook was what `sudo` has made of it. */
const AS_ANOTHER = `
  import { runHook } from "./cli/hook.ts";
  import { NodeClock } from "./shared/host/node-clock.ts";
  const output = (line) => {
    console.log(line);
    process.setuid(${ANOTHER_USER});
  };
  const options = { env: {}, clock: new NodeClock(), output, leavesOthers: false, signal: new AbortController().signal };
  await runHook({ command: "echo $$; exec sleep 600", timeoutMs: 1000 }, options)
    .catch((error) => console.log(error.code + ": " + error.message));
`;

describe("a hook that is late", () => {
  it.runIf(process.getuid?.() === 0)("is left to itself where it belongs to another user", async () => {
    const args = ["--import", "tsx", "--input-type=module", "--eval", AS_ANOTHER];
    const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
    let said = "";
    child.stdout.on("data", (chunk: Buffer) => (said += chunk.toString()));
    const [code] = (await once(child, "close")) as [number | null];
    const [pid = "", ...lines] = said.trimEnd().split("\n");
    process.kill(Number(pid), "SIGKILL"); // it runs
    expect(lines).toEqual([
      "timed-out: has not ended within 1000 ms; it may run still, since it belongs to another user",
    ]);
    expect(code).toBe(0);
  });
});
