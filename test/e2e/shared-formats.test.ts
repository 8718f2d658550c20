/** One image of a format for both agents: qemu-nbd with the primary writes it, and others with the secondary read it. */
import { rmSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { AgentPair, MIB, type PairOptions } from "../support/agent-pair.ts";
import type { ErrorDocument } from "../support/cli-runner.ts";
import { formatServersOf, untilNoFormatServer } from "../support/format-servers.ts";
import { HALF, halves, INITIAL, SIZE } from "../support/halved-disk.ts";
import { expectSame, qemuIo, readDisk, tool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";

const qcow2: PairOptions = { disks: { vda: INITIAL }, shared: {}, imageOf: (path) => `qcow2:${path}` };

/** A pair whose shared disk is a qcow2 image with the initial content, made with these flags of `qemu-img convert`. */
async function makePair(options: PairOptions = {}, ...convert: string[]): Promise<AgentPair> {
  const pair = await AgentPair.create({ ...qcow2, ...options });
  const image = pair.imagePath("a");
  const raw = `${image}.raw`;
  await tool("mv", image, raw);
  await tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", ...convert, raw, image);
  rmSync(raw);
  return pair;
}

async function protectedPair(options: PairOptions = {}, ...convert: string[]): Promise<AgentPair> {
  const pair = await makePair(options, ...convert);
  await pair.start();
  return pair;
}

/** What the image holds, when no server has it open. */
async function contentOf(pair: AgentPair): Promise<Buffer> {
  const raw = `${pair.imagePath("a")}.content`;
  await tool("qemu-img", "check", "-q", pair.imagePath("a"));
  await tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", pair.imagePath("a"), raw);
  const content = await tool("cat", raw);
  rmSync(raw);
  return content;
}

/** The primary is dead, and its host cut off from the disk. */
async function failOver({ primary, secondary }: AgentPair): Promise<void> {
  if (primary.isRunning) await primary.crash();
  await untilNoFormatServer(primary.run);
  await secondary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
  await secondary.get("failover", "--fenced");
}

describe.runIf(requirePeers("qemu-nbd", "qemu-img", "qemu-io", "nbdcopy"))("a pair that shares a qcow2 image", () => {
  it("shows each checkpoint to whoever reads while the guest overwrites everything, round after round", async () => {
    const pair = await protectedPair({ flags: ["--durability", "process"] });
    const { primary, secondary } = pair;
    let shown = INITIAL;
    for (const byte of [0x21, 0, 0x23]) {
      let isWritten = false;
      const change = byte === 0 ? `discard 0 ${SIZE}` : `write -P ${byte} 0 ${SIZE}`;
      const writing = qemuIo(primary.uri(), change).then(() => (isWritten = true));
      do expectSame(await readDisk(secondary.uri()), shown);
      while (!isWritten);
      await writing;
      expectSame(await readDisk(secondary.uri()), shown);
      await pair.checkpoint();
      shown = Buffer.alloc(SIZE, byte);
      expectSame(await readDisk(secondary.uri()), shown);
    }
  });
});
