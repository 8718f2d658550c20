import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import type { Status } from "../../proto/status.ts";
import type { PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import { ScriptedTrio } from "./scripted-trio.ts";

const CLUSTER = 4096;
const READS = { op: ["tryRead", "read"], kind: "image", error: "io-error", times: Number.POSITIVE_INFINITY } as const;

function statusOf({ agent }: PairMember): Status {
  assert(agent !== undefined, "the agent runs");
  return agent.status();
}

async function started(mode: "colo" | "mc" | "mirror" = "colo"): Promise<ScriptedPair> {
  const scripted = new ScriptedPair(7, "power", { mode });
  await scripted.start();
  return scripted;
}

const read = (scripted: ScriptedPair, offset: number, length: number): ReturnType<ScriptedPair["guestRead"]> =>
  scripted.do("a guest's read", () => scripted.guestRead(0, offset, length));
const write = (scripted: ScriptedPair, offset: number, length: number): ReturnType<ScriptedPair["guestWrite"]> =>
  scripted.do("a guest's write", () => scripted.guestWrite(0, offset, length, "bytes"));
const failed = { kind: "failed", error: { code: "io-error" } };

describe("a guest's read that the primary's only image fails", () => {
  it.each(["colo", "mc", "mirror"] as const)(
    "is answered by the secondary, with the newest bytes, in mode %s",
    async (mode) => {
      const scripted = await started(mode);
      const { primary } = scripted.pair;
      await write(scripted, 100, 3 * CLUSTER);
      const mend = primary.host.disk.faults.inject(READS);
      // The model has the bytes that the guest has written, and compares.
      expect(await read(scripted, 0, 10 * CLUSTER + 1536)).toMatchObject({ kind: "done" });
      await scripted.do("a write, and reads beside it", async () => {
        for (let turn = 0; turn < 20; turn += 1) {
          await scripted.guestWrite(0, turn * 700, 5000, turn % 3 === 0 ? "zero" : "bytes");
          expect(await scripted.guestRead(0, turn * 600, 6000)).toMatchObject({ kind: "done" });
        }
      });
      expect(statusOf(primary)).toMatchObject({
        disks: [{ name: "vda", state: "Failed" }, { state: "UpToDate" }],
        protection: {
          reason: "disk-failed",
          nextAction: expect.stringContaining("from the secondary, as far as") as string,
        },
      });
      const events = primary.agent?.events(0) ?? [];
      const secondary = statusOf(primary).peers[0]?.agentId;
      expect(events.filter(({ type }) => type === "read-from-secondary").map(({ data }) => data)).toEqual([
        { disk: "vda", agentId: secondary },
      ]);
      mend();
      await scripted.until("mended", () => statusOf(primary).protection.state === "Protected");
      expect(statusOf(primary).protection.nextAction).not.toContain("secondary");
      await scripted.checkEnd();
    },
  );

  it("is answered in the middle of a resync where the secondary lacks nothing, and fails where it does", async () => {
    const scripted = await started();
    const { primary, secondary } = scripted.pair;
    secondary.host.crash("process");
    await write(scripted, 2 * CLUSTER, CLUSTER);
    const mend = primary.host.disk.faults.inject(READS);
    await scripted.do("the secondary's start", async () => {
      secondary.host.restart();
      await secondary.start();
    });
    await scripted.until("a resync", () => statusOf(primary).peers[0]?.replication === "SyncSource");
    expect(await read(scripted, 2 * CLUSTER + 10, 100)).toMatchObject(failed);
    expect(await read(scripted, CLUSTER, 2 * CLUSTER)).toMatchObject(failed);
    expect(await read(scripted, 0, 2 * CLUSTER)).toMatchObject({ kind: "done" });
    expect(await read(scripted, 3 * CLUSTER, 4 * CLUSTER)).toMatchObject({ kind: "done" });
    mend();
    await scripted.until("in sync again", () => statusOf(primary).peers[0]?.replication === "Established");
    await scripted.checkEnd();
  });

  it("fails where a write of the guest has failed too, and nobody knows what is there", async () => {
    const scripted = await started();
    const { primary } = scripted.pair;
    const mend = [primary.host.disk.faults.inject(READS), primary.host.disk.faults.inject({ ...READS, op: ["write"] })];
    expect(await write(scripted, CLUSTER, CLUSTER)).toMatchObject(failed);
    expect(await read(scripted, CLUSTER, 1)).toMatchObject(failed);
    expect(await read(scripted, 2 * CLUSTER, CLUSTER)).toMatchObject({ kind: "done" });
    for (const undo of mend) undo();
  });

  it("fails when the session is lost before the answer, and without one", async () => {
    const scripted = await started();
    const { primary, secondary } = scripted.pair;
    primary.host.disk.faults.inject(READS);
    const cut = await scripted.do("a read, and the secondary's death", async () => {
      const reading = scripted.guestRead(0, 0, CLUSTER);
      secondary.host.crash("process");
      return reading;
    });
    expect(cut).toMatchObject(failed);
    await scripted.until("alone", () => statusOf(primary).peers[0]?.connection === "Connecting");
    expect(await read(scripted, 0, CLUSTER)).toMatchObject(failed);
    expect(statusOf(primary).protection.nextAction).not.toContain("secondary");
  });

  it("fails when the secondary's image fails as well, which ends no session", async () => {
    const scripted = await started();
    const { primary, secondary } = scripted.pair;
    const mend = [primary, secondary].map(({ host }) => host.disk.faults.inject(READS));
    expect(await read(scripted, 0, CLUSTER)).toMatchObject(failed);
    expect(statusOf(primary).peers[0]).toMatchObject({ connection: "Connected", replication: "Established" });
    for (const undo of mend) undo();
    await scripted.until("mended", () => statusOf(primary).protection.state === "Protected");
    expect(primary.agent?.events(0).map(({ type }) => type)).not.toContain("peer-disconnected");
  });

  it("is asked of the next secondary when the first one fails it too", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    await trio.write(3, 0x33);
    await trio.until("both to have it", () => trio.inSync().every(({ lagBytes }) => lagBytes === 0));
    trio.a.host.disk.faults.inject(READS);
    for (const broken of [trio.b, trio.c]) {
      const mend = broken.host.disk.faults.inject(READS);
      expect(await trio.read(3, trio.a), broken.name).toBe(0x33);
      mend();
    }
    for (const { host } of [trio.b, trio.c]) host.disk.faults.inject(READS);
    await expect(trio.read(3, trio.a)).rejects.toMatchObject({ code: "io-error" });
    expect(trio.inSync()).toHaveLength(2);
  });
});
