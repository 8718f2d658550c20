import { describe, expect, it } from "vitest";
import { decodeMessage } from "../../proto/replication-messages.ts";
import { decodeSharedMark, SHARED_MARK_BYTES } from "../../proto/shared-mark-format.ts";
import { MARK_PATH, type PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import { ScriptedTrio } from "./scripted-trio.ts";

/** What the mark of shared disks says while its agents are busy, and where it cannot be read or written. */
const NEVER = new AbortController().signal;
const FENCED = { fenced: true };
const FORCED = { fenced: true, force: true };

async function started(options: { readonly peerTimeoutMs?: number } = {}): Promise<ScriptedTrio> {
  const trio = new ScriptedTrio("shared", { onPeerLoss: "freeze", locksApart: true, ...options });
  await trio.start("shared");
  return trio;
}

/** What the medium has of the mark. */
function stateOf({ host }: PairMember): string {
  const decoded = decodeSharedMark(host.disk.readDurable(MARK_PATH).subarray(0, SHARED_MARK_BYTES));
  return decoded.kind === "mark" ? decoded.mark.state : decoded.kind;
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

  it.each([1, 2])(
    "is not forced where %i reads of it fail: the checkpoint that stands is not given up",
    async (times) => {
      const trio = await started();
      await trio.write(3, 0x33);
      trio.a.host.crash("power");
      await trio.lost(trio.b);
      let refusals = 0;
      for (let skip = 0; trio.status(trio.b).role === "Secondary"; skip += 1) {
        const reads = { op: "read", path: MARK_PATH, skip, times, error: "io-error" } as const;
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
    },
  );

  it("does not name one that lacks a checkpoint that was told, also where who has it takes no originals", async () => {
    // The loss of B is noticed before C tries its disk again.
    const trio = await started({ peerTimeoutMs: 1_000 });
    const disk = { kind: "generation-data", error: "io-error", times: Number.POSITIVE_INFINITY } as const;
    const mend = trio.c.host.disk.faults.inject({ op: ["write", "allocate"], ...disk });
    trio.cutOff(trio.b);
    trio.world.schedule(0, () => void trio.writeOnce(3, 0x33));
    await trio.until("the loss", () => trio.peer("b")?.connection !== "Connected");
    await trio.until("the pause", () => trio.peer("c")?.replication === "PausedSyncS");
    expect(await trio.checkpoint()).toBe(trio.status(trio.c).epoch.committed);
    trio.a.host.crash("power");
    mend();
    trio.cutOff(trio.b, false);
    await expect(trio.failover(trio.b, FENCED)).rejects.toMatchObject({ code: "unprotected" });
    await trio.lost(trio.c);
    await trio.failover(trio.c, FENCED);
  });

  it("has a checkpoint be unknown while it names one that lacks it, and cannot be written", async () => {
    const trio = await started();
    trio.cutOff(trio.b);
    await trio.until("the loss", () => trio.peer("b")?.connection !== "Connected");
    const mark = { op: "write", path: MARK_PATH, error: "io-error", times: Number.POSITIVE_INFINITY } as const;
    const mend = trio.a.host.disk.faults.inject(mark);
    await expect(trio.checkpoint()).rejects.toMatchObject({ code: "outcome-unknown" });
    const epoch = trio.status(trio.c).epoch.committed;
    const commit = (): Promise<unknown> =>
      trio.do("a commit", async () => trio.a.agent?.commit({ epoch, timeoutMs: 60_000 }, new AbortController().signal));
    await expect(commit()).rejects.toMatchObject({ code: "outcome-unknown" });
    mend();
    expect(await commit()).toMatchObject({ epoch, state: "committed" });
    trio.a.host.crash("power");
    trio.cutOff(trio.b, false);
    await expect(trio.failover(trio.b, FENCED)).rejects.toMatchObject({ code: "unprotected" });
    await trio.lost(trio.c);
    await trio.failover(trio.c, FENCED);
  });

  it("says that a merge is under way as long as it is, whatever is asked to be committed meanwhile", async () => {
    const trio = await started();
    await trio.write(3, 0x33);
    trio.a.host.crash("power");
    for (const member of [trio.b, trio.c]) await trio.lost(member);
    const image = { path: "/images/vda.img", error: "io-error", times: Number.POSITIVE_INFINITY } as const;
    const mend = trio.b.host.disk.faults.inject({ op: "write", ...image });
    await trio.failover(trio.b, FENCED);
    await trio.until("the merge to be stopped", () => trio.status(trio.b).jobs[0]?.state === "paused");
    const { committed } = trio.status(trio.b).epoch;
    const again = (): Promise<unknown> =>
      trio.do("a commit", async () => trio.b.agent?.commit({ epoch: committed, timeoutMs: 60_000 }, NEVER));
    expect(await again()).toMatchObject({ epoch: committed, state: "committed" });
    expect(stateOf(trio.b)).toBe("merging");
    mend();
    await trio.do("the merge", () => trio.merged(trio.b));
    await trio.until("the mark to be written", () => stateOf(trio.b) === "unprotected");
  });

  it("names the only secondary whose answer was lost, once it takes originals again", async () => {
    const scripted = new ScriptedPair(1, "power", { mode: "shared", isMarked: true });
    const { world, pair } = scripted;
    let isLost = false;
    world.network.intercept = (_, data) => {
      if (isLost || pair.secondary.status?.epoch.committed !== 1 || decodeMessage(data).type !== "answer")
        return "deliver";
      isLost = true;
      return "cut";
    };
    await scripted.start();
    expect(isLost).toBe(true);
    await scripted.until("the end of the sync", () => pair.primary.status?.peers[0]?.replication === "Established");
    await world.run({ forMs: 1_000 }); // until the mark is written
    pair.primary.host.crash("power");
    await scripted.do("a failover", async () => {
      const request = { force: false, dryRun: false, discardActive: false, fenced: true, timeoutMs: 60_000 };
      while (pair.secondary.status?.peers[0]?.connection === "Connected") await world.sleep(100);
      await pair.secondary.agent?.failover(request, new AbortController().signal);
    });
    expect(pair.secondary.status?.role).toBe("Primary");
  });
});
