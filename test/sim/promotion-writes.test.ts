import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import type { ColobusError } from "../../proto/errors.ts";
import { bufferedBytes, checkpointsUntilApplied } from "./buffered-bytes.ts";
import { imagePath, type PairDisk } from "./pair.ts";
import { RoleSwap } from "./role-swap.ts";
import { ScriptedPair } from "./scripted-pair.ts";

/**
 * The VM of a secondary writes while that is promoted: what waits for the promotion is a write of the new primary's guest,
 * and the former primary gets it.
 */
const CLUSTER = 4096;
const DISK: PairDisk = { name: "vda", sizeBytes: 64 * CLUSTER };
const FAILOVER = { force: false, dryRun: false, discardActive: false, timeoutMs: 60_000 } as const;

/** The primary was cut off behind a checkpoint, and no overlay has any of the disk. */
async function parted(mode: "colo" | "mc" | "mirror"): Promise<{ scripted: ScriptedPair; swap: RoleSwap }> {
  const ack = mode === "mirror" ? "applied" : "async";
  const scripted = new ScriptedPair(1, "power", { mode, ack, disks: [DISK] });
  const swap = new RoleSwap(scripted, scripted.pair.secondary.host);
  await scripted.start();
  await scripted.do("the parting", () => swap.part());
  return { scripted, swap };
}

/** The former primary follows the promoted side; resolves when both images have to be equal. */
async function rejoined({ scripted, swap }: Awaited<ReturnType<typeof parted>>): Promise<void> {
  const { primary, secondary } = scripted.pair;
  await scripted.do("the rejoin", async () => {
    await swap.rejoin();
    if (scripted.options.mode === "mirror") {
      await swap.until(() => secondary.agent?.status().protection.state === "Protected");
      return;
    }
    for (let left = 1 + checkpointsUntilApplied(scripted.options); left > 0; left -= 1) assert(await swap.checkpoint());
    if (scripted.options.mode === "mc") await swap.until(() => bufferedBytes(primary) === 0);
  });
}

describe("a secondary that is promoted while its VM writes", () => {
  it.each(["colo", "mc", "mirror"] as const)("has all of it sent to the former primary, in mode %s", async (mode) => {
    const swapped = await parted(mode);
    const { scripted } = swapped;
    const { primary, secondary } = scripted.pair;
    const view = secondary.device(DISK);
    const { agent } = secondary;
    assert(view !== undefined && agent !== undefined);
    let waited = 0;
    const write = async (cluster: number): Promise<void> => {
      const begunMs = scripted.world.nowMs;
      await view.write(Buffer.alloc(CLUSTER, 0x80 + cluster), cluster * CLUSTER, { fua: false });
      if (scripted.world.nowMs > begunMs) waited += 1;
    };
    await scripted.do("the failover", async () => {
      const opened = await view.openWrite(0, 2 * CLUSTER, { fua: false });
      await opened.push(Buffer.alloc(CLUSTER, 0x80));
      let isOver = false;
      const promoted = agent.failover(FAILOVER, new AbortController().signal).finally(() => (isOver = true));
      const writes: Promise<void>[] = [];
      for (let cluster = 2; !isOver && cluster < 64; cluster += 1) {
        writes.push(write(cluster));
        await scripted.world.sleep(1);
      }
      await promoted;
      await opened.push(Buffer.alloc(CLUSTER, 0x81));
      await Promise.all([...writes, opened.end()]);
    });
    expect(waited).toBeGreaterThan(0);
    await rejoined(swapped);
    const [former, promoted] = [primary, secondary].map(({ host }) => host.disk.readFile(imagePath(DISK)));
    assert(former !== undefined && promoted !== undefined);
    expect([promoted[0], promoted[CLUSTER], promoted[2 * CLUSTER]]).toEqual([0x80, 0x81, 0x82]);
    expect(former.equals(promoted)).toBe(true);
  });

  it("serves nobody where the primary's role cannot be opened", async () => {
    const { scripted } = await parted("colo");
    const { secondary } = scripted.pair;
    const { agent } = secondary;
    assert(agent !== undefined);
    // Behind the record, and before the role.
    const isPromoted = (): boolean => agent.status().role === "Primary" && agent.role === "Secondary";
    const never = new AbortController().signal;
    const { faults } = secondary.host.disk;
    faults.inject({ path: (path) => path.includes("dirty"), error: "out-of-space", times: Infinity });
    faults.inject({ op: "list", path: isPromoted, error: "io-error", times: Infinity });
    const written: (string | undefined)[] = [];
    const outcome = await scripted.do("the failover", async () => {
      const promoted = agent.failover(FAILOVER, never).then(
        () => "done",
        (error: unknown) => (error as ColobusError).code,
      );
      for (let cluster = 0; agent.status().role === "Secondary"; cluster = (cluster + 1) % 64) {
        const begunMs = scripted.world.nowMs;
        const write = scripted.viewWrite(0, cluster * CLUSTER, CLUSTER);
        void write.then((end) => {
          if (scripted.world.nowMs > begunMs) written.push(end.kind);
        });
        await scripted.world.sleep(1);
      }
      const code = await promoted;
      await scripted.world.sleep(100);
      return code;
    });
    expect(outcome).toBe("io-error");
    expect(new Set(written)).toEqual(new Set(["failed"]));
    secondary.host.crash("process");
    await scripted.restartSecondary();
    expect(agent).not.toBe(secondary.agent);
    expect(secondary.agent?.role).toBe("Primary");
  });
});
