import { describe, expect, it } from "vitest";
import type { JobVerb } from "../../proto/control-api.ts";
import type { JobStatus } from "../../proto/status.ts";
import { SYNC_STEP_PIECES } from "../../proto/limits.ts";
import type { JobType } from "../../proto/words.ts";
import { present } from "../support/present.ts";
import { urlOf, type PairMember } from "./pair.ts";
import { CLUSTER, LIMIT_MS, ScriptedTrio } from "./scripted-trio.ts";
import type { CrashKind } from "./simulated-crash.ts";

/**
 * The host of an agent dies at each of its storage calls from when an operator pauses its sync, or merge, on. Once that was
 * answered it is paused when the agent has started again, however long that waits; resumed, it comes to its end.
 */
const WHILE_MS = 20_000;
const SPEED = 12_345_678;
/** More stretches than a sync brings in one step. */
const CLUSTERS = Array.from({ length: SYNC_STEP_PIECES + 16 }, (_, index) => 2 * index);
/** What a merge brings in more than one. */
const MERGED = CLUSTERS.slice(0, 8);
const DISKS = [{ name: "vda", sizeBytes: 2 * CLUSTERS.length * CLUSTER }];
/** What the record of a pause and some writes take. */
const CALLS_MIN = 3;

function jobOf(trio: ScriptedTrio, member: PairMember, type: JobType): JobStatus | undefined {
  return trio.status(member).jobs.findLast((job) => job.type === type && job.state !== "concluded");
}

function untilRunning(trio: ScriptedTrio, member: PairMember, type: JobType): Promise<void> {
  return trio.until(`a ${type}`, () => jobOf(trio, member, type)?.state === "running");
}

/** To be called in the world. */
async function order(trio: ScriptedTrio, member: PairMember, type: JobType, verb: JobVerb): Promise<void> {
  await member.agent?.job(present(jobOf(trio, member, type)).id, verb);
}

/** A sync of B is under way on A. */
async function syncing(): Promise<ScriptedTrio> {
  const trio = new ScriptedTrio("colo", { disks: DISKS });
  await trio.start();
  trio.cutOff(trio.b);
  await trio.until("the loss", () => trio.peer("b")?.connection !== "Connected");
  for (const cluster of CLUSTERS) await trio.write(cluster, 0x33);
  trio.cutOff(trio.b, false);
  await untilRunning(trio, trio.a, "resync");
  return trio;
}

/** B was promoted, and merges what it has kept. */
async function merging(): Promise<ScriptedTrio> {
  const trio = new ScriptedTrio("colo", { disks: DISKS });
  await trio.start();
  for (const cluster of MERGED) await trio.write(cluster, 0x33);
  trio.a.host.crash("process");
  await trio.until("the loss of A", () => trio.status(trio.b).peers[0]?.connection !== "Connected");
  await trio.failover(trio.b);
  await untilRunning(trio, trio.b, "merge");
  return trio;
}

interface Case {
  readonly type: "resync" | "merge";
  readonly kind: CrashKind;
}

/** Lives until the `dyingCall`-th storage call, and once more; undefined where there is none, else whether the pause was answered. */
async function dieWhilePaused(dyingCall: number, { type, kind }: Case): Promise<boolean | undefined> {
  const trio = await (type === "resync" ? syncing() : merging());
  const member = type === "resync" ? trio.a : trio.b;
  member.host.disk.faults.crashAt(dyingCall, kind);
  let isPaused = false;
  let isOver = false;
  const live = async (): Promise<void> => {
    await order(trio, member, type, "pause");
    await member.agent?.setJobSpeed(present(jobOf(trio, member, type)).id, SPEED);
    isPaused = true;
    for (const cluster of [1, 2]) await trio.writeOnce(cluster, 0x44, member);
    isOver = true;
  };
  trio.world.schedule(0, () => void live());
  await trio.world.run({ until: () => isOver || !member.host.alive, forMs: LIMIT_MS });
  if (member.host.alive) return undefined;
  member.host.disk.faults.clear();
  await trio.restart(member);
  if (type === "resync") await trio.until("B", () => trio.peer("b")?.connection === "Connected");
  await trio.world.run({ forMs: WHILE_MS });
  const job = jobOf(trio, member, type);
  if (isPaused) {
    expect(job).toMatchObject({ state: "paused", error: null, speedLimit: SPEED });
    if (type === "resync") expect(trio.peer("b")?.replication).toBe("PausedSyncS");
  }
  if (job?.state === "paused") await trio.do("resume", () => order(trio, member, type, "resume"));
  await trio.until("its end", () => jobOf(trio, member, type) === undefined);
  if (type === "resync") await trio.until("both to have everything", () => trio.inSync().length === 2);
  return isPaused;
}

