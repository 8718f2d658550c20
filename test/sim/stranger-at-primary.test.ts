import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import type { ColobusError } from "../../proto/errors.ts";
import { urlOf, type PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import { ScriptedTrio } from "./scripted-trio.ts";
import { makeTrioMember } from "./trio.ts";

/** A third agent, C, dials a primary with one place for a secondary, and is refused: what is known of B, whose place it is, stays. */

const WHILE_MS = 20_000;

/** Another VM's primary, of disks that look the same. It dials A. */
async function refusedBeside({ world, options }: ScriptedPair): Promise<PairMember> {
  const { windowBytes, ack, disks } = options;
  const stranger = makeTrioMember(
    world,
    "c",
    { mode: "colo", disks, durability: "power", ack, windowBytes, onCongestion: "throttle" },
    { observer: { requested: () => undefined, happened: () => undefined } },
  );
  stranger.reconfigure({ role: "Primary", peers: [urlOf("a")], secondaries: 1 });
  await world.do("the start of C", () => stranger.start());
  const refusal = (): string | undefined => stranger.status?.peers[0]?.lastError?.code;
  await world.runUntil("the refusal", () => refusal() === "unrelated", WHILE_MS);
  await world.run({ forMs: WHILE_MS }); // it tries again and again
  return stranger;
}

describe("a primary that refuses a stranger", () => {
  it("goes on telling of the secondary that is connected", async () => {
    const scripted = new ScriptedPair(1, "power");
    const { primary: a, secondary: b } = scripted.pair;
    await scripted.start();
    await scripted.wait("synced");
    const stranger = await refusedBeside(scripted);
    const own = { agentId: b.status?.agentId, connection: "Connected", replication: "Established", lastError: null };
    expect(a.status?.peers).toMatchObject([own]);
    expect(a.status?.protection.state).toBe("Protected");
    const request = { dryRun: true, discardMyData: false, timeoutMs: WHILE_MS };
    const answer = await scripted.do("connect --dry-run", async () =>
      a.agent?.connect(request, new AbortController().signal),
    );
    expect(answer).toMatchObject({ connected: true, verdict: { kind: "sync" } });
    const discarding = scripted.do("connect --discard-my-data", async () =>
      a.agent?.connect({ ...request, dryRun: false, discardMyData: true }, new AbortController().signal),
    );
    await expect(discarding).rejects.toMatchObject({ code: "not-applicable" });
    stranger.host.crash("process");
    b.host.crash("process");
    await scripted.until("the loss", () => a.status?.peers[0]?.connection === "Connecting");
    expect(a.status?.protection.reason).toBe("connecting");
  });

  it("does not forget over it that its secondary was written to as well, before guests may go on", async () => {
    const scripted = new ScriptedPair(1, "power");
    const { world, pair } = scripted;
    const { primary: a, secondary: b } = pair;
    await scripted.start();
    world.network.partition("a", "b", true);
    await scripted.until("the loss", () => a.status?.peers[0]?.connection !== "Connected");
    await scripted.do("a write on A", () => scripted.guestWrite(0, 0, 4096, "bytes"));
    a.host.crash("power");
    expect((await scripted.do("the failover", () => scripted.failOver())).kind).toBe("done");
    await scripted.do("a write on B", () => scripted.guestWrite(0, 8192, 8192, "bytes", { by: b }));
    a.host.restart();
    assert(await scripted.do("the start of A", () => a.start()));
    world.network.partition("a", "b", false);
    await scripted.until("the split brain", () => a.status?.peers[0]?.lastError?.code === "split-brain");
    const own = { agentId: b.status?.agentId, connection: "StandAlone", lastError: { code: "split-brain" } };
    b.host.crash("process");
    const stranger = await refusedBeside(scripted);
    expect(a.status?.protection.reason).toBe("split-brain");
    expect(a.status?.peers).toMatchObject([own]);
    const refusals = a.agent
      ?.events(0)
      .filter(({ type, data }) => type === "peer-refused" && data.code === "unrelated");
    expect(refusals).toHaveLength(1);
    stranger.host.crash("process");
    const refused = await scripted.do("start-alone", async () =>
      a.agent?.startAlone({ force: false }).then(
        () => "released",
        ({ code }: ColobusError) => code,
      ),
    );
    expect(refused).toBe("split-brain");
  });
});

it("a primary that has parted with its former secondary goes on telling of the one in its place", async () => {
  const trio = new ScriptedTrio();
  const { a, b, c, world } = trio;
  for (const member of [a, b, c]) member.reconfigure({ secondaries: 1, peers: [urlOf(member === a ? "b" : "a")] });
  for (const member of [b, a]) await trio.do("a start", () => member.start());
  await trio.until("B to have everything", () => trio.inSync().length === 1);
  await trio.checkpoint();
  world.network.partition("a", "b", true);
  await trio.lost(b);
  await trio.failover(b, { force: true });
  await trio.until("the loss of B", () => trio.inSync().length === 0);
  await trio.do("the start of C", () => c.start());
  await trio.until("C to have everything", () => trio.inSync().length === 1);
  world.network.partition("a", "b", false);
  await trio.until("the split brain", () => trio.status(b).protection.reason === "split-brain");
  await world.run({ forMs: WHILE_MS });
  const own = { agentId: trio.status(c).agentId, connection: "Connected", replication: "Established", lastError: null };
  expect(trio.status().peers).toMatchObject([own]);
});
