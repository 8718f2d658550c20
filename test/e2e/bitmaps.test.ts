/** Named bitmaps, as backup tools see them: what changed is exactly what was written, and an increment made of it restores. */
import { closeSync, openSync, readSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { BitmapStatus } from "../../proto/control-api.ts";
import { AgentPair, MIB, type AgentUnderTest } from "../support/agent-pair.ts";
import { expectSame, qemuIo, readDisk, tool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";

const SIZE = 16 * MIB;
const CLUSTER = 16_384;

interface MapEntry {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
}

/** The dirty ranges, as nbdinfo tells them. */
async function dirtyRanges(agent: AgentUnderTest, name: string): Promise<{ offset: number; length: number }[]> {
  const map = `--map=qemu:dirty-bitmap:${name}`;
  const entries = JSON.parse((await tool("nbdinfo", map, "--json", agent.uri())).toString()) as MapEntry[];
  return entries.filter(({ type }) => type === 1).map(({ offset, length }) => ({ offset, length }));
}

/** What qemu-img, which tells dirty ranges as holes of the map, has of the same. */
async function dirtyRangesOfQemu(agent: AgentUnderTest, name: string): Promise<{ offset: number; length: number }[]> {
  const options = `driver=nbd,server.type=unix,server.path=${join(agent.run, "nbd.sock")},export=vda,x-dirty-bitmap=qemu:dirty-bitmap:${name}`;
  const entries = JSON.parse((await tool("qemu-img", "map", "--output=json", "--image-opts", options)).toString()) as {
    start: number;
    length: number;
    data: boolean;
  }[];
  return entries.filter(({ data }) => !data).map(({ start, length }) => ({ offset: start, length }));
}

const clusters = (first: number, count = 1): { offset: number; length: number } => ({
  offset: first * CLUSTER,
  length: count * CLUSTER,
});

/** Copies ranges of what an export holds into a file. */
async function copyRanges(
  from: Buffer,
  to: string,
  ranges: readonly { offset: number; length: number }[],
): Promise<void> {
  const file = openSync(to, "r+");
  for (const { offset, length } of ranges) writeSync(file, from, offset, length, offset);
  closeSync(file);
  return Promise.resolve();
}

describe.runIf(requirePeers("qemu-io", "qemu-img", "nbdinfo", "nbdcopy"))("a named bitmap", () => {
  it("has exactly what was written, for nbdinfo and qemu-img, and outlives a restart; after kill -9 it has no less", async () => {
    const pair = await AgentPair.protected({
      disks: { vda: Buffer.alloc(SIZE, 0x11) },
      flags: ["--cluster-size", String(CLUSTER)],
    });
    const { primary, secondary } = pair;
    await qemuIo(primary.uri(), "write -P 1 0 64k");
    expect(await primary.get<BitmapStatus>("bitmap", "add", "vda", "daily")).toMatchObject({
      disk: "vda",
      state: "recording",
      dirtyBytes: 0,
      granularityBytes: CLUSTER,
    });
    expect(await primary.ask("bitmap", "add", "vda", "daily")).toMatchObject({
      code: 1,
      json: { error: { code: "bitmap-exists" } },
    });
    expect(await dirtyRanges(primary, "daily")).toEqual([]);
    await qemuIo(primary.uri(), "write -P 2 100000 1", `write -P 3 ${20 * CLUSTER - 1} 2`, "discard 1M 16k", "flush");
    const expected = [clusters(6), clusters(19, 2), clusters(64)];
    expect(await dirtyRanges(primary, "daily")).toEqual(expected);
    expect(await dirtyRangesOfQemu(primary, "daily")).toEqual(expected);
    const listed = await tool("nbdinfo", "--list", `nbd+unix:///?socket=${join(primary.run, "nbd.sock")}`);
    expect(listed.toString()).toContain("qemu:dirty-bitmap:daily");
    expect(await primary.get<BitmapStatus[]>("bitmap", "list")).toMatchObject([{ dirtyBytes: 4 * CLUSTER }]);

    await primary.stop();
    await primary.start();
    expect(await dirtyRanges(primary, "daily")).toEqual(expected);
    await qemuIo(primary.uri(), "write -P 4 8M 4k", "flush");
    await primary.crash();
    await primary.start();
    const afterCrash = await dirtyRanges(primary, "daily");
    for (const { offset, length } of [...expected, clusters(512)]) {
      expect(afterCrash.some((range) => range.offset <= offset && range.offset + range.length >= offset + length)).toBe(
        true,
      );
    }

    await primary.get("bitmap", "clear", "vda", "daily");
    expect(await dirtyRanges(primary, "daily")).toEqual([]);
    await primary.get("bitmap", "remove", "vda", "daily");
    expect(await primary.get("bitmap", "list")).toEqual([]);
    expect(await secondary.ask("bitmap", "list")).toMatchObject({ code: 1, json: { error: { code: "not-primary" } } });
  });

  it("gives the increment from one checkpoint to the next, which restores the later one", async () => {
    const pair = await AgentPair.protected({
      disks: { vda: Buffer.alloc(SIZE, 0x11) },
      flags: ["--cluster-size", String(CLUSTER)],
    });
    const { primary, secondary } = pair;
    const backup = join(pair.imagePath("a"), "..", "backup.img");
    // As docs/operations.md has it: a bitmap that begins before the checkpoint of the full backup.
    await primary.get("bitmap", "add", "vda", "monday");
    await qemuIo(primary.uri(), "write -P 5 1M 40k", "flush");
    await pair.checkpoint();
    writeFileSync(backup, await readDisk(secondary.uri()));
    await qemuIo(primary.uri(), "write -P 6 2M 100k", "discard 64k 64k", "flush");
    await primary.get("bitmap", "add", "vda", "tuesday");
    await qemuIo(primary.uri(), "write -P 7 3M 1k", "flush");
    await pair.checkpoint();
    const checkpoint = await readDisk(secondary.uri());
    await qemuIo(primary.uri(), "write -P 8 5M 1k", "flush"); // of a later checkpoint
    const increment = await dirtyRanges(primary, "monday");
    await copyRanges(checkpoint, backup, increment);
    const restored = Buffer.alloc(SIZE);
    const file = openSync(backup, "r");
    readSync(file, restored, 0, SIZE, 0);
    closeSync(file);
    expectSame(restored, checkpoint);
    expect(increment.reduce((sum, { length }) => sum + length, 0)).toBeLessThan(MIB);
    // What the next increment begins with.
    expect(await dirtyRanges(primary, "tuesday")).toEqual([clusters(192), clusters(320)]);

    await primary.get("switchover");
    expect(await secondary.get("bitmap", "list")).toEqual([]);
    await secondary.get("wait", "synced");
    await secondary.get("switchover");
    await primary.until("Primary again", ({ role }) => role === "Primary");
    expect(await primary.get<BitmapStatus[]>("bitmap", "list")).toMatchObject([
      { name: "monday", state: "inconsistent", fault: "role-changed" },
      { name: "tuesday", state: "inconsistent", fault: "role-changed" },
    ]);
    expect(await primary.ask("bitmap", "clear", "vda", "monday")).toMatchObject({
      code: 1,
      json: { error: { code: "bitmap-inconsistent" } },
    });
    const contexts = await tool("nbdinfo", "--json", primary.uri());
    expect(contexts.toString()).not.toContain("dirty-bitmap");
  });
});
