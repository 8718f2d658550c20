import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../proto/errors.ts";
import { openFuzzAgent, recordSession, storageWithImages } from "../../support/recorded-session.ts";

const nobody = (): Promise<never> => Promise.reject(new ColobusError("connection-lost", "nobody is there"));

describe("an agent that cannot be stopped cleanly", () => {
  it.each([
    ["Primary", "image cannot be flushed", { op: "sync", kind: "image" }],
    ["Primary", "state record cannot be written", { op: "write", kind: "state" }],
    ["Secondary", "state record cannot be written", { op: "write", kind: "state" }],
  ] as const)("says so, and holds nothing any more: a %s whose %s", async (role, _, call) => {
    const storage = storageWithImages(2);
    const agent = await openFuzzAgent(role, storage, undefined, nobody);
    if (role === "Secondary") await recordSession(storageWithImages(1), agent, undefined);
    else await agent.exports.find("vda")?.device.write(Buffer.alloc(512, 1), 0, { fua: false });
    storage.disk.faults.inject({ ...call, error: "io-error", times: Number.POSITIVE_INFINITY });
    await expect(agent.stop(100)).rejects.toMatchObject({ code: "io-error" });
    expect(storage.openPaths).toEqual([]);
  });
});
