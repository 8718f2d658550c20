import { readFileSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { AgentPair, makeImage, MIB, type AgentUnderTest, type PairOptions } from "../support/agent-pair.ts";
import { expectSame, NbdClient, qemuIo, readDisk, runTool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { canMakeBlockDevices, canMount, scratchBlockDevice, scratchFileSystem } from "../support/scratch.ts";

/**
 * File systems that run full below real agents: that of the primary's image, of the secondary's base, and of the
 * secondary's state directory. Each has the outcome that `docs/disk-errors.md` names, and all is well again, in the same
 * processes, when there is room.
 */
const DISK = 24 * MIB;
/** Has room for the disk, and for what has to be free before the secondary goes on. */
const SPACE = 48 * MIB;

/** Takes all that is left of a file system. The result gives it back. */
function fill(path: string): () => void {
  const filler = join(path, "filler");
  const { bavail, bsize } = statfsSync(path);
  writeFileSync(filler, Buffer.alloc(bavail * bsize, 1));
  expect(statfsSync(path).bavail).toBe(0);
  return () => rmSync(filler);
}

/** A pair whose agents have their images at these places, empty. */
async function start(images: { primary?: string; secondary?: string }, options: PairOptions = {}): Promise<AgentPair> {
  const pair = await AgentPair.create({ disks: { vda: DISK }, primaryFlags: ["--assume-in-sync"], ...options });
  for (const [agent, path] of [
    [pair.primary, images.primary],
    [pair.secondary, images.secondary],
  ] as const) {
    if (path === undefined) continue;
    if (!path.startsWith("/dev/")) makeImage(path, DISK);
    agent.command[agent.command.findIndex((word) => word.startsWith("vda="))] = `vda=${path}`;
  }
  await pair.start();
  return pair;
}

async function errorCodes(agent: AgentUnderTest, type: string): Promise<unknown[]> {
  return (await agent.control.events(0)).filter((event) => event.type === type).map(({ data }) => data.code);
}

async function untilBothSay(pair: AgentPair, reason: string): Promise<void> {
  for (const agent of [pair.primary, pair.secondary]) {
    const { protection } = await agent.until(
      `NotProtected: ${reason}`,
      (status) => status.protection.reason === reason,
    );
    expect(protection.nextAction).toContain("free space on the secondary");
  }
  const { stdout, code } = await pair.primary.cli("status");
  expect([code, stdout]).toEqual([0, expect.stringContaining(`NotProtected: ${reason}`)]);
}

describe.runIf(requirePeers("qemu-io", "nbdcopy") && canMount())("a file system that runs full", () => {
  it("below the primary's image: the guest hears of it, the pair stays protected", async () => {
    const space = scratchFileSystem(SPACE);
    const pair = await start({ primary: join(space, "vda.img") });
    await qemuIo(pair.primary.uri(), "write -P 0x11 0 4M");
    const free = fill(space);
    const refused = await runTool("qemu-io", ["-f", "raw", "-c", "write -P 0x22 8M 1M", pair.primary.uri()]);
    expect(refused.stdout.toString() + refused.stderr).toContain("No space left on device");
    await qemuIo(pair.primary.uri(), "write -P 0x33 1M 1M", "flush", "read -P 0x33 1M 1M");
    await pair.untilProtected();
    expect(await errorCodes(pair.primary, "disk-error")).toEqual(["out-of-space"]);
    expect((await pair.primary.status()).disks[0]?.state).toBe("UpToDate");
    expect((await pair.primary.cli("checkpoint")).code).toBe(0);
    free();
    await qemuIo(pair.primary.uri(), "write -P 0x22 8M 1M", "flush", "read -P 0x22 8M 1M");
    await pair.checkpoint();
    expectSame(await readDisk(pair.secondary.uri()), readFileSync(join(space, "vda.img")));
  });

  it("below the secondary's base: writes are dirty until there is room, and no kept checkpoint is given up", async () => {
    const space = scratchFileSystem(SPACE);
    const pair = await start({ secondary: join(space, "vda.img") }, { secondaryFlags: ["--retain", "1"] });
    await qemuIo(pair.primary.uri(), "write -P 0x11 0 2M");
    await pair.checkpoint();
    const committed = await readDisk(pair.secondary.uri());
    const { retained } = (await pair.secondary.status()).epoch;
    expect(retained).toHaveLength(1);
    const free = fill(space);
    await qemuIo(pair.primary.uri(), "write -P 0x22 8M 4M", "flush", "read -P 0x22 8M 4M");
    await untilBothSay(pair, "overlay-full");
    expect(await errorCodes(pair.secondary, "overlay-full")).toEqual(["out-of-space"]);
    expectSame(await readDisk(pair.secondary.uri()), committed);
    free();
    await pair.untilProtected();
    expect((await pair.secondary.status()).epoch.retained).toEqual(retained);
    expectSame(await readDisk(pair.secondary.uri()), committed);
    await pair.checkpoint();
    expectSame(await readDisk(pair.secondary.uri()), pair.image("a"));
    expectSame(readFileSync(join(space, "vda.img")), pair.image("a"));
  });

  it.each(["colo", "mc"])(
    "below the secondary's state directory in mode %s: a prepared checkpoint can be committed, and all goes on when there is room",
    async (mode) => {
      const space = scratchFileSystem(SPACE);
      const pair = await start({}, { secondaryState: join(space, "state"), flags: ["--mode", mode] });
      await qemuIo(pair.primary.uri(), "write -P 0x11 0 8M");
      await pair.checkpoint();
      const { epoch } = await pair.primary.get<{ epoch: number }>("checkpoint", "--prepare");
      const committed = await readDisk(pair.secondary.uri());
      const free = fill(space);
      // More than what is there already of a log that is not needed any more.
      await qemuIo(pair.primary.uri(), "write -P 0x22 0 20M", "flush", "read -P 0x22 0 20M");
      await untilBothSay(pair, "overlay-full");
      expectSame(await readDisk(pair.secondary.uri()), committed);
      // The record was allocated beforehand.
      expect((await pair.primary.cli("commit", String(epoch))).code).toBe(0);
      expect((await pair.secondary.status()).epoch.committed).toBe(epoch);
      free();
      await pair.untilProtected();
      await pair.checkpoint();
      expectSame(await readDisk(pair.secondary.uri()), pair.image("a"));
      await pair.secondary.until("applied", ({ disks }) => disks.every(({ bufferBytes }) => bufferBytes === 0));
      expectSame(pair.image("b"), pair.image("a"));
    },
  );
});

describe.runIf(requirePeers("qemu-io", "nbdcopy", "python3:nbd") && canMount() && canMakeBlockDevices())(
  "a block device whose fsync fails, for want of space below it",
  () => {
    it("on the primary: every later flush fails too, and a switchover loses nothing", async () => {
      const space = scratchFileSystem(SPACE);
      const device = scratchBlockDevice(DISK, space);
      const pair = await start({ primary: device });
      const guest = await NbdClient.connect(pair.primary.uri());
      const free = fill(space);
      await guest.write({ offset: 8 * MIB, length: 2 * MIB }, 0x22);
      await expect(guest.flush()).rejects.toThrow(/EIO|ENOSPC/);
      free();
      await expect(guest.flush(), "a flush that is only tried again").rejects.toThrow(/EIO|ENOSPC/);
      const { disks, protection } = await pair.primary.status();
      expect([disks[0]?.state, protection.reason]).toEqual(["Failed", "disk-failed"]);
      await guest.close();
      const { pid } = pair.primary;
      await pair.primary.get("switchover");
      await pair.secondary.get("wait", "merged");
      await pair.primary.until("whole again", (status) => status.disks[0]?.state === "UpToDate");
      expect(pair.primary.pid).toBe(pid);
      const expected = Buffer.alloc(DISK).fill(0x22, 8 * MIB, 10 * MIB);
      expectSame(await readDisk(pair.secondary.uri()), expected);
      expectSame(readFileSync(join(space, "backing")), expected);
    });

    it("on the secondary: what it may have lost is sent and written again", async () => {
      const space = scratchFileSystem(SPACE);
      const device = scratchBlockDevice(DISK, space);
      const pair = await start({ secondary: device });
      const free = fill(space);
      await qemuIo(pair.primary.uri(), "write -P 0x22 8M 4M", "flush", "read -P 0x22 8M 4M");
      for (const agent of [pair.primary, pair.secondary]) {
        await agent.until("not protected", ({ protection }) =>
          ["disk-failed", "overlay-full"].includes(protection.reason ?? ""),
        );
      }
      free();
      await pair.untilProtected();
      await pair.checkpoint();
      expectSame(await readDisk(pair.secondary.uri()), pair.image("a"));
      // Not what the page cache of the device shows, but what is below it.
      expectSame(readFileSync(join(space, "backing")), pair.image("a"));
    });
  },
);
