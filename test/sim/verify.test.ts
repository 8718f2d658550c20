import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import type { JobStatus } from "../../proto/status.ts";
import { imagePath, type PairOptions } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";

const CLUSTER = 4096;
const TIMEOUT_MS = 60_000;
const GUEST_WRITES = 200;

async function started(options: Partial<PairOptions>): Promise<ScriptedPair> {
  const scripted = new ScriptedPair(7, "power", options);
  await scripted.start();
  await scripted.fillOverlays();
  return scripted;
}

async function verify(
  scripted: ScriptedPair,
  { disk, repair = false }: { readonly disk?: string; readonly repair?: boolean } = {},
): Promise<JobStatus> {
  const { agent } = scripted.pair.primary;
  assert(agent !== undefined);
  const request = { disk, repair, speed: 0, wait: true, timeoutMs: TIMEOUT_MS };
  return agent.verify(request, new AbortController().signal);
}

/** One byte of the secondary's image changes by itself. */
function damage(scripted: ScriptedPair, disk: number, offset: number): void {
  const path = imagePath(scripted.disks[disk] ?? { name: "", sizeBytes: 0 });
  scripted.pair.secondary.host.disk.corrupt(path, offset);
}

describe.each([{ mode: "colo" }, { mode: "mc" }] as const)("a verify in mode $mode", ({ mode }) => {
  it("finds nothing where nothing differs, and has compared everything", async () => {
    const scripted = await started({ mode });
    const job = await scripted.do("a verify", () => verify(scripted));
    const sizeBytes = scripted.disks.reduce((sum, disk) => sum + disk.sizeBytes, 0);
    expect(job).toMatchObject({ state: "concluded", error: null, progress: { doneBytes: sizeBytes } });
    expect(job.verify).toEqual({
      differences: [],
      ranges: 0,
      differingBytes: 0,
      checkedBytes: sizeBytes,
      repairs: false,
    });
  });

  it("finds what has changed on the secondary, cluster by cluster, and neighbours as one range", async () => {
    const scripted = await started({ mode });
    await scripted.checkRecovery();
    // The last cluster of vda is a short one.
    for (const offset of [2 * CLUSTER + 5, 3 * CLUSTER, 10 * CLUSTER + 1]) damage(scripted, 0, offset);
    damage(scripted, 1, 16 * CLUSTER - 1);
    const job = await scripted.do("a verify", () => verify(scripted));
    expect(job.verify).toMatchObject({
      differences: [
        { disk: "vda", offset: 2 * CLUSTER, length: 2 * CLUSTER },
        { disk: "vda", offset: 10 * CLUSTER, length: 1536 },
        { disk: "vdb", offset: 15 * CLUSTER, length: CLUSTER },
      ],
      ranges: 3,
      differingBytes: 3 * CLUSTER + 1536,
    });
    const one = await scripted.do("a verify of one disk", () => verify(scripted, { disk: "vdb" }));
    expect(one.verify).toMatchObject({ ranges: 1, checkedBytes: 16 * CLUSTER });
  });

  it("tells no more than what was damaged while a guest writes, and has it healed", async () => {
    const scripted = await started({ mode });
    await scripted.checkRecovery();
    damage(scripted, 0, 9 * CLUSTER);
    const { agent } = scripted.pair.primary;
    assert(agent !== undefined);
    const events: unknown[] = [];
    agent.follow(({ type, data }) => {
      if (type === "verify-difference") events.push(data);
    });
    await scripted.do("a verify under load", async () => {
      let isOver = false;
      const load = (async () => {
        for (let count = 0; !isOver || count < GUEST_WRITES; count += 1) {
          const kind = (["bytes", "bytes", "zero", "discard"] as const)[count % 4] ?? "bytes";
          await scripted.guestWrite(0, (count * 977) % (8 * CLUSTER), 1 + ((count * 331) % CLUSTER), kind);
        }
      })();
      const job = await verify(scripted, { repair: true });
      isOver = true;
      await load;
      expect(job.verify?.differences).toEqual([{ disk: "vda", offset: 9 * CLUSTER, length: CLUSTER }]);
      expect(events).toEqual(job.verify?.differences);
      await scripted.wait("synced");
      expect((await verify(scripted)).verify?.ranges).toBe(0);
    });
    // What the damage has done to the committed checkpoint ends with the next one.
    await scripted.checkRecovery();
    await scripted.checkEnd();
  });
});

describe("a verify", () => {
  it("whose session is lost goes on in the next one", async () => {
    const scripted = await started({ mode: "colo" });
    await scripted.checkRecovery();
    const { primary, secondary } = scripted.pair;
    const slow = { repair: false, speed: CLUSTER, wait: false, timeoutMs: TIMEOUT_MS };
    await scripted.do("a slow verify", async () => primary.agent?.verify(slow, new AbortController().signal));
    await scripted.until("some of it is done", () => (primary.agent?.jobs().at(-1)?.progress.doneBytes ?? 0) > 0);
    expect(primary.agent?.status().peers[0]?.replication).toBe("VerifyS");
    expect(secondary.agent?.status().peers[0]?.replication).toBe("VerifyT");
    expect(secondary.agent?.status().protection.state).toBe("Protected");
    secondary.host.crash("process");
    await scripted.until("it waits", () => primary.agent?.jobs().at(-1)?.state === "paused");
    expect(primary.agent?.jobs().at(-1)?.error).toMatchObject({ code: "no-peer" });
    await scripted.restartSecondary();
    damage(scripted, 1, 15 * CLUSTER);
    const latest = (): JobStatus | undefined => primary.agent?.jobs().findLast(({ type }) => type === "verify");
    await scripted.until("it is over", () => latest()?.state === "concluded");
    expect(latest()).toMatchObject({ error: null, verify: { ranges: 1 } });
    expect(primary.agent?.status().peers[0]?.replication).toBe("Established");
    const isOver = (): boolean => secondary.agent?.status().peers[0]?.replication === "Established";
    await scripted.until("the secondary has heard of it", isOver);
  });

  it("is refused where there is one disk, a second comparison, an unknown disk, or no secondary", async () => {
    const shared = new ScriptedPair(1, "power", { mode: "shared" });
    await shared.start();
    await shared.do("refused", () => expect(verify(shared)).rejects.toMatchObject({ code: "not-supported" }));
    const scripted = await started({ mode: "colo" });
    const { primary, secondary } = scripted.pair;
    await scripted.do("refused", async () => {
      await expect(verify(scripted, { disk: "vdz" })).rejects.toMatchObject({ code: "not-found" });
      const slow = { repair: false, speed: 1, wait: false, timeoutMs: TIMEOUT_MS };
      const job = await primary.agent?.verify(slow, new AbortController().signal);
      await expect(verify(scripted)).rejects.toMatchObject({ code: "job-state" });
      await primary.agent?.job(job?.id ?? "", "cancel");
    });
    secondary.host.crash("process");
    await scripted.until("it is gone", () => primary.agent?.status().peers[0]?.connection === "Connecting");
    await scripted.do("refused", () => expect(verify(scripted)).rejects.toMatchObject({ code: "no-peer" }));
  });
});
