import { describe, expect, it } from "vitest";
import type { ConnectAnswer } from "../../proto/control-api.ts";
import type { Status } from "../../proto/status.ts";
import { decodeMessage } from "../../proto/replication-messages.ts";
import type { PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";

/**
 * `connect --dry-run`: the answer of the peer, without a trace on either side. Each test looks at everything that the two
 * say of themselves, and at what is on their disks, before and after.
 */
const SEEDS = 5;
const QUICK_MS = 3_000;
const SETTLED_MS = 20_000;
/** Until the peer has heard that the link of a question is closed; a side that tries again by itself waits longer. */
const HEARD_MS = 50;

async function ask(scripted: ScriptedPair, member: PairMember, timeoutMs = QUICK_MS): Promise<ConnectAnswer> {
  const signal = new AbortController().signal;
  try {
    return await scripted.do("a dry run", async () => {
      if (member.agent === undefined) throw new Error("the agent does not run");
      return member.agent.connect({ dryRun: true, discardMyData: false, timeoutMs }, signal);
    });
  } finally {
    await pass(scripted, HEARD_MS);
  }
}

/** What a member says, without what time alone changes, and what it has on its disk. */
function shown(member: PairMember): unknown {
  const status = member.agent?.status();
  const steady = (one: Status): unknown => ({
    ...one,
    peers: one.peers.map((peer) => ({ ...peer, lastContactMs: null })),
    recoverable: one.recoverable === null ? null : { ...one.recoverable, ageMs: 0, lastContactMs: null },
  });
  return {
    status: status === undefined ? undefined : steady(status),
    events: member.agent?.events(0),
    record: member.host.disk.readFile("/state/state").toString("hex"),
  };
}

function pass(scripted: ScriptedPair, ms: number): Promise<void> {
  return scripted.do("some time", () => scripted.world.sleep(ms));
}

/** Both sides were written to while the network parted them. */
async function split(seed: number): Promise<ScriptedPair> {
  const scripted = new ScriptedPair(seed, "power");
  const { world, pair } = scripted;
  await scripted.start();
  world.network.partition("a", "b", true);
  await pass(scripted, SETTLED_MS);
  await scripted.do("a write alone", () => scripted.guestWrite(0, 0, 4096, "bytes"));
  await scripted.do("a failover", () => scripted.failOver());
  const promoted = pair.secondary.device({ name: "vda", sizeBytes: 0 });
  await scripted.do("a write there", async () => promoted?.write(Buffer.alloc(8192, 5), 4096, { fua: false }));
  world.network.cut("a", "b");
  world.network.partition("a", "b", false);
  const isSplit = (): boolean =>
    [pair.primary, pair.secondary].every(({ agent }) => agent?.status().protection.reason === "split-brain");
  await scripted.until("split", isSplit);
  // Its own next dial is some time away.
  await scripted.until("the end of the link", () => world.network.links("a", "b").length === 0);
  return scripted;
}

/** Both have died and come back, and the primary, which has to hear of the secondary, dials again only after a while. */
async function held(seed: number): Promise<ScriptedPair> {
  const scripted = new ScriptedPair(seed, "power");
  const { primary, secondary } = scripted.pair;
  await scripted.start();
  for (const { host } of [primary, secondary]) host.crash("process");
  for (const { host } of [primary, secondary]) host.restart();
  await scripted.do("the start of the primary", () => primary.start());
  await pass(scripted, SETTLED_MS);
  await scripted.do("the start of the secondary", () => secondary.start());
  return scripted;
}

describe("a dry run of connect", () => {
  it("tells of the open session, and opens no other", async () => {
    const scripted = new ScriptedPair(1, "power");
    await scripted.start();
    const { pair, world } = scripted;
    for (const member of [pair.primary, pair.secondary]) {
      const before = [pair.primary, pair.secondary].map(shown);
      const links = world.network.links("a", "b");
      const { connected, verdict } = await ask(scripted, member);
      expect({ connected, kind: verdict.kind }).toEqual({ connected: true, kind: "sync" });
      expect([pair.primary, pair.secondary].map(shown)).toEqual(before);
      expect(world.network.links("a", "b")).toEqual(links);
    }
  });

  it("asks a peer with which it has parted, and leaves no trace on either side", async () => {
    for (let seed = 1; seed <= SEEDS; seed += 1) {
      const scripted = await split(seed);
      const { primary, secondary } = scripted.pair;
      const first = await ask(scripted, primary);
      expect(first.connected).toBe(false);
      expect(first.verdict).toMatchObject({ kind: "split-brain", rule: "diverged", source: null });
      // What the peer has changed since the last handshake is told as it is now.
      const device = secondary.device({ name: "vda", sizeBytes: 0 });
      await scripted.do("another write there", async () => device?.write(Buffer.alloc(4096, 6), 16_384, { fua: true }));
      const before = [primary, secondary].map(shown);
      const { verdict } = await ask(scripted, primary, 200);
      expect([primary, secondary].map(shown)).toEqual(before);
      expect(verdict.changedBytes.there).toBeGreaterThan(first.verdict.changedBytes.there);
      expect(verdict.meaning).toContain(`${verdict.changedBytes.there} bytes on the peer`);
      // The side that dials nobody hears it when the other one tries again.
      expect((await ask(scripted, secondary, SETTLED_MS)).verdict).toMatchObject({
        kind: "split-brain",
        changedBytes: { here: verdict.changedBytes.there, there: verdict.changedBytes.here },
      });
    }
  });

  it("asks while guests are held, and neither lets them go nor opens a session", async () => {
    for (let seed = 1; seed <= SEEDS; seed += 1) {
      const scripted = await held(seed);
      const { primary, secondary } = scripted.pair;
      const before = [primary, secondary].map(shown);
      const { connected, verdict } = await ask(scripted, primary, 200);
      expect(connected).toBe(false);
      expect(verdict).toMatchObject({ kind: "sync", rule: "same-lineage", extent: "delta" });
      expect(verdict.meaning).toContain("this side sends to the peer");
      expect([primary, secondary].map(shown)).toEqual(before);
      expect(primary.agent?.status().protection.reason).toBe("held");
      await scripted.checkRecovery();
    }
  });

  it.each([
    ["a secondary", held],
    ["a primary", split],
  ])("leaves no trace on %s that knows it, when its link is cut in the middle", async (_, make) => {
    const cuts = [
      { type: "proof", to: "b" },
      { type: "proof", to: "a" },
      { type: "hello", to: "b" },
      { type: "seal", to: "a" },
      { type: "refuse", to: "b" },
    ];
    for (const [index, { type, to }] of cuts.entries()) {
      const scripted = await make(index + 1);
      const { world, pair } = scripted;
      const before = [pair.primary, pair.secondary].map(shown);
      world.network.intercept = (receiver, data) =>
        receiver.process.host.name === to && decodeMessage(data).type === type ? "cut" : "deliver";
      // Whether the answer has come before the cut is told or not: both sides are as they were.
      // What was sent behind the one that is lost may still arrive, and tells that one is missing.
      await ask(scripted, pair.primary, 200).catch((error: unknown) =>
        expect(error).toMatchObject({ code: expect.stringMatching(/^(connection-lost|protocol-error)$/) as string }),
      );
      expect([pair.primary, pair.secondary].map(shown), `${type} to ${to}`).toEqual(before);
    }
  });

  it("says at once that nobody answers, with what was known before", async () => {
    const scripted = await split(1);
    const { primary, secondary } = scripted.pair;
    secondary.host.crash("process");
    await pass(scripted, SETTLED_MS);
    const failure = await ask(scripted, primary).catch((error: unknown) => error);
    expect(failure).toMatchObject({ code: "connection-lost" });
    expect(String(failure)).toMatch(/connection refused; the last handshake, with \w+, came to "split-brain"/);
  });

  it("gives up with `timed-out` when the peer is silent, and knows nothing when it never spoke to one", async () => {
    const scripted = new ScriptedPair(1, "power");
    const { world, pair } = scripted;
    world.network.partition("a", "b", true);
    await scripted.do("the start", async () => {
      await pair.secondary.start();
      await pair.primary.start();
    });
    for (const member of [pair.primary, pair.secondary]) {
      const before = shown(member);
      const failure = await ask(scripted, member).catch((error: unknown) => error);
      expect(failure).toMatchObject({ code: "timed-out" });
      expect(String(failure)).toContain("has spoken to no peer since its start");
      expect(shown(member)).toEqual(before);
    }
  });
});
