import { describe, expect, it } from "vitest";
import { decodeMessage } from "../../proto/replication-messages.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import { backUp, putBack } from "./state-backup.ts";

describe("a secondary of shared disks whose state was put back to an earlier checkpoint", () => {
  it("gives that up, however often the session is lost before it has", async () => {
    const scripted = new ScriptedPair(1, "power", { mode: "shared" });
    const { world, pair } = scripted;
    const { primary, secondary } = pair;
    await scripted.start();
    const former = secondary.status?.epoch.committed;
    expect(former).toBeGreaterThan(0);
    const before = backUp(secondary.host.disk);
    await scripted.do("a write", () => scripted.guestWrite(0, 0, 4096, "bytes"));
    expect(await scripted.do("a checkpoint", () => scripted.checkpoint())).toBe(true);

    secondary.host.crash("power");
    // Guests wait for it, so its history is still the primary's.
    await scripted.until("the loss", () => primary.status?.peers[0]?.connection !== "Connected");
    putBack(secondary.host.disk, before);
    let cuts = 0;
    world.network.intercept = (receiver, data) => {
      const isBegin = receiver.process.host.name === "b" && decodeMessage(data).type === "begin";
      if (!isBegin || cuts === 2) return "deliver";
      cuts += 1;
      return "cut";
    };
    secondary.host.restart();
    expect(await scripted.do("a start", () => secondary.start())).toBe(true);
    expect(secondary.status?.epoch.committed).toBe(former);
    await scripted.until("protection", () => primary.status?.protection.state === "Protected");
    expect(cuts).toBe(2);
    expect(secondary.agent?.events(0).map(({ type }) => type)).toContain("checkpoint-given-up");
    await scripted.checkRecovery();
  });
});
