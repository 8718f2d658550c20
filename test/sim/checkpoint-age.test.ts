import { describe, expect, it } from "vitest";
import type { PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";

const MAX_AGE_MS = 20_000;
const HOUR_MS = 3_600_000;
const LATER_MS = 10_000;
/** What the agents need for a barrier, or a few messages. */
const MOMENT_MS = 1_000;
const COMMAND = { timeoutMs: 60_000 } as const;

/** The protection as the events of an agent tell it, newest first. */
function told({ agent }: PairMember): string[] {
  const events = agent?.events(0).filter(({ type }) => type === "protection-changed") ?? [];
  return events.map(({ data }) => String(data["reason"] ?? data["state"])).reverse();
}

function ageMs({ status }: PairMember): number {
  return status?.recoverable?.ageMs ?? NaN;
}

function expectAge(member: PairMember, wantedMs: number): void {
  expect(ageMs(member)).toBeGreaterThan(wantedMs - MOMENT_MS);
  expect(ageMs(member)).toBeLessThan(wantedMs + MOMENT_MS);
}

const SIDES = ["primary", "secondary"] as const;
/** What the wall clock of a host is set on by. */
const JUMPS = [0, -HOUR_MS, HOUR_MS];
const SIDES_AND_JUMPS = SIDES.flatMap((side) => JUMPS.map((jumpMs) => ({ side, jumpMs })));

describe("a checkpoint that gets older than --max-checkpoint-age", () => {
  it.each(SIDES_AND_JUMPS)(
    "is told by the $side when nothing else happens, though its clock is set by $jumpMs ms",
    async ({ side, jumpMs }) => {
      const scripted = new ScriptedPair(1, "power");
      const { pair, world } = scripted;
      const member = pair[side];
      member.reconfigure({ maxCheckpointAgeMs: MAX_AGE_MS });
      await scripted.start();
      for (let round = 0; round < 2; round += 1) {
        await scripted.do("a checkpoint", () => scripted.checkpoint());
        const takenMs = world.nowMs;
        member.host.wallOffsetMs += jumpMs;
        expectAge(member, 0);
        await scripted.until("protected", () => told(member)[0] === "Protected");
        await scripted.until("too old", () => told(member)[0] === "checkpoint-too-old");
        expect(world.nowMs - takenMs).toBeGreaterThan(MAX_AGE_MS - MOMENT_MS);
        expect(world.nowMs - takenMs).toBeLessThan(MAX_AGE_MS + MOMENT_MS);
        expect(member.status?.protection).toMatchObject({ state: "NotProtected", reason: "checkpoint-too-old" });
        expect(ageMs(member)).toBeGreaterThan(MAX_AGE_MS);
      }
      const other = side === "primary" ? pair.secondary : pair.primary;
      expect(other.status?.protection.state).toBe("Protected");
    },
  );
});

describe("the age of a checkpoint", () => {
  it.each(SIDES)("counts on the %s from its barrier, however late it is committed", async (side) => {
    const scripted = new ScriptedPair(2, "power");
    const { pair, world } = scripted;
    await scripted.start();
    await scripted.do("a checkpoint", async () => {
      const { signal } = new AbortController();
      const prepared = await pair.primary.agent?.checkpoint({ prepare: true, ...COMMAND }, signal);
      await world.sleep(LATER_MS);
      pair[side].host.wallOffsetMs += HOUR_MS;
      await pair.primary.agent?.commit({ epoch: prepared?.epoch ?? 0, ...COMMAND }, signal);
    });
    expectAge(pair[side], LATER_MS);
  });

  it.each([
    { jumpMs: 0, wantedMs: LATER_MS },
    { jumpMs: HOUR_MS, wantedMs: HOUR_MS + LATER_MS },
    { jumpMs: -HOUR_MS, wantedMs: 0 },
  ])(
    "is what the wall clock says, set by $jumpMs ms meanwhile, when a process begins",
    async ({ jumpMs, wantedMs }) => {
      const scripted = new ScriptedPair(3, "power");
      const { pair, world } = scripted;
      const sides = [pair.primary, pair.secondary];
      await scripted.start();
      await scripted.do("a stop", async () => {
        await Promise.all(sides.map((member) => member.stop(0)));
        await world.sleep(LATER_MS);
        for (const { host } of sides) {
          host.crash("process");
          host.wallOffsetMs += jumpMs;
          host.restart();
        }
        await pair.secondary.start();
        await pair.primary.start();
      });
      for (const member of sides) expectAge(member, wantedMs);
      for (const { host } of sides) host.wallOffsetMs -= HOUR_MS;
      await scripted.do("some time", () => world.sleep(LATER_MS));
      for (const member of sides) expectAge(member, wantedMs + LATER_MS);
    },
  );

  it.each(JUMPS)("is what it was where one is rolled back to, with the clock set by %i ms since", async (jumpMs) => {
    const scripted = new ScriptedPair(4, "power", { retain: 2 });
    const { pair, world } = scripted;
    const { secondary } = pair;
    await scripted.start();
    await scripted.do("a checkpoint", () => scripted.checkpoint());
    const retained = secondary.status?.epoch.committed ?? 0;
    secondary.host.wallOffsetMs += jumpMs;
    await scripted.do("some time", () => world.sleep(LATER_MS));
    await scripted.do("a checkpoint", () => scripted.checkpoint());
    expectAge(secondary, 0);
    pair.primary.host.crash("process");
    await scripted.until("the loss", () => secondary.status?.peers[0]?.connection !== "Connected");
    await scripted.do("a rollback", () => scripted.rollBack(retained));
    expect(secondary.status?.epoch.committed).toBe(retained);
    expectAge(secondary, LATER_MS);
  });

  it.each(JUMPS)("goes on where the roles are swapped, with the clocks set by %i ms since", async (jumpMs) => {
    const scripted = new ScriptedPair(5, "power");
    const { pair, world } = scripted;
    const sides = [pair.primary, pair.secondary];
    await scripted.start();
    await scripted.switchOver();
    const epochOf = ({ status }: PairMember): number => status?.recoverable?.epoch ?? NaN;
    await scripted.until("one checkpoint of both", () => epochOf(pair.primary) === epochOf(pair.secondary));
    for (const { host } of sides) host.wallOffsetMs += jumpMs;
    await scripted.do("some time", () => world.sleep(LATER_MS));
    expect(pair.primary.status?.role).toBe("Secondary");
    for (const member of sides) expectAge(member, LATER_MS);
  });

  it.each(SIDES)("is that of the last write in mode mirror on the %s", async (side) => {
    const scripted = new ScriptedPair(6, "power", { mode: "mirror", ack: "applied" });
    const { pair, world } = scripted;
    await scripted.start();
    await scripted.do("a write", () => scripted.guestWrite(0, 0, 4096, "bytes"));
    pair[side].host.wallOffsetMs += HOUR_MS;
    await scripted.do("some time", () => world.sleep(LATER_MS));
    expectAge(pair[side], LATER_MS);
    pair[side].host.wallOffsetMs -= 2 * HOUR_MS;
    expectAge(pair[side], LATER_MS);
  });
});
