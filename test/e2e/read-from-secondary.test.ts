/** A primary whose only image cannot be read, behind a server that fails on demand: guests go on with the secondary's. */
import { join } from "node:path";
import { expect, it, describe } from "vitest";
import { AgentPair, makeImage, MIB } from "../support/agent-pair.ts";
import { FailingServer } from "../support/failing-server.ts";
import { qemuIo, tool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";

const SIZE = 48 * MIB;

describe.runIf(requirePeers("nbdkit", "qemu-io", "fio"))("a disk whose only image cannot be read", () => {
  it("is read from the secondary under verified load, and is sound again by itself", async () => {
    const image = join(scratchDirectory(), "local.img");
    makeImage(image, SIZE);
    const server = await FailingServer.start(
      image,
      [],
      ["error-pwrite-rate=0", "error-zero-rate=0", "error-trim-rate=0"],
    );
    const pair = await AgentPair.create({
      disks: { vda: SIZE },
      imageOf: (path) => (path.includes("/a/") ? server.uri : path),
    });
    await pair.start();
    const { primary } = pair;
    await qemuIo(primary.uri(), "write -P 7 0 2M", "write -P 8 40M 8M");
    server.fail();
    await qemuIo(
      primary.uri(),
      "read -P 7 0 2M",
      "read -P 8 40M 8M",
      "write -P 9 1M 64k",
      "read -P 9 1M 64k",
      "read -P 7 0 1M",
    );
    await tool(
      "fio",
      "--name=load",
      "--ioengine=nbd",
      `--uri=${primary.uri()}`,
      "--rw=randrw",
      "--bs=4k-256k",
      "--size=16M",
      "--offset=4M",
      "--iodepth=32",
      "--verify=crc32c",
      "--verify_backlog=64",
      "--randseed=3",
    );
    const status = await primary.status();
    expect(status.disks[0]?.state).toBe("Failed");
    expect(status.protection).toMatchObject({ reason: "disk-failed" });
    expect(status.protection.nextAction).toContain("from the secondary, as far as");
    expect(status.peers[0]).toMatchObject({ connection: "Connected", replication: "Established" });
    server.mend();
    await pair.untilProtected();
    await qemuIo(primary.uri(), "read -P 9 1M 64k");

    server.fail();
    await pair.secondary.crash();
    await primary.until("alone", ({ peers }) => peers[0]?.connection === "Connecting");
    await expect(qemuIo(primary.uri(), "read 0 4k")).rejects.toThrow("Input/output error");
  });
});
