/** How a secondary comes to its first checkpoint: from nothing, from an old image, and through interruptions. */
import { closeSync, openSync, readFileSync, rmSync, statSync, writeSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { failoverAnswerSchema } from "../../proto/control-api.ts";
import { jobSchema, type JobStatus } from "../../proto/status.ts";
import { SeededRandom } from "../sim/seeded-random.ts";
import { AgentPair, freePort, makeImage, MIB, type PairOptions } from "../support/agent-pair.ts";
import type { ErrorDocument } from "../support/cli-runner.ts";
import { CuttingProxy } from "../support/cutting-proxy.ts";
import { applyToDisk, applyToModel, randomChange } from "../support/disk-model.ts";
import { expectSame, NbdClient, readDisk } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";

const SIZE = 64 * MIB;
/** Of the last cluster there is only a part: the size is no multiple of it. */
const ODD_SIZE = 48 * MIB + 512;
const CREATED: PairOptions = { secondaryFlags: ["--create"] };

/** An image with data, zeroes that occupy storage, and holes between them. Returns its content. */
function makeSparseImage(path: string): Buffer {
  makeImage(path, ODD_SIZE);
  const random = new SeededRandom(3);
  const fd = openSync(path, "r+");
  for (const [offset, length] of [
    [0, 4096],
    [5 * MIB + 700, 300_000],
    [20 * MIB, 3 * MIB],
    [ODD_SIZE - 1000, 1000],
  ] as const) {
    writeSync(fd, randomBytes(random, length), 0, length, offset);
  }
  writeSync(fd, Buffer.alloc(2 * MIB), 0, 2 * MIB, 30 * MIB);
  closeSync(fd);
  return readFileSync(path);
}

function randomBytes(random: SeededRandom, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let at = 0; at < length; at += 1) bytes[at] = random.below(256);
  return bytes;
}

function allocatedBytes(path: string): number {
  return statSync(path).blocks * 512;
}

/** The secondary's copy is equal, as an image and as an export, and takes no more room than the primary's. */
async function expectEqualAndSparse(pair: AgentPair, content: Buffer): Promise<void> {
  expectSame(pair.image("b"), content);
  expectSame(await readDisk(pair.secondary.uri()), content);
  expect(allocatedBytes(pair.imagePath("b"))).toBeLessThanOrEqual(allocatedBytes(pair.imagePath("a")) + 256 * 1024);
}

