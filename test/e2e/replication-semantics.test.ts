/** What a pair must hold beyond QEMU's own cases: the list of what those leave out, as black-box tests. */
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import type { AgentEvent } from "../../proto/status.ts";
import { SeededRandom } from "../sim/seeded-random.ts";
import { AgentPair, freePort, MIB, type PairOptions } from "../support/agent-pair.ts";
import type { ErrorDocument } from "../support/cli-runner.ts";
import { CuttingProxy } from "../support/cutting-proxy.ts";
import { applyToDisk, applyToModel, randomChange } from "../support/disk-model.ts";
import { expectSame, firstDifference, NbdClient, qemuIo, readDisk, tool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { canMount, scratchDirectory, scratchFileSystem } from "../support/scratch.ts";

const CLUSTER = 16 * 1024;
const LOCK_STEP: PairOptions = {
  primaryFlags: ["--assume-in-sync"],
  secondaryFlags: ["--secondary-export", "read-write"],
};

function allocatedBytes(path: string): number {
  return statSync(path).blocks * 512;
}

describe.runIf(requirePeers("qemu-io", "nbdcopy", "python3:nbd"))("the committed view", () => {
  const INITIAL = Buffer.alloc(4 * MIB, 0x11);

  it.each(["the primary", "the secondary"])(
    "keeps both VMs' writes apart where they share clusters, %s writing first",
    async (first) => {
      const pair = await AgentPair.protected({ ...LOCK_STEP, disks: { vda: INITIAL } });
      const pvm = await NbdClient.connect(pair.primary.uri());
      const svm = await NbdClient.connect(pair.secondary.uri());
      const base = Buffer.from(INITIAL);
      const view = Buffer.from(INITIAL);
      const primaryWrites = async (): Promise<void> => {
        for (const [offset, length] of [
          [5000, 9000],
          [3 * CLUSTER - 100, 200],
          [8 * CLUSTER, 2 * CLUSTER],
        ] as const) {
          await pvm.write({ offset, length }, 0x22);
          base.fill(0x22, offset, offset + length);
        }
        await pair.primary.untilDrained();
      };
      const secondaryWrites = async (): Promise<void> => {
        for (const [offset, length] of [
          [9001, 9000],
          [3 * CLUSTER - 1, 3],
          [7 * CLUSTER + 1, 4 * CLUSTER],
        ] as const) {
          await svm.write({ offset, length }, 0x33);
          view.fill(0x33, offset, offset + length);
        }
      };
      if (first === "the primary") {
        await primaryWrites();
        await secondaryWrites();
      } else {
        await secondaryWrites();
        await primaryWrites();
      }
      expectSame(await readDisk(pair.secondary.uri()), view);
      expectSame(pair.image("b"), base);
      await pair.primary.crash();
      await pair.secondary.get("failover", "--force");
      expectSame(await readDisk(pair.secondary.uri()), view);
      await pair.secondary.get("wait", "merged");
      expectSame(pair.image("b"), view);
    },
  );

  it("never shows a reader what the primary has not committed, while originals are being saved", async () => {
    const pair = await AgentPair.protected({ ...LOCK_STEP, disks: { vda: INITIAL } });
    const reader = await NbdClient.connect(pair.secondary.uri());
    const writer = await NbdClient.connect(pair.primary.uri());
    const random = new SeededRandom(11);
    const piece = 4 * CLUSTER;
    let isWriting = true;
    const writing = (async () => {
      for (const byte of [0x22, 0x44]) {
        for (let offset = 0; offset < INITIAL.length; offset += piece)
          await writer.write({ offset, length: piece }, byte);
      }
      isWriting = false;
    })();
    let reads = 0;
    const old = Buffer.alloc(piece, 0x11);
    while (isWriting || reads < 100) {
      const seen = await reader.read(random.below(INITIAL.length - piece), piece);
      expect(firstDifference(seen, old)).toBeUndefined();
      reads += 1;
    }
    await writing;
    await pair.checkpoint();
    expectSame(await readDisk(pair.secondary.uri()), Buffer.alloc(INITIAL.length, 0x44));
  });

  it("goes back to nothing of the secondary VM's writes at a checkpoint", async () => {
    const pair = await AgentPair.protected({ ...LOCK_STEP, disks: { vda: INITIAL } });
    await qemuIo(pair.secondary.uri(), "write -P 0x33 100 70000", "write -z 1M 64k", "discard 2M 64k");
    expect((await pair.secondary.status()).disks[0]?.activeBytes).toBeGreaterThan(0);
    await pair.checkpoint();
    expectSame(await readDisk(pair.secondary.uri()), INITIAL);
    await pair.secondary.until("freed of the active disk", ({ disks }) => disks[0]?.activeBytes === 0);
  });

  it("saves originals anew in every epoch", async () => {
    const pair = await AgentPair.protected({ ...LOCK_STEP, disks: { vda: INITIAL } });
    let before = 0x11;
    for (const byte of [0x22, 0x33, 0x44]) {
      await qemuIo(pair.primary.uri(), `write -P ${byte} 1M 1M`);
      await pair.primary.untilDrained();
      await qemuIo(pair.secondary.uri(), `read -P ${before} 1M 1M`);
      expect((await pair.secondary.status()).disks[0]?.hiddenBytes).toBeGreaterThanOrEqual(MIB);
      await pair.checkpoint();
      await qemuIo(pair.secondary.uri(), `read -P ${byte} 1M 1M`);
      await pair.secondary.until("freed of originals", ({ disks }) => disks[0]?.hiddenBytes === 0);
      before = byte;
    }
  });

  it("survives a clean stop of the secondary with its VM's writes, and the pair needs no full sync after it", async () => {
    const pair = await AgentPair.protected({ ...LOCK_STEP, disks: { vda: INITIAL } });
    await qemuIo(pair.primary.uri(), "write -P 0x22 1M 1M");
    await pair.primary.untilDrained();
    await qemuIo(pair.secondary.uri(), "write -P 0x33 0 64k");
    const view = Buffer.from(INITIAL).fill(0x33, 0, 65_536);
    expect(await pair.secondary.stop()).toMatchObject({ code: 0 });
    await qemuIo(pair.primary.uri(), "write -P 0x44 2M 64k");
    await pair.secondary.start();
    expectSame(await readDisk(pair.secondary.uri()), view);
    await pair.untilProtected();
    expectSame(await readDisk(pair.secondary.uri()), view);
    const { jobs } = await pair.primary.status();
    expect(jobs.map(({ type }) => type)).toEqual(["resync"]);
    expect(jobs[0]?.progress.totalBytes).toBe(65_536);
    await pair.checkpoint();
    expectSame(await readDisk(pair.secondary.uri()), pair.image("a"));
    expectSame(pair.image("b"), pair.image("a"));
  });

  it.each([1, 2])("equals a model under random changes by both VMs (seed %i)", async (seed) => {
    const random = new SeededRandom(seed);
    const size = 5 * MIB + 3 * 512; // no whole number of clusters
    const pair = await AgentPair.protected({ ...LOCK_STEP, disks: { vda: Buffer.alloc(size, 0x11) } });
    const pvm = await NbdClient.connect(pair.primary.uri());
    const svm = await NbdClient.connect(pair.secondary.uri());
    const primary = Buffer.alloc(size, 0x11);
    let view = Buffer.alloc(size, 0x11);
    for (let round = 0; round < 6; round += 1) {
      for (let step = 0; step < 40; step += 1) {
        const byPrimary = random.chance(0.6);
        const change = randomChange(random, size);
        applyToModel(byPrimary ? primary : view, change);
        await applyToDisk(byPrimary ? pvm : svm, change);
      }
      await pair.primary.untilDrained();
      expectSame(await readDisk(pair.secondary.uri()), view);
      expectSame(pair.image("b"), primary);
      if (round % 2 === 0) {
        await pair.checkpoint();
        view = Buffer.from(primary);
        expectSame(await readDisk(pair.secondary.uri()), view);
      }
    }
    expectSame(await readDisk(pair.primary.uri()), primary);
    await pair.secondary.get("failover", "--force");
    await pair.secondary.get("wait", "merged");
    expectSame(pair.image("b"), view);
  });

  it("changes on all disks of the VM at once", async () => {
    const pair = await AgentPair.protected({ disks: { vda: MIB, vdb: MIB } });
    const writers = await Promise.all(["vda", "vdb"].map((disk) => NbdClient.connect(pair.primary.uri(disk))));
    const readers = await Promise.all(["vda", "vdb"].map((disk) => NbdClient.connect(pair.secondary.uri(disk))));
    let isRunning = true;
    const checkpoints = (async () => {
      for (let stamp = 1; stamp <= 60; stamp += 1) {
        for (const writer of writers) await writer.write({ offset: 512_000, length: 512 }, stamp);
        await pair.primary.control.checkpoint({ prepare: false, timeoutMs: 30_000 });
      }
      isRunning = false;
    })();
    const seen = new Set<number>();
    while (isRunning) {
      const order = seen.size % 2 === 0 ? [0, 1] : [1, 0];
      const stamps: number[] = [];
      for (const index of order) stamps.push((await readers[index]!.read(512_000, 512))[511]!);
      // What is read later is never older.
      expect(stamps[1]).toBeGreaterThanOrEqual(stamps[0]!);
      seen.add(stamps[0]!);
    }
    await checkpoints;
    expect(seen.size).toBeGreaterThan(3);
  });
});

describe.runIf(requirePeers("qemu-io", "nbdcopy", "python3:nbd"))("trim and write-zeroes", () => {
  it.each(["process", "power"])("free the space on both sides (durability %s)", async (durability) => {
    const size = 16 * MIB;
    const pair = await AgentPair.protected({
      disks: { vda: Buffer.alloc(size, 0x11) },
      flags: ["--durability", durability],
      primaryFlags: ["--assume-in-sync"],
    });
    const before = { a: allocatedBytes(pair.imagePath("a")), b: allocatedBytes(pair.imagePath("b")) };
    await qemuIo(pair.primary.uri(), "discard 4M 4M", "write -z -u 8M 4M");
    await pair.primary.untilDrained();
    await qemuIo(pair.secondary.uri(), "read -P 0x11 0 16M");
    for (const side of ["a", "b"] as const) {
      expect(allocatedBytes(pair.imagePath(side))).toBeLessThanOrEqual(before[side] - 8 * MIB);
    }
    await pair.checkpoint();
    const expected = Buffer.alloc(size, 0x11).fill(0, 4 * MIB, 12 * MIB);
    for (const agent of [pair.primary, pair.secondary]) expectSame(await readDisk(agent.uri()), expected);
    const client = await NbdClient.connect(pair.secondary.uri());
    const extents = await client.extents({ offset: 4 * MIB, length: 8 * MIB });
    expect(extents.every(({ state }) => state === 3)).toBe(true);
  });
});

describe.runIf(requirePeers("strace", "python3:nbd"))("flush and FUA", () => {
  it.each(["process", "power"])(
    "fsync the primary's image before they are answered (durability %s)",
    async (durability) => {
      const pair = await AgentPair.protected({ flags: ["--durability", durability] });
      const client = await NbdClient.connect(pair.primary.uri());
      const trace = await traceSyncs(pair.primary.pid);
      const syncsOf = async (work: () => Promise<void>): Promise<number> => {
        const before = trace.count(pair.imagePath("a"));
        await work();
        return trace.count(pair.imagePath("a")) - before;
      };
      const range = { offset: 0, length: 4096 };
      expect(await syncsOf(() => client.write(range, 0x22))).toBe(0);
      expect(await syncsOf(() => client.flush())).toBeGreaterThan(0);
      expect(await syncsOf(() => client.write(range, 0x33, { fua: true }))).toBeGreaterThan(0);
      expect(await syncsOf(() => client.zero(range, { fua: true }))).toBeGreaterThan(0);
    },
  );

  /** Follows the syncs of a process; `count` tells how many of a file have returned. */
  async function traceSyncs(pid: number): Promise<{ count: (path: string) => number }> {
    const output = join(scratchDirectory(), "trace");
    const calls = "trace=fsync,fdatasync,pwritev2";
    const child = spawn("strace", ["-f", "-y", "-e", calls, "-o", output, "-p", String(pid)], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    onTestFinished(() => void child.kill("SIGINT"));
    await once(child.stderr, "data"); // "attached"
    return {
      count: (path) =>
        readFileSync(output, "utf8")
          .split("\n")
          .filter((line) => line.includes(`<${path}>`) && (!line.includes("pwritev2") || line.includes("RWF_DSYNC")))
          .length,
    };
  }
});

describe.runIf(requirePeers("qemu-io", "nbdcopy", "python3:nbd"))("a lost secondary", () => {
  it("gets what it missed when it is back, and nothing else", async () => {
    const size = 16 * MIB;
    const pair = await AgentPair.protected({
      disks: { vda: Buffer.alloc(size, 0x11) },
      primaryFlags: ["--assume-in-sync"],
    });
    await pair.secondary.crash();
    await qemuIo(pair.primary.uri(), "write -P 0x22 1M 1M", "write -z 3M 1M", "discard 5M 1M");
    await pair.primary.until("disconnected", ({ peers }) => peers[0]?.connection === "Connecting");
    const { disks, protection } = await pair.primary.status();
    expect(disks[0]?.dirtyBytes).toBe(3 * MIB);
    expect(protection).toMatchObject({ state: "NotProtected", reason: "connecting" });
    await pair.secondary.start();
    expectSame(await readDisk(pair.secondary.uri()), Buffer.alloc(size, 0x11));
    await pair.untilProtected();
    expectSame(await readDisk(pair.secondary.uri()), Buffer.alloc(size, 0x11));
    expectSame(pair.image("b"), pair.image("a"));
    const { jobs } = await pair.primary.status();
    expect(jobs.at(-1)).toMatchObject({ type: "resync", state: "concluded", progress: { totalBytes: 3 * MIB } });
    await pair.checkpoint();
    expectSame(await readDisk(pair.secondary.uri()), pair.image("a"));
  });

  it("misses nothing when the connection is cut again and again under writes", async () => {
    const proxyPort = await freePort();
    const pair = await AgentPair.create();
    pair.primary.setFlag("--peer", `ws://127.0.0.1:${proxyPort}`);
    const proxy = await CuttingProxy.start(proxyPort, pair.port);
    await pair.start();
    const random = new SeededRandom(5);
    const client = await NbdClient.connect(pair.primary.uri());
    const expected = Buffer.alloc(client.sizeBytes);
    for (let round = 0; round < 6; round += 1) {
      await pair.primary.until("connected", ({ peers }) => peers[0]?.connection === "Connected");
      const writes = random.below(150);
      for (let step = 0; step < writes; step += 1) {
        const change = randomChange(random, client.sizeBytes);
        applyToModel(expected, change);
        await applyToDisk(client, change);
      }
      proxy.cut();
    }
    await pair.untilProtected();
    await pair.checkpoint();
    expectSame(await readDisk(pair.primary.uri()), expected);
    expectSame(await readDisk(pair.secondary.uri()), expected);
    expectSame(pair.image("b"), expected);
    const events = await pair.primary.control.events(0);
    expect(events.filter(({ type }) => type === "peer-disconnected")).toHaveLength(6);
    expect(fullSyncs(events)).toBe(1);
  });

  it("does not hold up the guest when it is frozen, and catches up when it goes on", async () => {
    const pair = await AgentPair.protected({
      disks: { vda: 32 * MIB },
      flags: ["--peer-timeout", "1s", "--window", "4MiB"],
    });
    pair.secondary.freeze();
    // Four times the window and more: these writes end only because the frozen peer is given up.
    await qemuIo(pair.primary.uri(), "write -P 0x22 0 18M", "flush");
    const { peers, protection } = await pair.primary.until(
      "disconnected",
      ({ peers }) => peers[0]?.connection === "Connecting",
    );
    expect(peers[0]?.lastError?.code).toBe("peer-timeout");
    expect(protection).toMatchObject({ state: "NotProtected", reason: "connecting" });
    const refused = await pair.primary.ask<ErrorDocument>("checkpoint");
    expect(refused).toMatchObject({ code: 1, json: { error: { code: "no-peer" } } });
    pair.secondary.thaw();
    await pair.untilProtected();
    await pair.checkpoint();
    expectSame(await readDisk(pair.secondary.uri()), pair.image("a"));
    expect(fullSyncs(await pair.primary.control.events(0))).toBe(1);
  });

  function fullSyncs(events: readonly AgentEvent[]): number {
    return events.filter(({ type, data }) => type === "sync-started" && data.kind === "full-sync").length;
  }
});

describe.runIf(requirePeers("qemu-io", "nbdcopy") && canMount())("a secondary whose overlays have no room left", () => {
  const SIZE = 52 * MIB;
  const SPACE = 36 * MIB;
  const INITIAL = Buffer.alloc(SIZE, 0x11);

  /** A protected pair with a prepared checkpoint of 18 MiB of originals, and then more writes than the overlays can take. */
  async function filled(): Promise<{ pair: AgentPair; prepared: number; space: string }> {
    const space = scratchFileSystem(SPACE);
    const pair = await AgentPair.protected({
      disks: { vda: INITIAL },
      flags: ["--durability", "process"],
      primaryFlags: ["--assume-in-sync"],
      secondaryState: join(space, "state"),
    });
    await qemuIo(pair.primary.uri(), "write -P 0x22 0 18M");
    const { epoch } = await pair.primary.get<{ epoch: number }>("checkpoint", "--prepare");
    await qemuIo(pair.primary.uri(), "write -P 0x33 18M 30M", "flush");
    await pair.primary.until("aware of it", ({ protection }) => protection.reason === "overlay-full");
    await pair.secondary.until("full", ({ protection }) => protection.reason === "overlay-full");
    return { pair, prepared: epoch, space };
  }

  it("leaves the guest alone, says so on both sides, and keeps the checkpoint; a commit makes room again", async () => {
    const { pair, prepared } = await filled();
    await qemuIo(pair.primary.uri(), "write -P 0x44 48M 1M", "read -P 0x33 18M 30M");
    for (const agent of [pair.primary, pair.secondary]) {
      const { peers, protection } = await agent.status();
      expect(peers[0]?.lastError?.code).toBe("overlay-full");
      expect(protection.nextAction).not.toBe("");
    }
    expect((await pair.primary.status()).peers[0]).toMatchObject({
      connection: "Connected",
      replication: "PausedSyncS",
    });
    expectSame(await readDisk(pair.secondary.uri()), INITIAL);
    await pair.primary.get("commit", String(prepared));
    expectSame(await readDisk(pair.secondary.uri()), Buffer.from(INITIAL).fill(0x22, 0, 18 * MIB));
    await pair.untilProtected();
    await pair.checkpoint();
    expectSame(await readDisk(pair.secondary.uri()), pair.image("a"));
    expectSame(pair.image("b"), pair.image("a"));
  });

  it("goes on by itself when space is made", async () => {
    const { pair, space } = await filled();
    spawnSync("mount", ["-o", `remount,size=${2 * SPACE}`, space]);
    await pair.untilProtected();
    expectSame(await readDisk(pair.secondary.uri()), INITIAL);
    expectSame(pair.image("b"), pair.image("a"));
    await pair.checkpoint();
    expectSame(await readDisk(pair.secondary.uri()), pair.image("a"));
  });

  it("can be restarted and promoted in that state, and the promoted side takes writes and merges", async () => {
    const { pair } = await filled();
    await pair.primary.crash();
    await pair.secondary.crash();
    await pair.secondary.start();
    expectSame(await readDisk(pair.secondary.uri()), INITIAL);
    await pair.secondary.get("failover");
    await qemuIo(pair.secondary.uri(), "write -P 0x55 10M 20M", "flush", "read -P 0x55 10M 20M");
    await pair.secondary.get("wait", "merged");
    expectSame(pair.image("b"), Buffer.from(INITIAL).fill(0x55, 10 * MIB, 30 * MIB));
    await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", pair.imagePath("b"), pair.secondary.uri());
  });
});
