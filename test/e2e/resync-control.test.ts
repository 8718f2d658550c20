/** A resync as its operator directs it, and a secondary that is slower than the guest. */
import { describe, expect, it } from "vitest";
import type { AgentEvent } from "../../proto/status.ts";
import { AgentPair, MIB } from "../support/agent-pair.ts";
import { expectSame, qemuIo, readDisk } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { presentResync, SLOW_RESYNC_BYTES, startSlowResync } from "../support/slow-resync.ts";

describe.runIf(requirePeers("qemu-io", "nbdcopy"))("a resync", () => {
  it("goes at the speed that it is given, stays paused over a lost session, and goes on when it is told", async () => {
    const pair = await startSlowResync();
    const { primary, secondary } = pair;
    const first = await presentResync(primary);
    expect(first).toMatchObject({ state: "running", speedLimit: MIB, progress: { totalBytes: SLOW_RESYNC_BYTES } });
    expect(await primary.get("job", "set-speed", first.id, "2MiB")).toMatchObject({ speedLimit: 2 * MIB });
    await primary.get("job", "pause", first.id);
    const isPaused = (replication: string) => (status: { peers: readonly { replication: string }[] }) =>
      status.peers[0]?.replication === replication;
    await primary.until("paused", isPaused("PausedSyncS"));
    await secondary.until("paused", isPaused("PausedSyncT"));
    expect((await primary.status()).protection).toMatchObject({ reason: "resync" });

    await secondary.crash();
    await primary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
    await secondary.start();
    await primary.until("paused again", isPaused("PausedSyncS"));
    const second = await presentResync(primary);
    expect(second).toMatchObject({ state: "paused", speedLimit: 2 * MIB });
    expect(second.id).not.toBe(first.id);
    await secondary.until("paused again", isPaused("PausedSyncT"));

    expect(await primary.get("job", "set-speed", second.id, "dynamic")).toMatchObject({ speedLimit: "dynamic" });
    expect(await primary.get("resync")).toEqual({ outcome: "resumed", job: second.id, givenUpEpoch: null });
    await pair.untilProtected();
    await primary.untilDrained();
    await pair.checkpoint();
    expectSame(await readDisk(secondary.uri()), await readDisk(primary.uri()));
  });
});

describe.runIf(requirePeers("qemu-io", "nbdcopy"))("a secondary that takes nothing", () => {
  it("keeps no write waiting where the guest may detach, and gets what it lacks when it takes it again", async () => {
    const pair = await AgentPair.create({
      disks: { vda: 64 * MIB },
      flags: ["--peer-timeout", "10m", "--window", "4MiB"],
      primaryFlags: ["--on-congestion", "detach"],
    });
    const { primary, secondary } = pair;
    await pair.start();
    secondary.freeze();
    // Sixteen times the window, and the peer timeout is minutes away: each of these writes would wait for it.
    await qemuIo(primary.uri(), "write -P 9 0 64M", "flush");
    const status = await primary.status();
    expect(status.peers[0]).toMatchObject({ connection: "Connected", replication: "PausedSyncS" });
    expect(status.protection).toMatchObject({ state: "NotProtected", reason: "resync" });
    expect(status.disks[0]?.dirtyBytes).toBeGreaterThan(32 * MIB);
    const events: AgentEvent[] = (await primary.cli("events", "--json")).stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as AgentEvent);
    expect(events.map(({ type }) => type)).toContain("congested");
    // What was acknowledged without the secondary begins a new lineage, as without a session.
    expect(events.filter(({ type }) => type === "lineage-changed")).toMatchObject([{ data: { origin: "alone" } }]);
    secondary.thaw();
    await pair.untilProtected();
    await primary.untilDrained();
    await pair.checkpoint();
    expectSame(await readDisk(secondary.uri()), await readDisk(primary.uri()));
  });
});
