import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../proto/errors.ts";
import { openFuzzAgent, recordSession, storageWithImages } from "../../support/recorded-session.ts";

const nobody = (): Promise<never> => Promise.reject(new ColobusError("connection-lost", "nobody is there"));

describe("an agent that cannot record its start", () => {
  it.each(["Primary", "Secondary"] as const)(
    "holds nothing that keeps its process, nor another one out: %s",
    async (role) => {
      const storage = storageWithImages(2);
      await (await openFuzzAgent(role, storage, undefined, nobody)).stop(100);
      // What opens the state is written first: the last record is the one behind the roles.
      const fault = { op: "write", kind: "state", error: "io-error", times: Number.POSITIVE_INFINITY } as const;
      let refused = 0;
      for (let skip = 0; refused === skip; skip += 1) {
        storage.disk.faults.inject({ ...fault, skip });
        try {
          const agent = await openFuzzAgent(role, storage, undefined, nobody);
          storage.disk.faults.clear();
          await agent.stop(100);
        } catch (error) {
          expect(error).toMatchObject({ code: "io-error" });
          refused += 1;
        }
        storage.disk.faults.clear();
        expect(storage.openPaths.filter((path) => !path.startsWith("/state/disks/"))).toEqual([]);
      }
      expect(refused).toBeGreaterThan(1);
    },
  );
});

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
