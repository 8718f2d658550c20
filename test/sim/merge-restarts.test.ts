import { describe, expect, it } from "vitest";
import { ReplicatedDisk } from "../../primary/replicated-disk.ts";
import type { JobVerb } from "../../proto/control-api.ts";
import type { JobStatus } from "../../proto/status.ts";
import { present } from "../support/present.ts";
import { imagePath, urlOf, type PairMember } from "./pair.ts";
import { CLUSTER, COMMAND, ScriptedTrio } from "./scripted-trio.ts";

/**
 * B was promoted and has not merged everything yet; a secondary comes back to it, which has another checkpoint than the one
 * that B was promoted from, or none. B is stopped in good order, and started again: it shows what it has shown before, and
 * so does its image in the end.
 */
const DISK = { name: "vda", sizeBytes: 48 * CLUSTER };
const DRAIN_MS = 1_000;
const SETTLED_MS = 1_000;
/** More stretches than the merge does before it is paused. */
const WRITTEN = Array.from({ length: 12 }, (_, index) => 3 * index);

type Mode = "colo" | "mc";

type Promotion = "failover" | "failover --discard-active" | "switchover";

/** B was promoted from a checkpoint, its merge is paused, and it was written to since. */
async function merging(mode: Mode, how: Promotion = "failover"): Promise<ScriptedTrio> {
  const trio = new ScriptedTrio(mode, { disks: [DISK], retain: 1 });
  await trio.start();
  for (const cluster of WRITTEN) await trio.write(cluster, 0x22);
  await trio.checkpoint();
  for (const cluster of WRITTEN) await trio.write(cluster + 1, 0x33);
  await trio.checkpoint();
  for (const cluster of WRITTEN) await trio.write(cluster, 0x44);
  await trio.world.run({ forMs: SETTLED_MS });
  // C would follow the promoted side by itself, and have a checkpoint of it.
  for (const member of how === "switchover" ? [trio.c] : [trio.a, trio.c]) trio.cutOff(member);
  if (how === "switchover") await trio.until("the loss of C", () => trio.inSync().length === 1);
  else await trio.lost(trio.b);
  await trio.do("a promotion", async () => {
    const discardActive = how === "failover --discard-active";
    const request = { force: false, dryRun: false, discardActive, ...COMMAND };
    const promoted = how === "switchover" ? trio.switchOverNow(trio.b) : trio.b.agent?.failover(request, never());
    while (mergeOf(trio) === undefined) await trio.world.sleep(1);
    await order(trio, "pause");
    await promoted;
  });
  for (const cluster of WRITTEN.slice(-2)) await trio.write(cluster, 0x55, trio.b);
  return trio;
}

function mergeOf({ b }: ScriptedTrio): JobStatus | undefined {
  return b.agent?.jobs().find(({ type }) => type === "merge");
}

/** To be called in the world. */
async function order(trio: ScriptedTrio, verb: JobVerb): Promise<void> {
  await trio.b.agent?.job(present(mergeOf(trio)).id, verb);
}

function never(): AbortSignal {
  return new AbortController().signal;
}

/** Past the gate: guests may have to wait, but what they will see is there. */
async function contentOf(trio: ScriptedTrio): Promise<Buffer> {
  const content = Buffer.alloc(DISK.sizeBytes);
  const device = present(trio.b.device(DISK));
  await trio.do("a read", async () => {
    await (device instanceof ReplicatedDisk ? device.child : device).read(content, 0);
  });
  return content;
}

/** The first byte of each cluster. */
function bytesOf(content: Buffer): number[] {
  return Array.from({ length: DISK.sizeBytes / CLUSTER }, (_, cluster) => content[cluster * CLUSTER] ?? -1);
}

async function checkRestarts(trio: ScriptedTrio, shown?: Buffer): Promise<void> {
  const { b } = trio;
  shown ??= await contentOf(trio);
  for (let start = 0; start < 2; start += 1) {
    await trio.do("a clean stop", () => b.stop(DRAIN_MS));
    b.host.crash("process");
    for (const member of [trio.a, trio.c]) trio.cutOff(member);
    await trio.restart(b);
    expect(trio.status(b).jobs).toEqual([expect.objectContaining({ type: "merge", state: "paused" })]);
    expect(bytesOf(await contentOf(trio))).toEqual(bytesOf(shown));
  }
  await trio.do("the merge", async () => {
    await order(trio, "resume");
    await trio.merged(b);
  });
  expect(bytesOf(b.host.disk.readFile(imagePath(DISK)))).toEqual(bytesOf(shown));
}

async function follow(trio: ScriptedTrio, member: PairMember): Promise<void> {
  trio.cutOff(member, false);
  if (trio.status(member).role === "Primary") {
    await trio.until("A to be outdated", () => trio.status(member).protection.reason === "outdated");
  }
  expect(await trio.follow(member, trio.b)).toBe("done");
}

const FAILOVERS: readonly Promotion[] = ["failover", "failover --discard-active"];

describe.each<Mode>(["colo", "mc"])("a promoted side that is stopped in its merge, in mode %s", (mode) => {
  it.each(FAILOVERS)("shows the same when nobody has come, after a %s", async (how) => {
    await checkRestarts(await merging(mode, how));
  });

  it.each(FAILOVERS)("shows the same when A has come and has no checkpoint, after a %s", async (how) => {
    const trio = await merging(mode, how);
    await follow(trio, trio.a);
    await trio.until("A to have none", () => trio.status(trio.b).epoch.committed === 0);
    await checkRestarts(trio);
  });

  it.each(FAILOVERS)("shows the same when A has committed a later checkpoint, after a %s", async (how) => {
    const trio = await merging(mode, how);
    await follow(trio, trio.a);
    await trio.until("A to be in sync", () => trio.inSync(trio.b).length === 1);
    await trio.write(5, 0x66, trio.b);
    expect(await trio.checkpoint(trio.b)).toBeGreaterThan(0);
    await checkRestarts(trio);
  });

  it.each(["a", "c"] as const)("shows the same when %s, one of two secondaries, was given up", async (name) => {
    const trio = await merging(mode);
    for (const member of [trio.a, trio.c]) await follow(trio, member);
    await trio.until("both to be in sync", () => trio.inSync(trio.b).length === 2);
    await trio.checkpoint(trio.b);
    const peer = trio.status(trio[name]).agentId;
    trio[name].host.crash("process");
    await trio.until("the loss", () => trio.inSync(trio.b).length === 1);
    await trio.do("a forget", async () => {
      await trio.b.agent?.forget({ peer, ...COMMAND }, never());
    });
    const shown = await contentOf(trio);
    trio.b.host.crash("process");
    await trio.restart(trio.b);
    await checkRestarts(trio, shown);
  });

  it("shows the same when another peer was let in", async () => {
    const trio = await merging(mode);
    await follow(trio, trio.a);
    await trio.until("A to be in sync", () => trio.inSync(trio.b).length === 1);
    trio.a.host.crash("process");
    await trio.newcomer("d");
    await trio.do("another peer", async () => {
      const request = { peer: urlOf("d"), dryRun: false, discardMyData: false, acceptNewPeer: true, ...COMMAND };
      await trio.b.agent?.connect(request, never());
    });
    await checkRestarts(trio);
  });
});

describe("a side that has taken over by a switchover", () => {
  it("shows the same when it is stopped in its merge", async () => {
    const trio = await merging("mc", "switchover");
    await trio.until("A to have no checkpoint", () => trio.status(trio.b).epoch.committed === 0);
    await checkRestarts(trio);
  });
});
