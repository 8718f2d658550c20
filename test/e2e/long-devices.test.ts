import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { AgentPair, makeImage, MIB, type AgentUnderTest } from "../support/agent-pair.ts";
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

async function restart(pair: AgentPair, end: (agent: AgentUnderTest) => Promise<unknown>): Promise<void> {
  for (const agent of [pair.primary, pair.secondary]) await end(agent);
  await pair.secondary.start();
  // What it has committed, while there is nobody yet who could send it anything.
  expect((await pair.secondary.status()).recoverable).not.toBeNull();
  await pair.primary.start();
  await pair.primary.until("whole", ({ protection, disks }) => {
    return (
      protection.state === "Protected" && disks.every(({ children }) => children.every((c) => c.state === "sound"))
    );
  });
}

describe.runIf(requirePeers("qemu-io", "nbdcopy") && canMakeBlockDevices())(
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
  },
);
