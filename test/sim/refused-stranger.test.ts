import { describe, expect, it } from "vitest";
import { urlOf, type PairMember } from "./pair.ts";
import { COMMAND, ScriptedTrio } from "./scripted-trio.ts";

/** B was promoted, and C follows it. A comes back, dials C and is refused: what C says of itself goes on being about B. */

type Parted = "is behind" | "has parted";

async function besideFormer(how: Parted): Promise<ScriptedTrio> {
  const trio = new ScriptedTrio();
  await trio.start();
  await trio.write(3, 0x33);
  trio.a.host.crash("process");
  for (const member of [trio.b, trio.c]) await trio.lost(member);
  await trio.failover(trio.b);
  await trio.do("the merge", () => trio.merged(trio.b));
  await trio.write(4, 0x44, trio.b);
  expect(await trio.follow(trio.c, trio.b)).toBe("done");
  await trio.until("C to have everything", () => trio.inSync(trio.b).length === 1);
  await trio.checkpoint(trio.b);
  if (how === "has parted") {
    trio.cutOff(trio.a);
    await trio.restart(trio.a);
    await trio.do("start-alone", async () => trio.a.agent?.startAlone({ force: true }));
    await trio.write(5, 0x55);
    trio.world.network.partition("a", "c", false);
  } else {
    trio.world.network.partition("a", "b", true);
    await trio.restart(trio.a);
  }
  await trio.until("C to refuse A", () => refusals(trio, trio.c) > 0);
  return trio;
}

function refusals(trio: ScriptedTrio, member: PairMember): number {
  return member.agent?.events(0).filter(({ type }) => type === "peer-refused").length ?? 0;
}

function expectWell(trio: ScriptedTrio): void {
  const { protection, peers } = trio.status(trio.c);
  expect(protection.state).toBe("Protected");
  expect(peers).toMatchObject([{ agentId: trio.status(trio.b).agentId, connection: "Connected", lastError: null }]);
}

describe.each(["is behind", "has parted"] as const)(
  "a former primary that %s is refused by one that follows another",
  (how) => {
    it("and that one is as Protected as before", async () => {
      const trio = await besideFormer(how);
      expectWell(trio);
      await trio.world.run({ forMs: 60_000 });
      expectWell(trio);
    });

    it("and the loss of the other one is told as what it is", async () => {
      const trio = await besideFormer(how);
      trio.a.host.crash("process");
      trio.b.host.crash("process");
      await trio.lost(trio.c);
      const { protection, peers } = trio.status(trio.c);
      expect(protection.reason).toBe("connecting");
      expect(peers[0]).toMatchObject({ connection: "Connecting", lastError: { code: "connection-lost" } });
    });

    it("and asked about its peer that one tells of the primary which it follows", async () => {
      const trio = await besideFormer(how);
      const answer = await trio.do("connect --dry-run", async () =>
        trio.c.agent?.connect({ dryRun: true, discardMyData: false, ...COMMAND }, new AbortController().signal),
      );
      expect(answer).toMatchObject({ connected: true, verdict: { kind: "sync" } });
      expect(trio.status(trio.c).peers[0]?.url).toBe(urlOf("b"));
    });
  },
);

it("a former primary that is behind is nobody for whom the data of one that follows another are given up", async () => {
  const trio = await besideFormer("is behind");
  expect(await trio.discard(trio.c)).toBe("not-applicable");
  expectWell(trio);
});
