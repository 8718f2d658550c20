/** What a scrape of a running pair finds: requests of a real client, checkpoints, sessions, and both sides' states. */
import { describe, expect, it } from "vitest";
import { AgentPair, MIB, type AgentUnderTest } from "../support/agent-pair.ts";
import { qemuIo } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { parseExposition, valueOf, type Sample } from "../support/prometheus-text.ts";

const SIZE = 4 * MIB;

async function scrape(agent: AgentUnderTest): Promise<Sample[]> {
  return parseExposition(await agent.control.metrics());
}

describe.runIf(requirePeers("qemu-io"))("the metrics of a pair", () => {
  it("count what a guest and an operator have done, and go on through a failover", async () => {
    const pair = await AgentPair.protected({
      disks: { vda: Buffer.alloc(SIZE, 0x11) },
      flags: ["--log-level", "debug"],
      primaryFlags: ["--assume-in-sync"],
    });
    const before = await scrape(pair.primary);
    await qemuIo(pair.primary.uri(), "write -P 3 0 65536", "write -P 4 1M 4096", "read 0 65536", "flush");
    await pair.primary.ask("checkpoint");
    const after = await scrape(pair.primary);
    const grown = (...which: Parameters<typeof valueOf> extends [unknown, ...infer Rest] ? Rest : never): number =>
      (valueOf(after, ...which) ?? 0) - (valueOf(before, ...which) ?? 0);
    expect(grown("colobus_device_written_bytes_total", { disk: "vda" })).toBe(65_536 + 4096);
    expect(grown("colobus_guest_request_seconds", { operation: "write" }, "count")).toBe(2);
    expect(grown("colobus_guest_request_seconds", { operation: "flush" }, "count")).toBeGreaterThan(0);
    expect(grown("colobus_checkpoints_total", { outcome: "committed" })).toBe(1);
    expect(grown("colobus_checkpoint_commit_seconds", {}, "count")).toBe(1);
    expect(grown("colobus_checkpoint_prepare_seconds", {}, "count")).toBe(1);
    expect(valueOf(after, "colobus_protected")).toBe(1);
    expect(valueOf(after, "colobus_sessions_total", { outcome: "opened" })).toBe(1);
    expect(valueOf(after, "process_resident_memory_bytes")).toBeGreaterThan(10 * MIB);

    await pair.primary.crash();
    await pair.secondary.ask("failover", "--force");
    await qemuIo(pair.secondary.uri(), "write -P 5 0 4096");
    const promoted = await scrape(pair.secondary);
    expect(valueOf(promoted, "colobus_resource_role", { role: "Primary" })).toBe(1);
    expect(valueOf(promoted, "colobus_device_written_bytes_total", { disk: "vda" })).toBe(4096);
    expect(valueOf(promoted, "colobus_events_total", { type: "failover" })).toBe(1);
    expect(valueOf(promoted, "colobus_checkpoints_total", { outcome: "committed" })).toBeGreaterThan(0);

    // The log has a line for each event, with its fields, and no other about the same.
    const events = await pair.secondary.control.events(0);
    const lines = pair.secondary.log
      .split("\n")
      .filter((line) => line.startsWith("{"))
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    const told = lines.filter(({ event }) => event !== undefined);
    expect(told.map(({ event, sequence }) => [sequence, event])).toEqual(
      events.map(({ sequence, type }) => [sequence, type]),
    );
    for (const [index, { data }] of events.entries()) expect(told[index]).toMatchObject(data);
    expect(events.map(({ type }) => type)).toEqual(
      expect.arrayContaining(["peer-connected", "checkpoint-committed", "peer-disconnected", "role-changed", "merged"]),
    );
    const others = lines.filter(({ event }) => event === undefined).map(({ msg }) => String(msg));
    expect(others.filter((msg) => /session|connected|checkpoint|merge|role/i.test(msg))).toEqual([]);
  });
});