describe.runIf(requirePeers("nbdcopy", "python3:nbd"))("the first sync", () => {
  it("makes a missing replica at the primary's size, as sparse as the source", async () => {
    const pair = await AgentPair.create(CREATED);
    const content = makeSparseImage(pair.imagePath("a"));
    removeImage(pair);
    await pair.start();
    await expectEqualAndSparse(pair, content);
    const { recoverable, disks } = await pair.secondary.status();
    expect(recoverable?.epoch).toBeGreaterThan(0);
    expect(disks).toMatchObject([{ sizeBytes: ODD_SIZE, state: "UpToDate", hiddenBytes: 0 }]);
  });

  it("leaves nothing of an old image on the secondary, and frees what is a hole in the source", async () => {
    const pair = await AgentPair.create();
    const content = makeSparseImage(pair.imagePath("a"));
    makeImage(pair.imagePath("b"), Buffer.alloc(ODD_SIZE, 0x77));
    await pair.start();
    await expectEqualAndSparse(pair, content);
  });

  it("zeroes a whole old image when the source is empty", async () => {
    const pair = await AgentPair.create({ disks: { vda: SIZE } });
    makeImage(pair.imagePath("b"), Buffer.alloc(SIZE, 0x77));
    await pair.start();
    await expectEqualAndSparse(pair, Buffer.alloc(SIZE));
  });

  it("refuses an old image of another size, on both sides, and changes nothing in it", async () => {
    const pair = await AgentPair.create({ disks: { vda: MIB } });
    const old = Buffer.alloc(2 * MIB, 0x77);
    makeImage(pair.imagePath("b"), old);
    await Promise.all([pair.primary.start(), pair.secondary.start()]);
    for (const agent of [pair.primary, pair.secondary]) {
      const { protection, peers } = await agent.until(
        "refused",
        ({ peers }) => peers[0]?.lastError?.code === "size-mismatch",
      );
      expect(peers).toMatchObject([{ connection: "Connecting" }]);
      expect(protection).toMatchObject({ state: "NotProtected", reason: "connecting" });
    }
    expectSame(pair.image("b"), old);
  });

  it("is left out with --assume-in-sync, and a first checkpoint is committed all the same", async () => {
    const pair = await AgentPair.create({
      disks: { vda: Buffer.alloc(4 * MIB, 0x11) },
      primaryFlags: ["--assume-in-sync"],
    });
    // A difference that only a sync would find.
    const differing = Buffer.alloc(4 * MIB, 0x11).fill(0x99, MIB, MIB + 1);
    makeImage(pair.imagePath("b"), differing);
    await pair.start();
    const { jobs, epoch } = await pair.primary.status();
    expect(jobs).toEqual([]);
    expect(epoch.committed).toBeGreaterThan(0);
    const events = await pair.primary.control.events(0);
    expect(events.filter(({ type }) => type === "sync-started")).toEqual([]);
    expectSame(pair.image("b"), differing);
    expectSame(await readDisk(pair.secondary.uri()), differing);
  });

  it("is no protection before it has ended: nothing to read, nothing to return to, no failover", async () => {
    const { pair, proxy } = await held(CREATED);
    const { primary, secondary } = pair;
    for (const agent of [primary, secondary]) {
      expect(await agent.status()).toMatchObject({
        recoverable: null,
        epoch: { committed: 0, prepared: [] },
        protection: { state: "NotProtected", reason: "initial-sync" },
      });
    }
    expect((await secondary.status()).disks).toMatchObject([{ state: "Inconsistent", hiddenBytes: 0 }]);
    const client = await NbdClient.connect(secondary.uri());
    await expect(client.read(0, 512)).rejects.toThrow("EIO");
    await expect(client.read(SIZE - 512, 512)).rejects.toThrow("EIO");
    expect(await primary.ask<ErrorDocument>("wait", "committed", "--timeout", "100ms")).toMatchObject({
      code: 4,
      json: { error: { code: "timed-out" } },
    });
    expect(await secondary.ask<ErrorDocument>("failover")).toMatchObject({
      code: 1,
      json: { error: { code: "peer-connected" } },
    });
    await primary.crash();
    proxy.cut();
    await secondary.until("disconnected", ({ peers }) => peers[0]?.connection === "Connecting");
    for (const flags of [[], ["--dry-run"]]) {
      expect(await secondary.ask<ErrorDocument>("failover", ...flags)).toMatchObject({
        code: 1,
        json: { error: { code: "no-checkpoint" } },
      });
    }
    await expect(client.read(0, 512)).rejects.toThrow("EIO");
    expect(await secondary.status()).toMatchObject({ role: "Secondary", recoverable: null });
    // The same primary, started again, begins again and comes to the end.
    proxy.goOn();
    await primary.start();
    await pair.untilProtected();
    expectSame(await client.read(SIZE - 512, 512), Buffer.alloc(512, 0x11));
    await primary.crash();
    proxy.cut();
    await secondary.until("disconnected", ({ peers }) => peers[0]?.connection === "Connecting");
    expect(failoverAnswerSchema.parse(await secondary.get("failover")).epoch).toBeGreaterThan(0);
    expectSame(await readDisk(secondary.uri()), Buffer.alloc(SIZE, 0x11));
  });

  it("exports nothing while the image that is to be created has no size yet", async () => {
    const pair = await AgentPair.create(CREATED);
    removeImage(pair);
    await pair.secondary.start();
    expect(await pair.secondary.status()).toMatchObject({
      exports: [],
      disks: [{ sizeBytes: null, state: "Inconsistent" }],
    });
    await expect(NbdClient.connect(pair.secondary.uri())).rejects.toThrow("ENOENT");
    expect(await pair.secondary.ask<ErrorDocument>("failover")).toMatchObject({
      code: 1,
      json: { error: { code: "no-checkpoint" } },
    });
  });

  it("takes up the guest's writes, before and behind the point that it has reached", async () => {
    const { pair, proxy } = await held();
    const { primary } = pair;
    const job = (await fullSyncs(pair)).at(-1);
    if (job === undefined) throw new Error("there is no job");
    expect(await directed("pause", job.id)).toMatchObject({ id: job.id, state: "paused" });
    proxy.goOn();
    const expected = Buffer.alloc(SIZE, 0x11);
    const client = await NbdClient.connect(primary.uri());
    const random = new SeededRandom(7);
    const writeSome = async (): Promise<void> => {
      for (let count = 0; count < 150; count += 1) {
        const change = randomChange(random, SIZE);
        applyToModel(expected, change);
        await applyToDisk(client, change);
      }
    };
    await writeSome();
    expect((await primary.status()).protection.reason).toBe("initial-sync");
    expect(await directed("set-speed", job.id, "200MiB")).toMatchObject({ speedLimit: 200 * MIB });
    expect(await directed("resume", job.id)).toMatchObject({ state: "running" });
    await writeSome();
    await primary.get("wait", "synced");
    await writeSome();
    await pair.untilProtected();
    await pair.checkpoint();
    expectSame(await readDisk(primary.uri()), expected);
    expectSame(await readDisk(pair.secondary.uri()), expected);
    expectSame(pair.image("b"), expected);

    async function directed(verb: string, id: string, ...speed: string[]): Promise<JobStatus> {
      return jobSchema.parse(await primary.get("job", verb, id, ...speed));
    }
  });

  it.each(["killed", "cut off"])("goes on where it was when the secondary is %s in the middle", async (how) => {
    const { pair, proxy } = await held();
    if (how === "killed") {
      await pair.secondary.crash();
      proxy.cut();
      proxy.goOn();
      await pair.primary.until("disconnected", ({ peers }) => peers[0]?.connection === "Connecting");
      await pair.secondary.start();
    } else {
      proxy.cut();
      proxy.goOn();
    }
    await pair.untilProtected();
    const [first, second] = await fullSyncs(pair);
    expect(first).toMatchObject({ state: "concluded", progress: { totalBytes: SIZE } });
    expect(first?.error).not.toBeNull();
    expect(second).toMatchObject({ state: "concluded", error: null });
    // What was stable on the secondary is not sent again.
    expect(second?.progress.totalBytes).toBeLessThan(SIZE);
    expectSame(pair.image("b"), Buffer.alloc(SIZE, 0x11));
    expectSame(await readDisk(pair.secondary.uri()), Buffer.alloc(SIZE, 0x11));
  });

  /** A pair whose first sync stands still, with a part of the disk on the secondary. */
  async function held(options: PairOptions = {}): Promise<{ pair: AgentPair; proxy: CuttingProxy }> {
    const proxyPort = await freePort();
    const pair = await AgentPair.create({
      ...options,
      disks: { vda: Buffer.alloc(SIZE, 0x11) },
      flags: ["--peer-timeout", "60s", "--window", "4MiB"],
    });
    pair.primary.setFlag("--peer", `ws://127.0.0.1:${proxyPort}`);
    makeImage(pair.imagePath("b"), SIZE);
    if (options.secondaryFlags?.includes("--create") === true) removeImage(pair);
    const proxy = await CuttingProxy.start(proxyPort, pair.port);
    const isHeld = proxy.holdAfter(SIZE / 4);
    await Promise.all([pair.primary.start(), pair.secondary.start()]);
    await isHeld;
    const { jobs } = await pair.primary.until(
      "aware of what is stable on the secondary",
      ({ jobs, peers, disks }) =>
        (jobs[0]?.progress.doneBytes ?? 0) > (peers[0]?.lagBytes ?? 0) - (disks[0]?.dirtyBytes ?? 0),
    );
    expect(jobs).toMatchObject([{ type: "full-sync", state: "running", progress: { totalBytes: SIZE } }]);
    return { pair, proxy };
  }
});

function removeImage(pair: AgentPair): void {
  rmSync(pair.imagePath("b"));
}

async function fullSyncs(pair: AgentPair): Promise<JobStatus[]> {
  return (await pair.primary.status()).jobs.filter(({ type }) => type === "full-sync");
}
