/**
 * The network between two real agents is lost, in network namespaces: wholly, one way, while the other side is promoted,
 * and again and again during a resync. Guests write all the while.
 */
import { describe, expect, it } from "vitest";
import type { ConnectAnswer, FailoverAnswer } from "../../proto/control-api.ts";
import type { Status } from "../../proto/status.ts";
import { AgentPair, MIB, type AgentUnderTest } from "../support/agent-pair.ts";
import { canMakeNamespaces, NetworkNamespaces } from "../support/network-namespaces.ts";
import { expectSame, qemuIo, readDisk, tool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { SteadyGuest } from "../support/steady-guest.ts";

const SIZE = 16 * MIB;
const SOME_WRITES = 200;

async function pairInNamespaces(size: number): Promise<{ network: NetworkNamespaces; pair: AgentPair }> {
  const network = new NetworkNamespaces();
  const pair = await AgentPair.protected({
    disks: { vda: Buffer.alloc(size, 0x11) },
    flags: ["--peer-timeout", "1s", "--insecure"],
    primaryFlags: ["--assume-in-sync"],
    hosts: network,
  });
  return { network, pair };
}

const isAlone = ({ peers }: Status): boolean => peers[0]?.connection !== "Connected";

async function untilAlone(pair: AgentPair): Promise<void> {
  for (const agent of [pair.primary, pair.secondary]) {
    const { protection, peers } = await agent.until("alone", isAlone);
    expect(protection).toMatchObject({ state: "NotProtected", reason: "connecting" });
    expect(protection.nextAction).toMatch(/Check/);
    expect(peers[0]).toMatchObject({ connection: "Connecting", replication: "Off", lastError: expect.anything() });
  }
}

/** Both copies are equal, and hold this, in the raw images too. */
async function expectEqual(pair: AgentPair, serving: AgentUnderTest, disk: Buffer): Promise<void> {
  await serving.get("checkpoint");
  for (const agent of [pair.primary, pair.secondary]) expectSame(await readDisk(agent.uri()), disk);
  for (const agent of [pair.primary, pair.secondary]) await agent.stop();
  await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", pair.imagePath("a"), pair.imagePath("b"));
  expectSame(pair.image("a"), disk);
}

const PARTITIONS: readonly (readonly [string, (network: NetworkNamespaces, isOn: boolean) => void])[] = [
  ["the link is down", (network, isOn) => network.setLink(isOn ? "down" : "up")],
  [
    "nothing arrives on either side",
    (network, isOn) => {
      network.setSilent("a", isOn);
      network.setSilent("b", isOn);
    },
  ],
  ["what the primary says is lost", (network, isOn) => network.setSilent("a", isOn)],
  ["what the secondary says is lost", (network, isOn) => network.setSilent("b", isOn)],
];

describe.runIf(requirePeers("ip", "tc", "nbdcopy", "qemu-io", "qemu-img") && canMakeNamespaces())(
  "a partition of the network",
  () => {
    it.each(PARTITIONS)("in which %s stops no guest, and is healed by a delta", async (_, set) => {
      const { network, pair } = await pairInNamespaces(SIZE);
      const { primary, secondary } = pair;
      const checkpoint = await readDisk(primary.uri());
      const disk = Buffer.from(checkpoint);
      const guest = await SteadyGuest.start(primary, disk, SIZE / 2);
      await guest.writesMore(SOME_WRITES);
      set(network, true);
      await guest.writesMore(SOME_WRITES);
      await untilAlone(pair);
      await guest.writesMore(SOME_WRITES);
      expectSame(await readDisk(secondary.uri()), checkpoint);
      await guest.stop();
      set(network, false);
      await pair.untilProtected();
      await primary.untilDrained();
      const resync = (await primary.status()).jobs.find(({ type }) => type === "resync");
      expect(resync).toMatchObject({ state: "concluded", error: null });
      expect(resync?.progress.totalBytes).toBeLessThanOrEqual(SIZE / 2);
      await expectEqual(pair, primary, disk);
    });

    it("does not keep an agent from stopping in good order", async () => {
      const { network, pair } = await pairInNamespaces(SIZE);
      network.setSilent("a", true);
      network.setSilent("b", true);
      await untilAlone(pair);
      for (const agent of [pair.primary, pair.secondary]) expect(await agent.stop()).toMatchObject({ code: 0 });
    });

    it.each(["former primary", "promoted side"])(
      "in which the other side is promoted is a split brain on both, until the %s gives its data up",
      async (which) => {
        const { network, pair } = await pairInNamespaces(SIZE);
        const { primary, secondary } = pair;
        const diskOfPrimary = Buffer.alloc(SIZE, 0x11);
        const diskOfSecondary = Buffer.alloc(SIZE, 0x11);
        network.setSilent("a", true);
        network.setSilent("b", true);
        await untilAlone(pair);
        const guest = await SteadyGuest.start(primary, diskOfPrimary);
        await guest.writesMore(SOME_WRITES);
        await guest.stop();
        expect(await secondary.get<FailoverAnswer>("failover")).toMatchObject({ already: false });
        await qemuIo(secondary.uri(), "write -P 0x33 4M 1M");
        diskOfSecondary.fill(0x33, 4 * MIB, 5 * MIB);
        network.setSilent("a", false);
        network.setSilent("b", false);
        for (const agent of [primary, secondary]) {
          const { role, peers, protection } = await agent.until(
            "split",
            (status) => status.protection.reason === "split-brain",
          );
          expect(role).toBe("Primary");
          expect(peers[0]).toMatchObject({ connection: "StandAlone", lastError: { code: "split-brain" } });
          expect(protection.nextAction).toContain("--discard-my-data");
          const { verdict } = await agent.get<ConnectAnswer>("connect", "--dry-run");
          expect(verdict).toMatchObject({ kind: "split-brain", rule: "diverged" });
          expect(verdict.changedBytes.here).toBeGreaterThan(0);
          expect(verdict.changedBytes.there).toBeGreaterThan(0);
        }
        // Neither side has touched the other's data.
        expectSame(await readDisk(primary.uri()), diskOfPrimary);
        expectSame(await readDisk(secondary.uri()), diskOfSecondary);
        const [loser, survivor, disk] =
          which === "former primary" ? [primary, secondary, diskOfSecondary] : [secondary, primary, diskOfPrimary];
        await loser.get("wait", "merged");
        await loser.get("connect", "--discard-my-data");
        await pair.untilProtected();
        expect([(await loser.status()).role, (await survivor.status()).role]).toEqual(["Secondary", "Primary"]);
        await expectEqual(pair, survivor, disk);
      },
    );

    it("that comes back again and again during a resync only delays it", async () => {
      const size = 128 * MIB;
      const dirtied = 96 * MIB;
      const { network, pair } = await pairInNamespaces(size);
      const { primary, secondary } = pair;
      const checkpoint = await readDisk(primary.uri());
      const disk = Buffer.from(checkpoint);
      network.setLink("down");
      await untilAlone(pair);
      await qemuIo(primary.uri(), `write -P 0x22 0 ${dirtied}`);
      disk.fill(0x22, 0, dirtied);
      const guest = await SteadyGuest.start(primary, disk);
      for (const interruption of ["down", "silent", "short", "down"]) {
        network.setLink("up");
        await slowResync(primary);
        expectSame(await readDisk(secondary.uri()), checkpoint);
        if (interruption === "silent") network.setSilent("b", true);
        else network.setLink("down");
        if (interruption === "short") {
          // The link is back before anybody has given it up.
          await guest.writesMore(1);
          continue;
        }
        await untilAlone(pair);
        await guest.writesMore(SOME_WRITES);
        if (interruption === "silent") network.setSilent("b", false);
      }
      network.setLink("up");
      const running = await slowResync(primary);
      await primary.control.setJobSpeed(running, 0);
      await guest.writesMore(SOME_WRITES);
      await guest.stop();
      await pair.untilProtected();
      await expectEqual(pair, primary, disk);
    });
  },
);

/** Waits until a resync has begun, and holds it back so far that it cannot end before something happens to it. */
async function slowResync(primary: AgentUnderTest): Promise<string> {
  const isRunning = ({ state, progress }: Status["jobs"][number]): boolean =>
    state === "running" && progress.doneBytes > 0;
  const { jobs } = await primary.until("syncing", (status) => status.jobs.some(isRunning));
  const id = jobs.find(isRunning)?.id ?? "";
  await primary.control.setJobSpeed(id, 4 * MIB);
  return id;
}
