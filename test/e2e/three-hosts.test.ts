/**
 * A primary with two secondaries, three real agents in network namespaces, of which one is cut off. Guests write all the
 * while; on a disk of each host's own, or on one file that all three reach.
 */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { CheckpointAnswer } from "../../proto/control-api.ts";
import type { Status } from "../../proto/status.ts";
import { MIB } from "../support/agent-pair.ts";
import type { ErrorDocument } from "../support/cli-runner.ts";
import { expectSame, readDisk } from "../support/nbd-tools.ts";
import { canMakeNamespaces } from "../support/network-namespaces.ts";
import { requirePeers } from "../support/peers.ts";
import { SteadyGuest } from "../support/steady-guest.ts";
import { inSync, threeAgents } from "../support/three-agents.ts";
import { ThreeNamespaces } from "../support/three-namespaces.ts";

const SIZE = 16 * MIB;
const SOME_WRITES = 200;

/** Three agents, each in a namespace of its own, which are not started yet. */
async function threeHosts(
  imageOf: (root: string, name: string) => string,
  flagsOf: (root: string, role: string) => readonly string[],
) {
  const network = new ThreeNamespaces();
  const agents = await threeAgents({
    hosts: network,
    content: Buffer.alloc(SIZE, 0x11),
    imageOf,
    flagsOf: (root, role) => ["--insecure", "--peer-timeout", "1s", ...flagsOf(root, role)],
  });
  return { network, ...agents };
}

describe.runIf(requirePeers("ip", "nbdcopy") && canMakeNamespaces())("three hosts", () => {
  it("go on without the secondary that is cut off, which comes back by a delta", async () => {
    const { network, urlOf, a, b, c } = await threeHosts(
      (root, name) => join(root, name, "vda.img"),
      (_, role) => (role === "primary" ? ["--assume-in-sync"] : []),
    );
    await Promise.all([a.start(), b.start(), c.start()]);
    await a.until("in sync with both", (status) => inSync(status) === 2);
    const first = await a.get<CheckpointAnswer>("checkpoint");
    const disk = Buffer.alloc(SIZE, 0x11);
    const guest = await SteadyGuest.start(a, disk);
    await guest.writesMore(SOME_WRITES);

    network.setLink("b", "down");
    await guest.writesMore(SOME_WRITES);
    const isLost = (status: Status): boolean =>
      status.peers.some(({ url, connection }) => url === urlOf("b") && connection === "Connecting");
    await a.until("without b", isLost);
    await guest.writesMore(SOME_WRITES);
    const second = await a.get<CheckpointAnswer>("checkpoint");
    const { protection, peers: seen } = await a.status();
    expect(protection.state).toBe("Protected");
    expect(seen.find(({ url }) => url === urlOf("c"))).toMatchObject({ replication: "Established" });
    expect((await c.status()).epoch.committed).toBe(second.epoch);
    // Whoever comes into sync gets a checkpoint by itself, which may lie behind the first one.
    const { committed } = (await b.status()).epoch;
    expect(committed).toBeGreaterThanOrEqual(first.epoch);
    expect(committed).toBeLessThan(second.epoch);
    await guest.stop();

    network.setLink("b", "up");
    const { jobs } = await a.until("in sync with both again", (status) => inSync(status) === 2);
    const resync = jobs.find(({ type }) => type === "resync");
    expect(resync).toMatchObject({ state: "concluded", error: null });
    expect(resync?.progress.totalBytes).toBeLessThan(SIZE);
    await a.get("checkpoint");
    for (const one of [a, b, c]) expectSame(await readDisk(one.uri()), disk);

    expect(await c.stop()).toMatchObject({ code: 0 });
    await a.until("without c", (status) => inSync(status) === 1);
    expect(await a.get("forget", urlOf("c"))).toMatchObject({ url: urlOf("c") });
    expect(await a.stop()).toMatchObject({ code: 0 });
    await a.start();
    // Nothing waits for c any more: the VM goes on with b.
    const { peers: left } = await a.until("protected", (status) => status.protection.state === "Protected");
    expect(left.map(({ url }) => url)).toEqual([urlOf("b")]);
    expectSame(await readDisk(a.uri()), disk);
    for (const one of [a, b]) expect(await one.stop()).toMatchObject({ code: 0 });
  });

  it("share one disk, of which one is promoted, and no other one ever beside it", async () => {
    const { network, urlOf, a, b, c } = await threeHosts(
      (root) => join(root, "vda.img"),
      (root) => ["--mode", "shared", "--shared-mark", join(root, "mark")],
    );
    await Promise.all([a.start(), b.start(), c.start()]);
    const committed = ({ epoch }: Status): boolean => epoch.committed > 0;
    await a.until("in sync with both", (status) => inSync(status) === 2);
    await a.get<CheckpointAnswer>("checkpoint");
    for (const one of [b, c]) await one.until("a checkpoint", committed);
    const disk = Buffer.alloc(SIZE, 0x11);
    const guest = await SteadyGuest.start(a, disk);
    await guest.writesMore(SOME_WRITES);
    for (const one of [b, c]) expectSame(await readDisk(one.uri()), Buffer.alloc(SIZE, 0x11));

    // C protects the guest, who goes on without B: that one's checkpoint is void.
    network.setLink("b", "down");
    await a.until("without b", ({ peers }) =>
      peers.some(({ url, connection }) => url === urlOf("b") && connection === "Connecting"),
    );
    await guest.writesMore(SOME_WRITES);
    await guest.stop();
    const { epoch } = await a.get<CheckpointAnswer>("checkpoint");
    expect((await a.status()).protection.state).toBe("Protected");
    await expect(readDisk(b.uri())).rejects.toThrow("Input/output error");
    const refused = { code: 1, json: { error: { code: "unprotected" } } };
    expect(await b.ask<ErrorDocument>("failover", "--fenced")).toMatchObject(refused);
    expectSame(await readDisk(c.uri()), disk);

    network.setLink("b", "up");
    await a.until("in sync with both again", (status) => inSync(status) === 2);
    await a.get<CheckpointAnswer>("checkpoint");
    for (const one of [b, c]) await one.until("the next checkpoint", (status) => status.epoch.committed > epoch);
    expectSame(await readDisk(b.uri()), disk);

    await a.crash();
    for (const one of [b, c]) await one.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
    const answers = await Promise.all([b, c].map((one) => one.ask<ErrorDocument>("failover", "--fenced")));
    const promoted = [b, c].filter((_, index) => answers[index]?.code === 0);
    // Where each has seen the other's claim, both are still secondaries.
    expect(promoted.length).toBeLessThan(2);
    const [winner = b] = promoted;
    const other = winner === b ? c : b;
    if (promoted.length === 0) await winner.get("failover", "--fenced");
    await winner.get("wait", "merged");
    expectSame(await readDisk(winner.uri()), disk);
    for (const force of [[], ["--force"]]) {
      const again = await other.ask<ErrorDocument>("failover", "--fenced", ...force);
      expect(again).toMatchObject({
        code: 1,
        json: { error: { code: force.length === 0 ? "unprotected" : "image-busy" } },
      });
    }
    await other.get("rejoin", "--peer", urlOf(winner === b ? "b" : "c"));
    await winner.until("in sync with the other one", (status) => inSync(status) === 1);
    await winner.get<CheckpointAnswer>("checkpoint");
    expectSame(await readDisk(other.uri()), disk);
    for (const one of [b, c]) expect(await one.stop()).toMatchObject({ code: 0 });
  });
});
