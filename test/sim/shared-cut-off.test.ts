import { describe, expect, it } from "vitest";
import { ScriptedTrio } from "./scripted-trio.ts";

/**
 * Shared disks whose primary was cut off, and not killed: it holds what it has not flushed, while another one was promoted and
 * writes the disks. It learns that from a handshake.
 */
async function cutOff(): Promise<{ readonly trio: ScriptedTrio; readonly changes: readonly string[] }> {
  const trio = new ScriptedTrio("shared", { onPeerLoss: "freeze", locksApart: true });
  await trio.start("shared");
  await trio.write(3, 0x33);
  await trio.checkpoint(); // the simulated disk knows no cache that outlives a failover elsewhere: a server of an image does
  trio.cutOff(trio.a);
  await trio.lost(trio.b);
  await trio.failover(trio.b, { fenced: true });
  await trio.do("the merge", () => trio.merged(trio.b));
  const changes: string[] = [];
  trio.a.host.disk.faults.intercept = ({ op, kind }) => {
    if (kind === "image" && ["sync", "write", "zero"].includes(op)) changes.push(op);
    return undefined;
  };
  return { trio, changes };
}

describe("a former primary of shared disks that was cut off", () => {
  it("flushes nothing as it becomes the secondary, however soon", async () => {
    const { trio, changes } = await cutOff();
    trio.cutOff(trio.a, false);
    expect(await trio.follow(trio.a, trio.b)).toBe("done");
    expect(trio.status(trio.a).role).toBe("Secondary");
    expect(changes).toEqual([]);
  });

  it("flushes nothing as it is stopped where it cannot record that it is outdated", async () => {
    const { trio, changes } = await cutOff();
    trio.a.host.disk.faults.inject({ op: "write", kind: "state", error: "io-error", times: Number.POSITIVE_INFINITY });
    trio.cutOff(trio.a, false);
    await trio.until("the verdict", () => trio.peer("b")?.connection === "StandAlone");
    await trio.do("a stop", () => trio.a.stop(1_000).catch(() => undefined));
    expect(changes).toEqual([]);
  });
});
