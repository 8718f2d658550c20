import { describe, expect, it } from "vitest";
import { lifeGroups, livesToLive } from "./life-groups.ts";
import { LifeTotals } from "./life-totals.ts";
import { urlOf } from "./pair.ts";
import { CLUSTER, COMMAND, LIMIT_MS, ScriptedTrio } from "./scripted-trio.ts";
import { runTrioLife } from "./trio-life.ts";

/** Lives of a primary with two secondaries; `COLOBUS_TRIO_LIVES` says how many. */
const groups = lifeGroups(livesToLive("COLOBUS_TRIO_LIVES", { inCi: 60, here: 20 }), 20);

/** A has started again with C, while B, which is cut off, was promoted. */
async function besidePromoted(): Promise<ScriptedTrio> {
  const trio = new ScriptedTrio();
  await trio.start();
  trio.a.host.crash("process");
  await trio.until("the loss of A", () => trio.status(trio.b).peers[0]?.connection !== "Connected");
  trio.cutOff(trio.b);
  await trio.failover(trio.b);
  await trio.restart(trio.a);
  await trio.until("C to be connected", () => trio.peer("c")?.connection === "Connected");
  return trio;
}

describe("a primary with two secondaries", () => {
  it.each(["colo", "mc", "mirror"] as const)(
    "in mode %s goes on with one while the other is cut off, which comes back by a delta",
    async (mode) => {
      const trio = new ScriptedTrio(mode);
      await trio.start(mode);
      trio.cutOff(trio.b);
      await trio.until("the loss", () => trio.peer("b")?.connection !== "Connected");
      await trio.write(3, 0x33);
      expect(trio.peer("c")).toMatchObject({ connection: "Connected", replication: "Established" });
      expect(trio.status().protection.state).toBe("Protected");
      if (mode !== "mirror") expect(await trio.checkpoint()).toBe(trio.status(trio.c).epoch.committed);
      expect(await trio.read(3, trio.c)).toBe(0x33);
      trio.syncs.length = 0;
      trio.cutOff(trio.b, false);
      await trio.until("both to be in sync", () => trio.inSync().length === 2);
      expect(trio.syncs).toEqual([{ peer: "b", bytes: expect.any(Number) }]);
      // One extent of the activity log at most, of a disk of many.
      expect(trio.syncs[0]?.bytes).toBeLessThanOrEqual(2 * CLUSTER);
      if (mode !== "mirror") await trio.checkpoint();
      expect(await trio.read(3, trio.b)).toBe(0x33);
      expect(trio.status(trio.b).lineage).toBe(trio.status().lineage);
      expect(trio.status(trio.c).lineage).toBe(trio.status().lineage);
    },
  );

  it("takes the second one in while the first has never been there", async () => {
    const trio = new ScriptedTrio();
    for (const member of [trio.c, trio.a]) await trio.do("a start", () => member.start());
    await trio.until("the second to have everything", () => trio.inSync().length === 1);
    expect(trio.peer("c")).toMatchObject({ connection: "Connected", replication: "Established" });
    await trio.write(0, 0x22);
    await trio.checkpoint();
    expect(await trio.read(0, trio.c)).toBe(0x22);
    await trio.do("the first", () => trio.b.start());
    await trio.until("both to have everything", () => trio.inSync().length === 2);
  });

  it("has a checkpoint that it has told of on the side that was there, and the one that was not has parted from it", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    // B has the write, and not the checkpoint that commits it.
    await trio.write(3, 0x33);
    trio.cutOff(trio.b);
    await trio.until("the loss", () => trio.peer("b")?.connection !== "Connected");
    await trio.checkpoint();
    trio.a.host.crash("power");
    trio.cutOff(trio.b, false);
    await trio.until("the loss of A", () => trio.status(trio.b).peers[0]?.connection !== "Connected");
    await trio.failover(trio.b);
    expect(await trio.read(3, trio.b)).toBe(0x11);
    expect(await trio.follow(trio.c, trio.b)).toBe("split-brain");
    expect(await trio.read(3, trio.c)).toBe(0x33);
  });

  it("has the other secondary follow the one that was promoted, by a full sync, and itself by a delta", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    await trio.write(3, 0x33);
    await trio.checkpoint();
    await trio.write(4, 0x44);
    trio.a.host.crash("process");
    await trio.until("the loss of A", () => trio.status(trio.b).peers[0]?.connection !== "Connected");
    await trio.failover(trio.b);
    await trio.write(5, 0x55, trio.b);
    trio.syncs.length = 0;
    expect(await trio.follow(trio.c, trio.b)).toBe("done");
    await trio.until("C to be in sync", () => trio.inSync(trio.b).length === 1);
    await trio.restart(trio.a);
    // C, which it dials as its own, has heard of B's history: it serves nobody.
    await trio.until("A to be outdated", () => trio.status(trio.a).protection.reason === "outdated");
    expect(await trio.follow(trio.a, trio.b)).toBe("done");
    await trio.until("A to be in sync", () => trio.inSync(trio.b).length === 2);
    expect(trio.syncs).toEqual([
      { peer: "c", bytes: 32 * CLUSTER },
      { peer: "a", bytes: expect.any(Number) },
    ]);
    expect(trio.syncs[1]?.bytes).toBeLessThanOrEqual(4 * CLUSTER);
    await trio.checkpoint(trio.b);
    for (const member of [trio.a, trio.b, trio.c]) {
      expect([await trio.read(3, member), await trio.read(4, member), await trio.read(5, member)]).toEqual([
        0x33, 0x11, 0x55,
      ]);
    }
  });

  it("sends a VM state to both, which belongs to the checkpoint there", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    const chunk = Buffer.alloc(300 * 1024, 0x77);
    const answer = await trio.do("a checkpoint", async () => {
      const pieces = [chunk, chunk, chunk].values();
      const bytes = { next: () => Promise.resolve(pieces.next()) };
      return trio.a.agent?.checkpointWithVmState({ prepare: false, ...COMMAND }, bytes, new AbortController().signal);
    });
    expect(answer).toMatchObject({ state: "committed", vmstateBytes: 3 * chunk.length });
    for (const member of [trio.b, trio.c]) {
      expect(trio.status(member).epoch.committed).toBe(answer?.epoch);
      expect(trio.status(member).vmstate).toMatchObject({ epoch: answer?.epoch, bytes: 3 * chunk.length });
    }
  });

  it("has its guests wait after a start until both have spoken, since either may have been promoted", async () => {
    const trio = await besidePromoted();
    await trio.world.run({ forMs: 10_000 });
    expect(trio.status().protection.reason).toBe("held");
    trio.cutOff(trio.b, false);
    await trio.until("A to be outdated", () => trio.status().protection.reason === "outdated");
  });

  it("takes no checkpoint while its guests wait for one, and says so at once to whom a guest waits for", async () => {
    const trio = await besidePromoted();
    await trio.until("C to have everything", () => trio.inSync().length === 1);
    expect(trio.status().protection.reason).toBe("held");
    const beganMs = trio.world.nowMs;
    const taking = trio.do("a checkpoint", async () => {
      await trio.a.agent?.checkpoint({ prepare: true, wait: false, ...COMMAND }, new AbortController().signal);
    });
    await expect(taking).rejects.toMatchObject({ code: "not-in-sync" });
    expect(trio.world.nowMs - beganMs).toBeLessThan(COMMAND.timeoutMs);
  });

  it("has who waits for its secondaries hear that one is given up, though nothing else happens", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    trio.c.host.crash("process");
    await trio.until("the loss", () => trio.peer("c")?.connection !== "Connected");
    const waits = (["connected", "synced"] as const).map(async (condition) =>
      trio.a.agent?.wait({ condition, ...COMMAND }, new AbortController().signal),
    );
    expect(await trio.forget(urlOf("c"))).toBe("done");
    expect(await trio.do("the waits", () => Promise.all(waits))).toEqual([
      { condition: "connected" },
      { condition: "synced" },
    ]);
  });

  it.each(["b", "c"] as const)("gives %s up for good: nothing waits for it, and it is refused", async (name) => {
    const trio = new ScriptedTrio();
    await trio.start();
    const [gone, other] = name === "b" ? ([trio.b, trio.c] as const) : ([trio.c, trio.b] as const);
    await trio.write(3, 0x33);
    // The one that is given up has the newest checkpoint.
    trio.cutOff(other);
    await trio.until("the loss of the other one", () => trio.inSync().length === 1);
    const newest = await trio.checkpoint();
    trio.cutOff(other, false);
    gone.host.crash("power");
    await trio.until("the other one", () => trio.inSync().some(({ url }) => url === urlOf(other.name)));
    await trio.until("the loss", () => trio.status().peers.some(({ connection }) => connection !== "Connected"));
    await trio.until("a checkpoint of the other one", () => trio.status(other).epoch.committed > (newest ?? 0));

    expect(await trio.forget(urlOf(other.name))).toBe("peer-connected");
    expect(await trio.forget("ws://nobody:1")).toBe("no-peer");
    expect(await trio.forget(urlOf(name))).toBe("done");
    expect(await trio.forget(urlOf(name))).toBe("no-peer");
    expect(await trio.forget(urlOf(other.name))).toBe("not-applicable");
    expect(trio.status().peers.map(({ url }) => url)).toEqual([urlOf(other.name)]);
    expect(trio.status().recoverable).toMatchObject({ epoch: trio.status(other).epoch.committed });
    await trio.write(4, 0x44);

    trio.a.host.crash("process");
    await trio.restart(trio.a);
    await trio.until("a protected VM", () => trio.status().protection.state === "Protected");
    await trio.write(5, 0x55);
    expect(await trio.checkpoint()).toBe(trio.status(other).epoch.committed);
    expect([await trio.read(3, other), await trio.read(4, other), await trio.read(5, other)]).toEqual([
      0x33, 0x44, 0x55,
    ]);

    await trio.restart(gone);
    expect(await trio.follow(gone, trio.a)).toBe("peer-replaced");
    expect(trio.status().peers.map(({ url, replication }) => [url, replication])).toEqual([
      [urlOf(other.name), "Established"],
    ]);
    // The place that is free is for whoever comes with nothing.
    const next = await trio.newcomer("d");
    expect(await trio.follow(next, trio.a)).toBe("done");
    await trio.until("both to be in sync", () => trio.inSync().length === 2);
  });

  it.each(["process", "power"] as const)("has given one up, or not, wherever it dies on the way: %s", async (kind) => {
    const found = new Set<string>();
    for (let call = 1; ; call += 1) {
      const trio = new ScriptedTrio();
      await trio.start();
      trio.b.host.crash("power");
      await trio.until("the loss", () => trio.inSync().length === 1);
      trio.a.host.disk.faults.crashAt(call, kind);
      let answer: string | undefined;
      trio.world.schedule(0, () => {
        void trio.forgetNow(urlOf("b")).then((given) => (answer = given));
      });
      await trio.world.run({ until: () => answer !== undefined || !trio.a.host.alive, forMs: LIMIT_MS });
      const hasDied = !trio.a.host.alive;
      trio.a.host.disk.faults.clear();
      if (hasDied) await trio.restart(trio.a);
      const isForgotten = trio.status().peers.length === 1;
      found.add(`${hasDied ? "died" : "lived"}, ${isForgotten ? "given up" : "kept"}`);
      if (isForgotten) {
        await trio.until("a protected VM", () => trio.status().protection.state === "Protected");
      } else {
        await trio.restart(trio.b);
        await trio.until("both to be in sync", () => trio.inSync().length === 2);
      }
      await trio.write(5, 0x55);
      await trio.checkpoint();
      expect(await trio.read(5, trio.c)).toBe(0x55);
      if (!hasDied) break;
    }
    expect(found).toEqual(new Set(["died, kept", "died, given up", "lived, given up"]));
  });

  it.each(["process", "power"] as const)(
    "keeps one of two that are given up at once, wherever it dies: %s",
    async (kind) => {
      for (let call = 1; ; call += 1) {
        const trio = new ScriptedTrio();
        await trio.start();
        for (const gone of [trio.b, trio.c]) gone.host.crash("power");
        await trio.until("the losses", () => trio.status().peers.every(({ connection }) => connection !== "Connected"));
        trio.a.host.disk.faults.crashAt(call, kind);
        const answers: string[] = [];
        trio.world.schedule(0, () => {
          for (const name of ["b", "c"]) void trio.forgetNow(urlOf(name)).then((answer) => answers.push(answer));
        });
        await trio.world.run({ until: () => answers.length === 2 || !trio.a.host.alive, forMs: LIMIT_MS });
        const hasDied = !trio.a.host.alive;
        trio.a.host.disk.faults.clear();
        if (hasDied) await trio.restart(trio.a);
        else expect(answers.sort()).toEqual(["done", "not-applicable"]);
        expect(trio.status().peers.length).toBeGreaterThan(0);
        if (!hasDied) break;
      }
    },
  );

  it("gives up one of two by one order, and has another take the place of the other, at once", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    for (const gone of [trio.b, trio.c]) gone.host.crash("power");
    await trio.until("the losses", () => trio.status().peers.every(({ connection }) => connection !== "Connected"));
    await trio.newcomer("d");
    const given = await trio.do("the orders", () =>
      Promise.all([trio.forgetNow(urlOf("b")), trio.acceptNow({ peer: urlOf("d"), insteadOf: urlOf("c") })]),
    );
    expect(given).toEqual(["done", "done"]);
    await trio.until("D to be in sync", () => trio.inSync().length === 1);
    expect(trio.status().peers.map(({ url }) => url)).toEqual([urlOf("d")]);
  });

  it("hears of the promotion of one that it has given up", async () => {
    const trio = await besidePromoted();
    expect(trio.status().protection.reason).toBe("held");
    expect(await trio.forget(urlOf("b"))).toBe("done");
    await trio.until("guests to go on", () => trio.status().protection.state === "Protected");
    trio.cutOff(trio.b, false);
    expect(await trio.follow(trio.b, trio.a)).not.toBe("done");
    await trio.until("A to be outdated", () => trio.status().protection.reason === "outdated");
  });

  it("has another agent take the place of one, while the other one goes on", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    trio.cutOff(trio.b);
    trio.cutOff(trio.c);
    await trio.until("the losses", () => trio.status().peers.every(({ connection }) => connection !== "Connected"));
    expect(await trio.accept({ peer: urlOf("d") })).toBe("usage");
    trio.cutOff(trio.c, false);
    trio.world.network.partition("a", "c", false);
    await trio.until("C to be in sync", () => trio.inSync().length === 1);
    expect(await trio.accept({ peer: urlOf("d"), insteadOf: urlOf("c") })).toBe("peer-connected");

    trio.syncs.length = 0;
    await trio.newcomer("d");
    expect(await trio.accept({ peer: urlOf("d"), insteadOf: urlOf("b") })).toBe("done");
    await trio.until("both to be in sync", () => trio.inSync().length === 2);
    expect(trio.syncs).toEqual([{ peer: "d", bytes: 32 * CLUSTER }]);
    expect(trio.status().peers.map(({ url }) => url)).toEqual([urlOf("d"), urlOf("c")]);

    trio.a.host.crash("process");
    await trio.restart(trio.a);
    await trio.until("both again", () => trio.inSync().length === 2);
    expect(new Set(trio.status().peers.map(({ url }) => url))).toEqual(new Set([urlOf("c"), urlOf("d")]));
  });

  it.each(["forget", "accept"] as const)(
    "gives up no newcomer whose session is opening, by another order: %s",
    async (order) => {
      const trio = new ScriptedTrio();
      await trio.start();
      trio.b.host.crash("power");
      await trio.until("the loss", () => trio.peer("b")?.connection !== "Connected");
      await trio.newcomer("d");
      const d = urlOf("d");
      const outcomes: string[] = [];
      await trio.do("the orders", async () => {
        const accepted = trio.acceptNow({ peer: d, insteadOf: urlOf("b") });
        const isOpening = (): boolean =>
          trio
            .status()
            .peers.some(({ url, agentId, connection }) => url === d && agentId !== null && connection !== "Connected");
        while (!isOpening()) await trio.world.sleep(0.1);
        const again = order === "forget" ? trio.forgetNow(d) : trio.acceptNow({ peer: d, insteadOf: d });
        outcomes.push(await again, await accepted);
      });
      expect(outcomes).toEqual(["peer-connected", "done"]);
      await trio.until("both to be in sync", () => trio.inSync().length === 2);
    },
  );

  it("follows a side that none of its own secondaries is", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    trio.a.host.crash("process");
    await trio.until("the loss of A", () => trio.status(trio.b).peers[0]?.connection !== "Connected");
    await trio.failover(trio.b);
    const d = await trio.newcomer("d");
    expect(await trio.follow(d, trio.b)).toBe("done");
    await trio.until("D to be in sync", () => trio.inSync(trio.b).length === 1);
    await trio.checkpoint(trio.b);
    await trio.do("a switchover", async () => {
      const request = { peer: trio.status(d).agentId, closeClients: true, ...COMMAND };
      await trio.b.agent?.switchover(request, new AbortController().signal);
    });
    await trio.restart(trio.a);
    expect(await trio.follow(trio.a, d)).toBe("done");
    await trio.until("A to be in sync", () => trio.inSync(d).length === 1);
  });

  it("greets anew where one that it greets has heard of another side meanwhile", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    trio.a.host.crash("process");
    await trio.until("the loss of A", () => trio.status(trio.b).peers[0]?.connection !== "Connected");
    await trio.failover(trio.b);
    await trio.write(5, 0x55, trio.b);
    await trio.restart(trio.a);
    trio.world.network.partition("a", "b", true);
    // C has said to A what it was, and A's proof is still to come.
    await trio.until("a link of A", () => trio.world.network.links("a", "c").length > 0);
    trio.world.network.block("a", "c", true);
    expect(await trio.follow(trio.c, trio.b)).toBe("done");
    await trio.until("C to be in sync with B", () => trio.inSync(trio.b).length === 1);
    await trio.checkpoint(trio.b);
    trio.syncs.length = 0;
    trio.world.network.block("a", "c", false);
    await trio.until("A to be outdated", () => trio.status().protection.reason === "outdated");
    await trio.world.run({ forMs: 10_000 });
    expect(trio.syncs).toEqual([]);
    expect(trio.inSync(trio.b).length).toBe(1);
    expect(await trio.read(5, trio.c)).toBe(0x55);
  });

  // Of two that come at once one takes the place by which the other was greeted.
  it("brings everything to each of two newcomers, in life 624", async () => {
    const { counts } = await runTrioLife(624);
    expect(counts["hosts lost"]).toBeGreaterThan(0);
  });

  it.each(groups)("loses nothing that was told, in lives $from to $to", async ({ from, to }) => {
    const totals = new LifeTotals();
    for (let seed = from; seed <= to; seed += 1) totals.add(await runTrioLife(seed));
    process.stdout.write(`trio lives ${from} to ${to}: ${totals.describe()}\n`);
    const told = ["failovers", "follows", "splits", "discards", "partitions", "told without one"] as const;
    for (const name of [...told, "hosts lost", "forgotten", "replaced"] as const) {
      expect(totals.counts[name], name).toBeGreaterThan(0);
    }
  });
});
