/** One image of a format for both agents: qemu-nbd with the primary writes it, and others with the secondary read it. */
import { randomFillSync } from "node:crypto";
import { describe, expect, it } from "vitest";
import { type AgentPair, freePort, MIB, type PairOptions } from "../support/agent-pair.ts";
import type { ErrorDocument } from "../support/cli-runner.ts";
import { formatServersOf, untilNoFormatServer } from "../support/format-servers.ts";
import { HALF, INITIAL, SIZE } from "../support/halved-disk.ts";
import { expectSame, qemuIo, readDisk } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { contentOf, createSharing, failOverFenced } from "../support/shared-image.ts";

/** The format's own clusters. */
const UNIT = 64 * 1024;
/** A pair whose shared disk is a qcow2 image with the initial content, made with these flags of `qemu-img convert`. */
async function protectedPair(options: PairOptions = {}, ...convert: string[]): Promise<AgentPair> {
  const pair = await createSharing("qcow2", { disks: { vda: INITIAL }, ...options }, ...convert);
  await pair.start();
  return pair;
}

describe.runIf(requirePeers("qemu-nbd", "qemu-img", "qemu-io", "nbdcopy"))("a pair that shares a qcow2 image", () => {
  it("shows each checkpoint, wherever the image's content has come to lie since the last one", async () => {
    const pair = await protectedPair({ disks: { vda: SIZE }, flags: ["--durability", "process"] });
    const { primary, secondary } = pair;
    let shown = Buffer.alloc(SIZE);
    const rounds = [
      { commands: [`write -P 0x21 0 ${SIZE}`], byte: 0x21 },
      { commands: [`discard 0 ${SIZE}`], byte: 0 },
      { commands: [`write -P 0x23 ${HALF} ${HALF}`, `write -P 0x23 0 ${HALF}`], byte: 0x23 },
    ];
    for (const { commands, byte } of rounds) {
      let isWritten = false;
      const writing = qemuIo(primary.uri(), ...commands).then(() => (isWritten = true));
      do expectSame(await readDisk(secondary.uri()), shown);
      while (!isWritten);
      await writing;
      expectSame(await readDisk(secondary.uri()), shown);
      await pair.checkpoint();
      shown = Buffer.alloc(SIZE, byte);
      expectSame(await readDisk(secondary.uri()), shown);
    }
    expect(secondary.log).not.toContain("is lost");
  });

  it("reads where content lay at the checkpoint, whatever the primary's server moves, frees and takes again", async () => {
    // Compressed clusters of the format move with the first write to any part of them.
    const initial = Buffer.concat(Array.from({ length: SIZE / UNIT }, () => halfRandom()));
    const pair = await protectedPair({ disks: { vda: initial }, flags: ["--cluster-size", "4KiB"] }, "-c");
    const { primary, secondary } = pair;
    expectSame(await readDisk(secondary.uri()), initial);
    const writes = Array.from({ length: 64 }, (_, index) => `write -P 0x22 ${index * UNIT + 8192} 4k`);
    await qemuIo(primary.uri(), ...writes, "flush");
    expectSame(await readDisk(secondary.uri()), initial);
    // A reader that finds anything but what it looks for cannot decompress it, and its server leaves.
    expect(secondary.log).not.toContain("is lost");
    await failOverFenced(pair);
    expectSame(await readDisk(secondary.uri()), initial);
    await secondary.get("wait", "merged");
    await secondary.stop();
    expectSame(await contentOf(pair, "qcow2"), initial);
  });

  it("keeps its checkpoint when either side is killed under load, and goes on from there", async () => {
    const pair = await protectedPair();
    const { primary, secondary } = pair;
    const filling = (byte: number): Promise<unknown> => qemuIo(primary.uri(), `write -P ${byte} 0 ${SIZE}`);
    let writing = filling(0x22);
    await secondary.until("written to", ({ disks }) => (disks[0]?.hiddenBytes ?? 0) > 0);
    await secondary.crash();
    await untilNoFormatServer(secondary.run);
    await secondary.start();
    await writing;
    expectSame(await readDisk(secondary.uri()), INITIAL);
    await pair.checkpoint();
    expectSame(await readDisk(secondary.uri()), Buffer.alloc(SIZE, 0x22));
    writing = filling(0x33).catch(() => undefined); // the guest loses its disk
    await secondary.until("written to", ({ disks }) => (disks[0]?.hiddenBytes ?? 0) > 0);
    for (const pid of formatServersOf(primary.run)) process.kill(pid, "SIGKILL");
    await primary.crash();
    await writing;
    await untilNoFormatServer(primary.run);
    expectSame(await readDisk(secondary.uri()), Buffer.alloc(SIZE, 0x22));
    await primary.start();
    await pair.untilProtected();
    await filling(0x44);
    expectSame(await readDisk(secondary.uri()), Buffer.alloc(SIZE, 0x22));
    await pair.checkpoint();
    expectSame(await readDisk(secondary.uri()), Buffer.alloc(SIZE, 0x44));
    for (const agent of [primary, secondary]) await agent.stop();
    expectSame(await contentOf(pair, "qcow2"), Buffer.alloc(SIZE, 0x44));
  });

  it("fails over once the primary is fenced, takes it back as the secondary, and gives it its role again", async () => {
    const port = await freePort();
    const pair = await protectedPair({
      primaryFlags: ["--listen", `127.0.0.1:${port}`],
      secondaryFlags: ["--secondary-export", "read-write"],
    });
    const { primary, secondary } = pair;
    await qemuIo(primary.uri(), `write -P 0x22 ${HALF} ${HALF}`, "flush");
    await qemuIo(secondary.uri(), `write -P 0x33 0 ${MIB}`);
    const refused = await secondary.ask<ErrorDocument>("failover", "--force");
    expect(refused).toMatchObject({ code: 1, json: { error: { code: "fence-failed" } } });
    await failOverFenced(pair);
    const now = Buffer.from(INITIAL).fill(0x33, 0, MIB);
    expectSame(await readDisk(secondary.uri()), now);
    await secondary.get("wait", "merged");
    // The former primary opens nothing for writing before it has spoken to its peer.
    await primary.start();
    await primary.get("rejoin", "--peer", `ws://127.0.0.1:${pair.port}`);
    expect(formatServersOf(primary.run)).toEqual([]);
    await pair.untilProtected();
    await qemuIo(secondary.uri(), `write -P 0x44 ${HALF} ${MIB}`);
    expectSame(await readDisk(primary.uri()), now);
    await secondary.get("switchover");
    await primary.get("wait", "merged");
    await pair.untilProtected();
    now.fill(0x44, HALF, HALF + MIB);
    expectSame(await readDisk(primary.uri()), now);
    expectSame(await readDisk(secondary.uri()), now);
    for (const agent of [primary, secondary]) await agent.stop();
    expectSame(await contentOf(pair, "qcow2"), now);
  });
});

/** A cluster of the format that becomes smaller when it is compressed. */
function halfRandom(): Buffer {
  const bytes = Buffer.alloc(UNIT, 0x11);
  randomFillSync(bytes, 0, UNIT / 2);
  return bytes;
}
