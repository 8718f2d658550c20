import assert from "node:assert/strict";
import { readFileSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { JobStatus, Status } from "../../proto/status.ts";
import { AgentPair, makeImage, MIB, type AgentUnderTest } from "../support/agent-pair.ts";
import { FailingServer } from "../support/failing-server.ts";
import { expectSame, qemuIo, readDisk } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { blockDeviceOver, canMakeBlockDevices, lengthenBlockDevice, scratchDirectory } from "../support/scratch.ts";

/**
 * Block devices that are longer than the disks on them, as LVM makes them: before a resize, and for ever after one that names
 * a size of no whole extents. Agents start on them, in either role, with all that they had.
 */
const SIZE = 8 * MIB;
const LONGER = 11 * MIB + 512;
const DEVICE_BYTES = 12 * MIB;

const areSound = ({ disks }: Status): boolean =>
  disks.every(({ children }) => children.every(({ state }) => state === "sound"));

async function restart(pair: AgentPair, end: (agent: AgentUnderTest) => Promise<unknown>): Promise<void> {
  for (const agent of [pair.primary, pair.secondary]) await end(agent);
  await pair.secondary.start();
  // What it has committed, while there is nobody yet who could send it anything.
  expect((await pair.secondary.status()).recoverable).not.toBeNull();
  await pair.primary.start();
  await pair.primary.until("whole", (status) => status.protection.state === "Protected" && areSound(status));
}

describe.runIf(requirePeers("qemu-io", "nbdcopy", "nbdkit") && canMakeBlockDevices())(
  "a device that is longer than its disk",
  () => {
    it("is started on before and after the resize, and serves what it served", async () => {
      const devices = new Map<string, string>();
      const deviceOver = (backing: string): string => {
        const device = blockDeviceOver(backing);
        devices.set(device, backing);
        return device;
      };
      const copy = join(scratchDirectory(), "copy");
      makeImage(copy, SIZE);
      const pair = await AgentPair.protected({
        disks: { vda: SIZE },
        imageOf: deviceOver,
        primaryFlags: ["--child", `vda:b=${deviceOver(copy)}`],
      });
      const { primary, secondary } = pair;
      await qemuIo(primary.uri(), "write -P 1 1M 4M");
      await pair.checkpoint();

      for (const [device, backing] of devices) lengthenBlockDevice(device, backing, DEVICE_BYTES);
      await restart(pair, (agent) => agent.stop());
      expect(primary.log).toContain("a block device is longer than its disk");
      for (const agent of [primary, secondary]) expect((await agent.status()).disks[0]?.sizeBytes).toBe(SIZE);

      await primary.get("resize", "vda", String(LONGER));
      await qemuIo(primary.uri(), `write -P 2 ${SIZE - MIB} 2M`, `write -P 3 ${LONGER - 512} 512`);
      await pair.checkpoint();
      const expected = await readDisk(primary.uri());
      expect(expected.length).toBe(LONGER);
      for (const end of [(agent: AgentUnderTest) => agent.stop(), (agent: AgentUnderTest) => agent.crash()]) {
        await restart(pair, end);
        expectSame(await readDisk(secondary.uri()), expected);
        expectSame(await readDisk(primary.uri()), expected);
      }

      await primary.get("switchover");
      await secondary.get("wait", "merged");
      await pair.untilProtected();
      await qemuIo(secondary.uri(), `write -P 4 ${LONGER - 512} 512`);
      expectSame(await readDisk(secondary.uri()), Buffer.from(expected).fill(4, LONGER - 512));
      for (const agent of [primary, secondary]) await agent.stop();
      for (const backing of [pair.imagePath("a"), pair.imagePath("b"), copy]) {
        const content = readFileSync(backing);
        expect(content.subarray(LONGER).equals(Buffer.alloc(DEVICE_BYTES - LONGER)), backing).toBe(true);
      }
      expectSame(pair.image("a"), pair.image("b"));
    });

    it("is taken as a copy that is added, and an export as a mirror's target, which the disk goes on with", async () => {
      const [backing, exported] = ["copy", "target"].map((name) => join(scratchDirectory(), name));
      assert(backing !== undefined && exported !== undefined);
      for (const path of [backing, exported]) makeImage(path, DEVICE_BYTES);
      const pair = await AgentPair.protected({ disks: { vda: SIZE } });
      const { primary } = pair;
      await qemuIo(primary.uri(), `write -P 1 0 ${SIZE}`);
      await primary.get("child", "add", "vda", `b=${blockDeviceOver(backing)}`);
      await primary.until("whole", areSound);
      const server = await FailingServer.start(exported);
      const { id } = await primary.get<JobStatus>("mirror", "vda", "--to", server.uri, "--wait");
      await qemuIo(primary.uri(), `write -P 2 ${SIZE - MIB} 1M`);
      expect(await primary.get("job", "complete", id, "--wait")).toMatchObject({ outcome: "pivoted" });
      await qemuIo(primary.uri(), "write -P 3 0 1M");
      const expected = Buffer.alloc(SIZE, 1)
        .fill(2, SIZE - MIB)
        .fill(3, 0, MIB);
      for (const end of [(agent: AgentUnderTest) => agent.stop(), (agent: AgentUnderTest) => agent.crash()]) {
        await restart(pair, end);
        expectSame(await readDisk(primary.uri()), expected);
      }
      await primary.stop();
      for (const path of [backing, exported]) {
        expectSame(readFileSync(path), Buffer.concat([expected, Buffer.alloc(DEVICE_BYTES - SIZE)]));
      }
    });

    it("is refused under a new secondary, with both sizes, until the primary's disk is made as long", async () => {
      const pair = await AgentPair.create({
        disks: { vda: SIZE },
        imageOf: (path) => {
          if (path.includes("/a/")) return path;
          truncateSync(path, DEVICE_BYTES);
          return blockDeviceOver(path);
        },
      });
      const { primary, secondary } = pair;
      await secondary.start();
      await primary.start();
      const { peers } = await primary.until(
        "refused",
        (status) => status.peers[0]?.lastError?.code === "size-mismatch",
      );
      expect(peers[0]?.lastError?.message).toContain(`${SIZE} bytes`);
      expect(peers[0]?.lastError?.message).toContain(`${DEVICE_BYTES} bytes`);
      expect(peers[0]?.lastError?.action).toContain(`colobus resize vda ${DEVICE_BYTES}`);
      await primary.get("resize", "vda", String(DEVICE_BYTES));
      await pair.untilProtected();
      expect((await secondary.status()).disks[0]?.sizeBytes).toBe(DEVICE_BYTES);
    });
  },
);
