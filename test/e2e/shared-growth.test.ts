/** A shared disk is made longer as docs/operations.md tells it. */
import { truncateSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { AgentPair } from "../support/agent-pair.ts";
import { INITIAL, SIZE } from "../support/halved-disk.ts";
import { expectSame, qemuIo, readDisk } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";

describe.runIf(requirePeers("qemu-io", "nbdcopy"))("a shared disk", () => {
  it.each(["with", "without"])("has what was added to its image, %s a mark", async (mark) => {
    const flags = mark === "with" ? ["--shared-mark", join(scratchDirectory(), "mark")] : [];
    const pair = await AgentPair.protected({ disks: { vda: INITIAL }, shared: {}, flags });
    const { primary, secondary } = pair;
    await primary.stop();
    await secondary.stop();
    truncateSync(pair.imagePath("a"), 2 * SIZE);
    for (const side of ["a", "b"] as const) {
      const agent = side === "a" ? primary : secondary;
      agent.setFlag("--state", join(pair.root, side, "new-state"));
    }
    await pair.start();
    expect((await secondary.status()).disks).toMatchObject([{ sizeBytes: 2 * SIZE }]);
    await qemuIo(primary.uri(), `write -P 0x33 ${SIZE} ${SIZE}`);
    expectSame(await readDisk(secondary.uri()), Buffer.concat([INITIAL, Buffer.alloc(SIZE)]));
    await pair.checkpoint();
    expectSame(await readDisk(secondary.uri()), Buffer.concat([INITIAL, Buffer.alloc(SIZE, 0x33)]));
  });
});
