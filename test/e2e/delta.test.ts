/** What a resync sends: what differs, and hardly more; counted on the wire. `COLOBUS_DELTA_GIB` is the disk's size. */
import { describe, expect, it } from "vitest";
import type { JobStatus } from "../../proto/status.ts";
import { EXTENT_BYTES } from "../../proto/limits.ts";
import { AgentPair, freePort, MIB } from "../support/agent-pair.ts";
import { CuttingProxy } from "../support/cutting-proxy.ts";
import { expectSame, qemuIo, readDisk, tool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";

const GIB = 1024 * MIB;
const SIZE = Number(process.env.COLOBUS_DELTA_GIB ?? 4) * GIB;
const REWRITTEN = Math.floor(SIZE / 100 / MIB) * MIB;
/** Bytes on the wire for each byte of a dirty cluster, at most. */
const OVERHEAD_MAX = 1.1;

async function pairBehindProxy(size: number): Promise<{ pair: AgentPair; proxy: CuttingProxy }> {
  const pair = await AgentPair.create({ disks: { vda: size }, primaryFlags: ["--assume-in-sync"] });
  const proxy = await CuttingProxy.start(await freePort(), pair.port);
  pair.primary.setFlag("--peer", `ws://127.0.0.1:${proxy.port}`);
  await pair.start();
  return { pair, proxy };
}

function fio(uri: string, ...flags: string[]): Promise<Buffer> {
  return tool("fio", "--name=rewrite", "--ioengine=nbd", `--uri=${uri}`, "--iodepth=32", "--randseed=7", ...flags);
}

describe.runIf(requirePeers("fio", "qemu-io", "nbdcopy"))("a resync after a disconnect", () => {
  it.each([
    ["sequentially", ["--rw=write", "--bs=1m", `--size=${REWRITTEN}`]],
    ["as random 4 KiB", ["--rw=randwrite", "--bs=4k", `--size=${SIZE}`, `--io_size=${REWRITTEN}`]],
  ])("of a disk of which 1 % was rewritten %s sends that, and hardly more", async (_, flags) => {
    const { pair, proxy } = await pairBehindProxy(SIZE);
    await pair.secondary.stop();
    await pair.primary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
    await fio(pair.primary.uri(), ...flags);
    const dirtyBytes = (await pair.primary.status()).disks[0]?.dirtyBytes ?? 0;
    expect(dirtyBytes).toBeGreaterThanOrEqual(REWRITTEN * 0.99);
    const before = proxy.relayedBytes;
    await pair.secondary.start();
    await pair.untilProtected();
    await pair.primary.untilDrained();
    const sent = proxy.relayedBytes - before;
    process.stdout.write(`dirty ${dirtyBytes} bytes, on the wire ${sent}: ${(sent / dirtyBytes).toFixed(4)}\n`);
    expect(sent / dirtyBytes).toBeLessThanOrEqual(OVERHEAD_MAX);
  });

  it("and a kill -9 of the primary sends the extents that were in use at most", async () => {
    const { pair, proxy } = await pairBehindProxy(SIZE);
    const extents = 20;
    // A clean stop records at once that all is equal; in a running agent that comes some time after the sync.
    await pair.primary.stop();
    await pair.primary.start();
    await pair.untilProtected();
    for (let extent = 0; extent < extents; extent += 1) {
      await qemuIo(pair.primary.uri(), `write -P ${extent + 1} ${extent * 32 * EXTENT_BYTES + 4096} 4096`);
    }
    await pair.primary.untilDrained();
    await pair.primary.crash();
    const before = proxy.relayedBytes;
    await pair.primary.start();
    await pair.untilProtected();
    await pair.primary.untilDrained();
    const [resync] = (await pair.primary.get<JobStatus[]>("jobs")).filter(({ type }) => type === "resync");
    expect(resync?.progress.totalBytes).toBe(extents * EXTENT_BYTES);
    // What is a hole in them is sent as such.
    expect(proxy.relayedBytes - before).toBeLessThan(extents * EXTENT_BYTES);
  });

  it("leaves the last checkpoint to fail over to, in its middle", async () => {
    const size = 256 * MIB;
    const { pair, proxy } = await pairBehindProxy(size);
    await qemuIo(pair.primary.uri(), "write -P 1 0 128M");
    await pair.checkpoint();
    const checkpoint = await readDisk(pair.secondary.uri());
    await pair.secondary.stop();
    await pair.primary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
    await qemuIo(pair.primary.uri(), "write -P 2 64M 128M");
    const half = proxy.holdAfter(64 * MIB);
    await pair.secondary.start();
    await half;
    const { jobs } = await pair.primary.status();
    expect(jobs.filter(({ type }) => type === "resync")).toMatchObject([{ state: "running" }]);
    await pair.primary.crash();
    await pair.secondary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
    expectSame(await readDisk(pair.secondary.uri()), checkpoint);
    await pair.secondary.get("failover");
    expectSame(await readDisk(pair.secondary.uri()), checkpoint);
    await pair.secondary.get("wait", "merged");
    expectSame(await readDisk(pair.secondary.uri()), checkpoint);
  });
});
