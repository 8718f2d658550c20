import { describe, expect, it } from "vitest";
import { CLUSTER, ScriptedTrio } from "./scripted-trio.ts";

const DIRTY = 5;

describe("a secondary that something has to be sent to again while a lineage begins", () => {
  it("takes part in no checkpoint before it has that", async () => {
    const trio = new ScriptedTrio("colo", { storage: { syncMs: [20, 20] } });
    await trio.start();
    const { world } = trio;
    trio.cutOff(trio.c);
    world.network.cut("a", "c");
    await trio.until("the loss of C", () => trio.peer("c")?.connection !== "Connected");
    // Guests go on without C, and B's answer about the lineage that begins for that does not come yet.
    world.network.block("b", "a", true);
    const before = trio.status().lineage;
    const done: string[] = [];
    const write = (what: string, cluster: number, byte: number): void => {
      world.schedule(0, () => {
        trio.writeOnce(cluster, byte).then(
          () => done.push(what),
          () => done.push(`${what} failed`),
        );
      });
    };
    write("first", 3, 0x33);
    await trio.until("the lineage", () => trio.status().lineage !== before);
    const { faults } = trio.a.host.disk;
    faults.inject({ op: "write", kind: "image", error: "io-error" });
    write("second", DIRTY, 0x44);
    await world.run({ forMs: 100 });
    faults.clear();
    write("third", DIRTY, 0x55);
    await world.run({ forMs: 100 });
    expect(done).not.toContain("third");
    world.network.block("b", "a", false);
    await trio.until("the writes", () => done.length === 3);
    expect(done).toContain("second failed");
    const epoch = await trio.checkpoint();
    expect(trio.status(trio.b).epoch.committed).toBe(epoch);
    expect(await trio.read(3, trio.b)).toBe(0x33);
    expect(await trio.read(DIRTY, trio.b)).toBe(0x55);
    expect(trio.syncs.at(-1)).toEqual({ peer: "b", bytes: CLUSTER });
  });
});
