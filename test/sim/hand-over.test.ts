import { describe, expect, it } from "vitest";
import { DISK_RETRY_MS } from "../../proto/limits.ts";
import { decodeMessage } from "../../proto/replication-messages.ts";
import type { ColobusError } from "../../proto/errors.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import { ScriptedTrio } from "./scripted-trio.ts";
import { SeededRandom } from "./seeded-random.ts";
import { SimArbiter } from "./sim-arbiter.ts";

const SWITCHOVER = { closeClients: true, timeoutMs: 60_000 } as const;
const SOON_MS = 1_000;
const TTL_MS = 3_000;

describe("a hand-over that is under way", () => {
  it("is not undone by an operator who sees guests wait", async () => {
    const scripted = new ScriptedPair(1, "power", { primaryStorage: { syncMs: [10, 20] } });
    await scripted.start();
    const { primary, secondary } = scripted.pair;
    const answers = new Set<string>();
    await scripted.do("a switchover", async () => {
      const { agent } = primary;
      let isOver = false;
      const swapped = agent?.switchover(SWITCHOVER, new AbortController().signal).finally(() => (isOver = true));
      while (!isOver) {
        const answer = await agent?.startAlone({ force: false }).then(
          ({ released }) => (released ? "released" : "nobody waits"),
          (error: ColobusError) => error.code,
        );
        if (answer !== undefined) answers.add(answer);
        await scripted.world.sleep(1);
      }
      await swapped;
    });
    expect([primary.role, secondary.role]).toEqual(["Secondary", "Primary"]);
    expect(answers).toContain("handed-over");
    expect(answers).not.toContain("released");
    expect(answers).not.toContain("nobody waits");
  });

  it("goes to one of two secondaries, of which both are asked for at once", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    const outcomes = await trio.do("the switchovers", () =>
      Promise.all([trio.switchOverNow(trio.b), trio.switchOverNow(trio.c)]),
    );
    expect(outcomes).toEqual(["done", "handed-over"]);
    expect([trio.a.role, trio.b.role, trio.c.role]).toEqual(["Secondary", "Primary", "Secondary"]);
  });

  it("goes to no other secondary while it is not known whether the first one took it", async () => {
    const trio = new ScriptedTrio();
    await trio.start();
    const { network } = trio.world;
    network.intercept = (receiver, data) => {
      if (receiver.process.host.name === "b" && decodeMessage(data).type === "takeover") network.block("b", "a", true);
      return "deliver";
    };
    // C goes on with A.
    network.partition("b", "c", true);
    expect(await trio.switchOver(trio.b, SOON_MS)).toBe("timed-out");
    await trio.until("B's promotion", () => trio.b.role === "Primary");
    expect(await trio.switchOver(trio.c, SOON_MS)).toBe("handed-over");
    await trio.until("the loss of B", () => trio.peer("b")?.connection !== "Connected");
    expect(await trio.switchOver(trio.c)).toBe("handed-over");
    expect(trio.c.role).toBe("Secondary");
    network.block("b", "a", false);
    await trio.until("A to hear of it", () => trio.a.role === "Secondary");
  });

  it("has guests go on where the session was lost, and is back, before the secondary was asked", async () => {
    let kept = 0;
    for (let ms = 0; ms < 1_500; ms += 50) {
      let arbiter: SimArbiter | undefined;
      const trio = new ScriptedTrio("colo", (world) => {
        arbiter = new SimArbiter(world, new SeededRandom(1), TTL_MS);
        return { arbiter: { service: arbiter, ttlMs: TTL_MS } };
      });
      await trio.start();
      arbiter?.slow("a");
      const swap = trio.switchOverNow(trio.b, SOON_MS);
      await trio.world.run({ forMs: ms });
      trio.world.network.cut("a", "b");
      await trio.do("the switchover", () => swap);
      await trio.until("both to be back", () => trio.a.role === "Secondary" || trio.inSync().length === 2);
      if (trio.a.role === "Secondary") continue;
      kept += 1;
      await trio.write(1, 0x44);
    }
    expect(kept).toBeGreaterThan(0);
  });

  it("has guests of shared disks go on where the session was lost, and is back, before the secondary was asked", async () => {
    let kept = 0;
    for (let ms = 0; ms < 1_500; ms += 50) {
      let arbiter: SimArbiter | undefined;
      const scripted = new ScriptedPair(1, "power", (world) => {
        arbiter = new SimArbiter(world, new SeededRandom(1), TTL_MS);
        return { mode: "shared", isMarked: true, arbiter: { service: arbiter, ttlMs: TTL_MS } };
      });
      await scripted.start();
      const { world, pair } = scripted;
      arbiter?.slow("a");
      const swap = pair.primary.agent
        ?.switchover({ ...SWITCHOVER, timeoutMs: 2 * SOON_MS }, new AbortController().signal)
        .catch((error: unknown) => error); // whatever has become of it, the roles tell
      await world.run({ forMs: ms });
      world.network.cut("a", "b");
      await scripted.do("the switchover", async () => swap);
      await scripted.until("both to be back", () => {
        return pair.primary.role === "Secondary" || pair.primary.status?.peers[0]?.replication === "Established";
      });
      if (pair.primary.role === "Secondary") continue;
      kept += 1;
      expect(await scripted.do("a write", () => scripted.guestWrite(0, 0, 4096, "bytes"))).toMatchObject({
        kind: "done",
      });
    }
    expect(kept).toBeGreaterThan(0);
  });

  it("waits for a sync of the secondary while guests go on, also with changes that wait where it reads", async () => {
    const scripted = new ScriptedPair(1, "power", {
      disks: [{ name: "vda", sizeBytes: 64 * 4096 }],
      primaryStorage: { coldProbability: 1, readMs: [20, 20] },
    });
    const { world, pair } = scripted;
    const { primary, secondary } = pair;
    primary.reconfigure({ resyncSpeed: 16 * 4096 });
    await scripted.start();
    world.network.partition("a", "b", true);
    await scripted.until("the loss", () => primary.status?.peers[0]?.connection === "Connecting");
    for (let cluster = 0; cluster < 64; cluster += 2) {
      await scripted.do("a write", () => scripted.guestWrite(0, cluster * 4096, 4096, "bytes"));
    }
    world.network.partition("a", "b", false);
    const isSyncing = (): boolean => primary.status?.peers[0]?.replication === "SyncSource";
    await scripted.until("a sync", isSyncing);
    let slowestMs = 0;
    const write = async (): Promise<void> => {
      const begunMs = world.nowMs;
      const { kind } = await scripted.guestWrite(0, 0, 64 * 4096, "bytes");
      if (kind === "done") slowestMs = Math.max(slowestMs, world.nowMs - begunMs);
    };
    await scripted.do("the switchover", async () => {
      const swapped = primary.agent?.switchover(SWITCHOVER, new AbortController().signal);
      while (isSyncing()) await write();
      await swapped;
    });
    expect([primary.role, secondary.role]).toEqual(["Secondary", "Primary"]);
    expect(slowestMs).toBeGreaterThan(0);
    expect(slowestMs).toBeLessThan(SOON_MS);
  });

  it("leaves a shared image alone that was given back, also where a failed read is to be tried again", async () => {
    const scripted = new ScriptedPair(1, "power", { mode: "shared", isMarked: true });
    await scripted.start();
    const { world, pair } = scripted;
    const { faults } = pair.primary.host.disk;
    const told = (type: string): number =>
      pair.primary.agent?.events(0).filter((event) => event.type === type).length ?? 0;
    faults.inject({ error: "io-error", op: ["tryRead", "read"], kind: "image" });
    await scripted.do("a read that fails", () => scripted.guestRead(0, 0, 4096));
    expect(told("disk-error")).toBe(1);
    world.network.intercept = (_, data) => {
      if (decodeMessage(data).type !== "takeover") return "deliver";
      world.network.partition("a", "b", true);
      return "lose";
    };
    const outcome = await scripted.do("the switchover", async () =>
      pair.primary.agent
        ?.switchover({ ...SWITCHOVER, timeoutMs: SOON_MS }, new AbortController().signal)
        .catch(({ code }: ColobusError) => code),
    );
    expect(outcome).toBe("timed-out");
    const touched: string[] = [];
    faults.intercept = ({ op, kind }) => {
      if (kind === "image") touched.push(op);
      return undefined;
    };
    await world.run({ forMs: 3 * DISK_RETRY_MS });
    expect(touched).toEqual([]);
    world.network.partition("a", "b", false);
    await scripted.until("the disk to be mended", () => told("disk-mended") === 1);
    expect(touched).not.toEqual([]);
  });
});
