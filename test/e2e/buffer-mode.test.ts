/** Mode `mc` as operators and guests see it: what is committed, what is not, and the same roles as in mode `colo`. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { AgentPair, MIB, type PairOptions } from "../support/agent-pair.ts";
import { runColobus } from "../support/cli-runner.ts";
import { expectSame, qemuIo, readDisk } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";

const SIZE = 8 * MIB;
const INITIAL = Buffer.alloc(SIZE, 0x11);
const BUFFERED: PairOptions = {
  disks: { vda: INITIAL },
  flags: ["--mode", "mc"],
  primaryFlags: ["--assume-in-sync"],
};

/** What the disk holds after writes of one byte value at offset and length each. */
function written(...writes: readonly (readonly [value: number, offset: number, length: number])[]): Buffer {
  const content = Buffer.from(INITIAL);
  for (const [value, offset, length] of writes) content.fill(value, offset, offset + length);
  return content;
}

/** Beside files of former logs, which later ones take over. */
function logsOf(pair: AgentPair): string[] {
  const names = readdirSync(join(pair.root, "b", "state", "disks", "vda"));
  return names.filter((name) => /^buffer\.\d/.test(name));
}

describe.runIf(requirePeers("qemu-io", "nbdcopy"))("mode mc", () => {
  it("keeps what is not committed beside the image, through the death of both, and forgets it in a failover", async () => {
    const pair = await AgentPair.protected(BUFFERED);
    const { primary, secondary } = pair;
    await qemuIo(primary.uri(), "write -P 0x22 1M 1M", "write -P 0x33 5000 3000", "write -z 4M 64k");
    const committed = written([0x22, MIB, MIB], [0x33, 5000, 3000], [0, 4 * MIB, 65_536]);
    await primary.untilDrained();
    expectSame(await readDisk(secondary.uri()), INITIAL);
    expectSame(pair.image("b"), INITIAL);
    expect((await secondary.status()).disks).toMatchObject([{ hiddenBytes: 0 }]);
    expect((await secondary.status()).disks[0]?.bufferBytes).toBeGreaterThan(MIB);

    const epoch = await pair.checkpoint();
    expectSame(await readDisk(secondary.uri()), committed);
    await secondary.until("applied", ({ disks }) => disks[0]?.bufferBytes === 0);
    expectSame(pair.image("b"), committed);
    expect(logsOf(pair)).toEqual([]);

    await qemuIo(primary.uri(), "write -P 0x44 1M 2M");
    await primary.untilDrained();
    await primary.crash();
    await secondary.crash();
    await secondary.start();
    const [log = ""] = logsOf(pair);
    const inspected = await runColobus("inspect", join(pair.root, "b", "state", "disks", "vda", log));
    expect(inspected.stdout).toMatch(/log \d+ of a block buffer, epoch \d+\n.*\n.*2 MiB written/);
    expectSame(await readDisk(secondary.uri()), committed);
    expect(await secondary.get("failover")).toMatchObject({ already: false, epoch });
    await secondary.get("wait", "merged");
    expectSame(await readDisk(secondary.uri()), committed);
    expectSame(pair.image("b"), committed);
    expect(logsOf(pair)).toEqual([]);
  });

  it("resyncs, rejoins and swaps roles, and has its point of return meanwhile", async () => {
    const pair = await AgentPair.protected(BUFFERED);
    const { primary, secondary, port } = pair;
    await secondary.crash();
    await qemuIo(primary.uri(), "write -P 0x22 2M 1M");
    await secondary.start();
    await primary.get("wait", "synced");
    expectSame(await readDisk(secondary.uri()), INITIAL);
    await pair.checkpoint();
    const first = written([0x22, 2 * MIB, MIB]);
    expectSame(await readDisk(secondary.uri()), first);

    await qemuIo(primary.uri(), "write -P 0x33 3M 1M");
    await primary.untilDrained();
    await primary.crash();
    await secondary.until("alone", ({ peers }) => peers[0]?.connection === "Connecting");
    await secondary.get("failover");
    await qemuIo(secondary.uri(), "write -P 0x55 0 64k");
    const second = written([0x22, 2 * MIB, MIB], [0x55, 0, 65_536]);
    await primary.start();
    await primary.get("rejoin", "--peer", `ws://127.0.0.1:${port}`);
    await secondary.get("wait", "synced");
    await secondary.get("checkpoint");
    expectSame(await readDisk(primary.uri()), second);
    expect(await primary.status()).toMatchObject({ role: "Secondary", mode: "mc" });

    await secondary.get("switchover");
    await primary.get("wait", "synced");
    expect(await primary.status()).toMatchObject({ role: "Primary", mode: "mc" });
    expectSame(await readDisk(primary.uri()), second);
    await primary.get("wait", "merged");
    expectSame(pair.image("a"), second);
  });

  it("keeps earlier checkpoints without copies, and goes back to one", async () => {
    const pair = await AgentPair.protected({ ...BUFFERED, secondaryFlags: ["--retain", "1"] });
    const { primary, secondary } = pair;
    await qemuIo(primary.uri(), "write -P 0x22 0 1M");
    const kept = await pair.checkpoint();
    await qemuIo(primary.uri(), "write -P 0x33 512k 1M");
    await pair.checkpoint();
    const earlier = written([0x22, 0, MIB]);
    expectSame(await readDisk(secondary.uri()), written([0x22, 0, MIB], [0x33, MIB / 2, MIB]));
    expectSame(await readDisk(secondary.uri(`vda@${kept}`)), earlier);
    await primary.stop();
    await secondary.get("rollback", String(kept));
    expectSame(await readDisk(secondary.uri()), earlier);
    await secondary.get("failover");
    await secondary.get("wait", "merged");
    expectSame(pair.image("b"), earlier);
  });
});