describe("a job that an operator has paused, while its host dies at every storage call", () => {
  it.each<Case>([
    { type: "resync", kind: "process" },
    { type: "resync", kind: "power" },
    { type: "merge", kind: "process" },
    { type: "merge", kind: "power" },
  ])("stays paused once that was answered: $type, $kind", async (one) => {
    const answered: boolean[] = [];
    for (;;) {
      const found = await dieWhilePaused(answered.length + 1, one);
      if (found === undefined) break;
      answered.push(found);
    }
    expect(answered.length).toBeGreaterThan(CALLS_MIN);
    expect(new Set(answered)).toEqual(new Set([false, true]));
  });

  it("is nothing to the next sync once everything was sent", async () => {
    const trio = await syncing();
    await trio.do("the orders", async () => {
      await order(trio, trio.a, "resync", "pause");
      await trio.a.agent?.setJobSpeed(present(jobOf(trio, trio.a, "resync")).id, SPEED);
      await order(trio, trio.a, "resync", "resume");
    });
    await trio.until("both to have everything", () => trio.inSync().length === 2);
    trio.a.host.crash("power");
    await trio.restart(trio.a);
    await trio.until("both again", () => trio.inSync().length === 2);
    trio.cutOff(trio.b);
    await trio.until("the loss", () => trio.peer("b")?.connection !== "Connected");
    for (const cluster of CLUSTERS) await trio.write(cluster, 0x66);
    trio.cutOff(trio.b, false);
    await untilRunning(trio, trio.a, "resync");
    expect(jobOf(trio, trio.a, "resync")?.speedLimit).not.toBe(SPEED);
    await trio.until("both to have everything", () => trio.inSync().length === 2);
  });

  it("is nothing to the one that takes the secondary's place", async () => {
    const trio = await syncing();
    await trio.do("the pause", () => order(trio, trio.a, "resync", "pause"));
    trio.b.host.crash("power");
    await trio.until("the loss", () => trio.peer("b")?.connection !== "Connected");
    await trio.newcomer("d");
    expect(await trio.accept({ peer: urlOf("d"), insteadOf: urlOf("b") })).toBe("done");
    await trio.until("both to have everything", () => trio.inSync().length === 2);
  });

  it("is nothing any more to a side that becomes secondary, and primary again", async () => {
    const trio = await syncing();
    await trio.do("the pause", () => order(trio, trio.a, "resync", "pause"));
    const switchOver = (from: PairMember, to: PairMember): Promise<unknown> =>
      trio.do("a switchover", async () => {
        const peer = trio.status(to).agentId;
        await from.agent?.switchover({ peer, closeClients: true, timeoutMs: LIMIT_MS }, new AbortController().signal);
      });
    await switchOver(trio.a, trio.c);
    expect(await trio.follow(trio.a, trio.c)).toBe("done");
    const { agentId } = trio.status(trio.a);
    await trio.until("A to be in sync", () => trio.inSync(trio.c).some((peer) => peer.agentId === agentId));
    await switchOver(trio.c, trio.a);
    expect(await trio.follow(trio.c, trio.a)).toBe("done");
    expect(await trio.follow(trio.b, trio.a)).toBe("done");
    await trio.until("both to have everything", () => trio.inSync().length === 2);
  });
});
