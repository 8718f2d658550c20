import { describe, expect, it } from "vitest";
import { MARK_PATH } from "./pair.ts";
import { ScriptedTrio } from "./scripted-trio.ts";

/** What the mark of shared disks says while its agents are busy, and where it cannot be read or written. */
const FENCED = { fenced: true };
const FORCED = { fenced: true, force: true };

async function started(): Promise<ScriptedTrio> {
  const trio = new ScriptedTrio("shared", { onPeerLoss: "freeze", locksApart: true });
  await trio.start("shared");
  return trio;
}

describe("the mark of shared disks", () => {
  it("names who has a checkpoint, also when the overlays of the last failover are removed after that", async () => {
    const trio = await started();
    await trio.write(3, 0x33);
    trio.a.host.crash("power");
    for (const member of [trio.b, trio.c]) await trio.lost(member);
    trio.b.host.disk.faults.inject({ op: "removeBehind", error: "io-error" });
    await trio.failover(trio.b, FENCED);
    expect(await trio.follow(trio.c, trio.b)).toBe("done");
    await trio.until("C to take originals", () => trio.inSync(trio.b).length === 1);
    await trio.checkpoint(trio.b);
    expect(trio.status(trio.b).jobs).not.toMatchObject([{ state: "concluded" }]);
    await trio.do("the merge", () => trio.merged(trio.b));
    await trio.world.run({ forMs: 10_000 });
    await trio.checkpoint(trio.b);
    await trio.write(3, 0x34, trio.b);
    trio.b.host.crash("power");
    await trio.lost(trio.c);
    await trio.failover(trio.c, FENCED);
    expect(await trio.read(3, trio.c)).toBe(0x11);
  });

  it("is not forced where it cannot be read: the checkpoint that stands is not given up", async () => {
    const trio = await started();
    await trio.write(3, 0x33);
    trio.a.host.crash("power");
    await trio.lost(trio.b);
    let refusals = 0;
    for (let skip = 0; trio.status(trio.b).role === "Secondary"; skip += 1) {
      const reads = { op: "read", path: MARK_PATH, skip, times: 2, error: "io-error" } as const;
      const mend = trio.b.host.disk.faults.inject(reads);
      await trio.failover(trio.b, FORCED).catch((error: unknown) => {
        expect(error).toMatchObject({ code: "io-error" });
        refusals += 1;
      });
      mend();
      await trio.world.run({ forMs: 1_000 });
    }
    expect(refusals).toBeGreaterThan(2);
    expect(await trio.read(3, trio.b)).toBe(0x11);
  });
});
