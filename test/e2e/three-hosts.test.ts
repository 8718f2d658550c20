/** A primary with two secondaries, three real agents in network namespaces, of which one is cut off. Guests write all the while. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { CheckpointAnswer, Status } from "../../proto/control-api.ts";
import { AgentUnderTest, freePort, makeImage, MIB, type AgentHost } from "../support/agent-pair.ts";
import { expectSame, readDisk } from "../support/nbd-tools.ts";
import { canMakeNamespaces } from "../support/network-namespaces.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { SteadyGuest } from "../support/steady-guest.ts";
import { ThreeNamespaces } from "../support/three-namespaces.ts";

const SIZE = 16 * MIB;
const SOME_WRITES = 200;
const FLAGS = ["--vm", "test", "--peer-timeout", "1s", "--insecure", "--secondaries", "2"];

const inSync = ({ peers }: Status): number =>
  peers.filter(({ replication, lagBytes }) => replication === "Established" && lagBytes === 0).length;

describe.runIf(requirePeers("ip", "nbdcopy") && canMakeNamespaces())("three hosts", () => {
  it("go on without the secondary that is cut off, which comes back by a delta", async () => {
    const network = new ThreeNamespaces();
    const root = scratchDirectory();
    const port = await freePort();
    const agent = (name: "a" | "b" | "c", host: AgentHost, role: string, flags: readonly string[]): AgentUnderTest => {
      mkdirSync(join(root, "run", name), { recursive: true });
      mkdirSync(join(root, name));
      const image = join(root, name, "vda.img");
      makeImage(image, Buffer.alloc(SIZE, 0x11));
      const run = join(root, "run", name);
      const state = join(root, name, "state");
      const command = [role, "--run", run, "--state", state, "--disk", `vda=${image}`, ...FLAGS, ...flags];
      return new AgentUnderTest(name, run, command, host.launcher);
    };
    const urlOf = (host: AgentHost): string => `ws://${host.address}:${port}`;
    const peers = ["--assume-in-sync", "--peer", urlOf(network.b), "--peer", urlOf(network.c)];
    const a = agent("a", network.a, "primary", peers);
    const b = agent("b", network.b, "secondary", ["--listen", `${network.b.address}:${port}`]);
    const c = agent("c", network.c, "secondary", ["--listen", `${network.c.address}:${port}`]);
    await Promise.all([a.start(), b.start(), c.start()]);
    await a.until("in sync with both", (status) => inSync(status) === 2);
    const first = await a.get<CheckpointAnswer>("checkpoint");
    const disk = Buffer.alloc(SIZE, 0x11);
    const guest = await SteadyGuest.start(a, disk);
    await guest.writesMore(SOME_WRITES);

    network.setLink("b", "down");
    await guest.writesMore(SOME_WRITES);
    const isLost = (status: Status): boolean =>
      status.peers.some(({ url, connection }) => url === urlOf(network.b) && connection === "Connecting");
    await a.until("without b", isLost);
    await guest.writesMore(SOME_WRITES);
    const second = await a.get<CheckpointAnswer>("checkpoint");
    const { protection, peers: seen } = await a.status();
    expect(protection.state).toBe("Protected");
    expect(seen.find(({ url }) => url === urlOf(network.c))).toMatchObject({ replication: "Established" });
    expect((await c.status()).epoch.committed).toBe(second.epoch);
    expect((await b.status()).epoch.committed).toBe(first.epoch);
    await guest.stop();

    network.setLink("b", "up");
    const { jobs } = await a.until("in sync with both again", (status) => inSync(status) === 2);
    const resync = jobs.find(({ type }) => type === "resync");
    expect(resync).toMatchObject({ state: "concluded", error: null });
    expect(resync?.progress.totalBytes).toBeLessThan(SIZE);
    await a.get("checkpoint");
    for (const one of [a, b, c]) expectSame(await readDisk(one.uri()), disk);
    for (const one of [a, b, c]) expect(await one.stop()).toMatchObject({ code: 0 });
  });
});
