import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { asColobusError } from "../../proto/errors.ts";
import { urlOf, type PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";

/**
 * A pair that shares its disks. B was promoted, and dies while A becomes its secondary; A is promoted by force, without
 * having heard of B's lineage. By its own record B owes nobody anything: the mark beside the disks is all that tells it.
 */
const COMMAND = { timeoutMs: 60_000 } as const;
const FAILOVER = { force: true, dryRun: false, discardActive: false, fenced: true, ...COMMAND } as const;
const LONG_MS = 60_000;

function promote(scripted: ScriptedPair, { agent }: PairMember): Promise<void> {
  return scripted.do("a failover", async () => {
    await agent?.failover(FAILOVER, new AbortController().signal);
    await agent?.wait({ condition: "merged", ...COMMAND }, new AbortController().signal);
  });
}

async function restart(scripted: ScriptedPair, member: PairMember): Promise<void> {
  member.host.restart();
  expect(await scripted.do("a start", () => member.start())).toBe(true);
}

/** A takes up the role of the secondary, and B dies before the two have spoken again. */
function rejoinDying(scripted: ScriptedPair): Promise<void> {
  const { primary: a, secondary: b } = scripted.pair;
  return scripted.do("a rejoin", async () => {
    // It is never answered.
    a.agent?.rejoin({ peer: urlOf("b"), ...COMMAND }, new AbortController().signal).catch(() => undefined);
    await scripted.until("the change of A's role", () => a.agent?.role === "Secondary");
    b.host.crash("power");
  });
}

describe("a promoted side of shared disks whose peer was promoted by force meanwhile", () => {
  it("serves nobody when it starts again", async () => {
    const scripted = new ScriptedPair(1, "power", { mode: "shared", isMarked: true });
    const { world } = scripted;
    const { primary: a, secondary: b } = scripted.pair;
    await scripted.start();
    a.host.crash("power");
    await promote(scripted, b);
    await restart(scripted, a);
    await scripted.until("A to be outdated", () => a.agent?.status().protection.reason === "outdated");
    await rejoinDying(scripted);
    await promote(scripted, a);
    world.network.partition("a", "b", true);
    await restart(scripted, b);
    const outcomes: string[] = [];
    const [disk] = scripted.disks;
    assert(disk !== undefined);
    world.schedule(0, () => {
      void scripted.guestWrite(0, 0, 4096, "bytes", { by: b }).then(({ kind }) => outcomes.push(kind));
      const read = Promise.resolve(b.device(disk)?.read(Buffer.alloc(4096), 0));
      void read.then(() => "read", asColobusError).then((outcome) => outcomes.push(String(outcome)));
    });
    await world.run({ forMs: LONG_MS });
    expect(b.agent?.status().protection.reason).toBe("held");
    expect(outcomes).toEqual([]);
  });
});
