import { describe, expect, it } from "vitest";
import { decodeMessage } from "../../proto/replication-messages.ts";
import { urlOf, type PairMember } from "./pair.ts";
import { COMMAND, LIMIT_MS, ScriptedTrio } from "./scripted-trio.ts";
import { SeededRandom } from "./seeded-random.ts";
import { SimArbiter } from "./sim-arbiter.ts";
import type { TrioOptions } from "./trio.ts";
import type { SimWorld } from "./world.ts";

/** The role goes to one of two secondaries: the former primary and the other one follow it, whoever dials, and whoever dies on the way. */

const TTL_MS = 3_000;
/** What the process of each side does in a switchover, at least. */
const CALLS_MIN = 12;
/** A trio that dies at each call takes its time: it does at every so many. */
const STRIDE = 5;

/** The agents that the primary `member` has in sync, by their ids. */
function followersOf(trio: ScriptedTrio, member: PairMember): string[] {
  if (member.role !== "Primary") return [];
  return trio.inSync(member).flatMap(({ agentId }) => agentId ?? []);
}

function followed(trio: ScriptedTrio, member: PairMember): Promise<void> {
  return trio.until(`two that follow ${member.name}`, () => followersOf(trio, member).length === 2);
}

function isProtected({ status }: PairMember): boolean {
  return status?.protection.state === "Protected";
}

function withArbiter(world: SimWorld): Partial<TrioOptions> {
  return { arbiter: { service: new SimArbiter(world, new SeededRandom(1), TTL_MS), ttlMs: TTL_MS } };
}

/** The one that has the role hands it over, to whom it dials or is dialled by. */
function switchOver(trio: ScriptedTrio, from: PairMember, to: PairMember): Promise<unknown> {
  const peer = trio.status(to).agentId;
  return trio.do("a switchover", async () =>
    from.agent?.switchover({ peer, closeClients: true, ...COMMAND }, new AbortController().signal),
  );
}

/** The role has gone to the secondary of that name while the other one was cut off, which it still is. */
async function switchedOverWithoutOther(
  name: "b" | "c",
): Promise<{ trio: ScriptedTrio; successor: PairMember; other: PairMember }> {
  const trio = new ScriptedTrio();
  await trio.start();
  const successor = trio[name];
  const other = successor === trio.b ? trio.c : trio.b;
  trio.cutOff(other);
  await trio.until("the loss", () => trio.inSync().length === 1);
  expect(await trio.switchOver(successor)).toBe("done");
  return { trio, successor, other };
}

describe.each(["b", "c"] as const)("a switchover to the secondary %s of two", (name) => {
  it.each([
    ["mode colo", "colo", {}],
    ["mode mc", "mc", {}],
    ["mode mirror", "mirror", {}],
    ["shared disks", "shared", {}],
    ["an arbiter", "colo", withArbiter],
  ] as const)("has the other two follow it: %s", async (_, mode, options) => {
    const trio = new ScriptedTrio(mode, options);
    await trio.start(mode);
    const successor = trio[name];
    await trio.write(3, 0x33);
    expect(await trio.switchOver(successor)).toBe("done");
    await followed(trio, successor);
    if (mode !== "mirror") await trio.checkpoint(successor);
    await trio.until("all to be protected", () => [trio.a, trio.b, trio.c].every(isProtected));
    expect(await trio.read(3, successor)).toBe(0x33);
    // Both directions, and over restarts: the records have it.
    for (const member of [trio.a, trio.b, trio.c]) {
      member.host.crash("process");
      await trio.restart(member);
      await followed(trio, successor);
    }
    await switchOver(trio, successor, trio.a);
    await followed(trio, trio.a);
    expect(await trio.read(3, trio.a)).toBe(0x33);
  });

  it("is followed where the secondaries dial", async () => {
    const trio = new ScriptedTrio();
    trio.a.reconfigure({ peers: [] });
    for (const member of [trio.b, trio.c]) member.reconfigure({ peers: [urlOf("a")] });
    await trio.start();
    const successor = trio[name];
    expect(await trio.switchOver(successor)).toBe("done");
    await trio.until("the former primary", () => followersOf(trio, successor).includes(trio.status(trio.a).agentId));
    // The other one dials whom it was told to.
    const other = successor === trio.b ? trio.c : trio.b;
    expect(await trio.follow(other, successor)).toBe("done");
    await followed(trio, successor);
  });

  it("is followed by one that was away, and is back after a restart of the new primary", async () => {
    const { trio, successor, other } = await switchedOverWithoutOther(name);
    const isFollowedByA = (): boolean => followersOf(trio, successor).includes(trio.status(trio.a).agentId);
    await trio.until("the former primary", isFollowedByA);
    successor.host.crash("process");
    await trio.restart(successor);
    await trio.until("the former primary again", isFollowedByA);
    trio.cutOff(other, false);
    await followed(trio, successor);
  });

  it("is taken up by nobody in the former primary's place, which gets what differs", async () => {
    const { trio, successor, other } = await switchedOverWithoutOther(name);
    await trio.until("the former primary", () => followersOf(trio, successor).length === 1);
    trio.cutOff(trio.a);
    await trio.until("the loss of A", () => followersOf(trio, successor).length === 0);
    await trio.write(4, 0x44, successor);
    successor.host.crash("process");
    await trio.restart(successor);
    trio.world.network.partition(name, other.name, false);
    await trio.until("the other one", () => followersOf(trio, successor).includes(trio.status(other).agentId));
    trio.cutOff(trio.a, false);
    await followed(trio, successor);
    const size = trio.status(trio.a).disks.reduce((sum, disk) => sum + (disk.sizeBytes ?? 0), 0);
    expect(trio.syncs.findLast(({ peer }) => peer === "a")?.bytes).toBeLessThan(size);
  });

  it.each<"a" | "successor">(["a", "successor"])("leaves a pair, whatever dies on the way: %s", async (side) => {
    for (let call = 1; ; call += STRIDE) {
      const trio = new ScriptedTrio();
      await trio.start();
      await trio.write(3, 0x33);
      const successor = trio[name];
      const { host } = side === "a" ? trio.a : successor;
      host.disk.faults.crashAt(call, "process");
      trio.world.schedule(0, () => void trio.switchOverNow(successor));
      const isOver = (): boolean =>
        [trio.a, successor].some((member) => member.role === "Primary" && followersOf(trio, member).length === 2);
      const isSwapped = (): boolean => successor.role === "Primary" && isOver();
      await trio.world.run({ until: () => !host.alive || isSwapped(), forMs: LIMIT_MS });
      const hasDied = !host.alive;
      host.disk.faults.clear();
      if (hasDied) await trio.restart(side === "a" ? trio.a : successor);
      await trio.until("a primary that two follow", isOver);
      expect(await trio.read(3, isSwapped() ? successor : trio.a)).toBe(0x33);
      if (hasDied) continue;
      expect(call).toBeGreaterThan(CALLS_MIN);
      return;
    }
  });

  it("which was cut off, and is found out about at a handshake after a restart", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    const successor = trio[name];
    const { network } = trio.world;
    network.intercept = (receiver, data) => {
      if (receiver.process.host.name === name && decodeMessage(data).type === "takeover")
        network.block(name, "a", true);
      return "deliver";
    };
    expect(await trio.switchOver(successor, 1_000)).toBe("timed-out");
    await trio.until("the promotion", () => successor.role === "Primary");
    network.intercept = undefined;
    trio.a.host.crash("process");
    await trio.restart(trio.a);
    network.block(name, "a", false);
    await followed(trio, successor);
  });
});
