import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../proto/errors.ts";
import { turn } from "../../support/memory-storage.ts";
import { openFuzzAgent, recordSession, storageWithImages } from "../../support/recorded-session.ts";

const NO_SIGNAL = new AbortController().signal;
const FAILOVER = { dryRun: false, force: true, discardActive: false, timeoutMs: 10_000 };

const nobody = (): Promise<never> => Promise.reject(new ColobusError("connection-lost", "nobody is there"));

describe("an agent that is stopped in the middle of a failover", () => {
  it("finishes it first, and leaves a primary with every file closed", async () => {
    const storage = storageWithImages(2);
    const agent = await openFuzzAgent("Secondary", storage, undefined, nobody);
    await recordSession(storageWithImages(1), agent, undefined);
    let release = (): void => undefined;
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    storage.hold = (op, path) => (op === "sync" && path === "/state/state" ? released : undefined);
    const failover = agent.failover(FAILOVER, NO_SIGNAL);
    for (let count = 0; count < 5; count += 1) await turn();
    const stopping = agent.stop(100);
    for (let count = 0; count < 5; count += 1) await turn();
    storage.hold = undefined;
    release();
    await failover;
    await stopping;
    expect(storage.openPaths).toEqual([]);
    expect(agent.jobs().map(({ type, state, error }) => [type, state, error?.code])).toEqual([
      ["merge", "concluded", "shutting-down"],
    ]);
    const again = await openFuzzAgent("Secondary", storage, undefined, nobody);
    expect(again.role).toBe("Primary");
    await again.stop(100);
  });
});
