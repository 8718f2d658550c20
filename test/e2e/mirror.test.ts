/** Mirrors of a primary's disk, with real images and guests: each ends as it says, and nobody else notices. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { JobStatus } from "../../proto/status.ts";
import { AgentPair, makeImage, MIB, type AgentUnderTest } from "../support/agent-pair.ts";
import type { ErrorDocument } from "../support/cli-runner.ts";
import { expectSame, qemuIo, readDisk, tool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { present } from "../support/present.ts";
import { ToolProcess } from "../support/tool-process.ts";

const SIZE = 16 * MIB;

async function mirrorOf(agent: AgentUnderTest): Promise<JobStatus> {
  const jobs = await agent.get<JobStatus[]>("jobs");
  return present(jobs.findLast(({ type }) => type === "mirror"));
}

async function untilMirror(agent: AgentUnderTest, state: JobStatus["state"]): Promise<JobStatus> {
  await agent.until(state, ({ jobs }) => jobs.some((job) => job.type === "mirror" && job.state === state));
  return mirrorOf(agent);
}

/** A guest that writes until `end`, and then reads everything back that it has written. */
function verifiedLoad(uri: string, megabytes: number): Promise<Buffer> {
  return tool(
    "fio",
    "--name=guest",
    "--ioengine=nbd",
    `--uri=${uri}`,
    "--bs=4k-64k",
    "--rw=randwrite",
    "--iodepth=8",
    "--randseed=7",
    "--size=12M",
    `--io_size=${megabytes}M`,
    "--rate_iops=1500",
    "--verify=crc32c",
  );
}

/** A qcow2 image on two others, each with data of its own, and zeroes that hide what is below. */
async function makeChain(pair: AgentPair): Promise<{ base: string; middle: string; top: string }> {
  const [base, middle, top] = ["base", "middle", "top"].map((name) => join(pair.root, `${name}.qcow2`)) as [
    string,
    string,
    string,
  ];
  const create = (path: string, ...on: string[]): Promise<Buffer> =>
    tool("qemu-img", "create", "-q", "-f", "qcow2", ...on, path, ...(on.length === 0 ? [String(SIZE)] : []));
  const fill = (path: string, ...commands: string[]): Promise<Buffer> =>
    tool("qemu-io", "-f", "qcow2", ...commands.flatMap((command) => ["-c", command]), path);
  await create(base);
  await fill(base, "write -P 1 0 8M");
  await create(middle, "-b", base, "-F", "qcow2");
  await fill(middle, "write -P 2 4M 4M", "write -z 1M 1M");
  await create(top, "-b", middle, "-F", "qcow2");
  await fill(top, "write -P 3 6M 1M", "write -z 2M 64k");
  return { base, middle, top };
}

function compare(format: string, one: string, otherFormat: string, other: string): Promise<Buffer> {
  return tool("qemu-img", "compare", "-f", format, "-F", otherFormat, one, other);
}

describe.runIf(requirePeers("qemu-nbd", "qemu-img", "qemu-io", "nbdcopy", "fio"))("a mirror", () => {
  it.each(["background", "write-blocking"])("pivots to a raw file under verified load, unnoticed: %s", async (mode) => {
    const pair = await AgentPair.protected({ disks: { vda: SIZE } });
    const { primary, secondary } = pair;
    const target = join(pair.root, "new.img");
    await qemuIo(primary.uri(), "write -P 7 12M 4M", "flush");
    const load = verifiedLoad(primary.uri(), 48);
    load.catch(() => undefined); // it is awaited below
    const how = ["--create", "--copy-mode", mode, "--wait"];
    const ready = await primary.get<JobStatus>("mirror", "vda", "--to", target, ...how);
    expect(ready).toMatchObject({ state: "ready", type: "mirror", target, outcome: null });
    const done = await primary.get<JobStatus>("job", "complete", ready.id, "--wait");
    expect(done).toMatchObject({ state: "concluded", outcome: "pivoted", error: null });
    await load;
    expect((await primary.status()).disks[0]).toMatchObject({ image: target, state: "UpToDate" });
    await primary.untilDrained();
    await pair.checkpoint();
    const expected = await readDisk(primary.uri());
    expectSame(await readDisk(secondary.uri()), expected);

    // A service starts it again with the command line that it has always had.
    await primary.stop();
    await compare("raw", target, "raw", pair.imagePath("b"));
    await primary.start();
    await pair.untilProtected();
    expect((await primary.status()).disks[0]).toMatchObject({ image: target });
    expect(await mirrorOf(primary)).toMatchObject({ id: ready.id, outcome: "pivoted", state: "concluded" });
    expectSame(await readDisk(primary.uri()), expected);
  });

  it("is killed with its agent again and again, goes on, and loses no write", async () => {
    const pair = await AgentPair.create({ disks: { vda: SIZE }, flags: ["--durability", "process"] });
    const { primary } = pair;
    const target = join(pair.root, "new.img");
    await pair.start();
    await qemuIo(primary.uri(), "write -P 1 0 16M");
    await primary.get("mirror", "vda", "--to", target, "--create", "--speed", "4MiB");
    for (let round = 2; round < 6; round += 1) {
      const offset = round % 2 === 0 ? "1M" : "11M";
      await qemuIo(primary.uri(), `write -P ${round} ${offset} 2M`, `write -P ${round} ${round * 65_536 + 512} 1024`);
      await primary.crash();
      await primary.start();
      expect(await mirrorOf(primary)).toMatchObject({ outcome: null, target });
    }
    const { id } = await mirrorOf(primary);
    await primary.get("job", "set-speed", id, "0");
    await untilMirror(primary, "ready");
    await qemuIo(primary.uri(), "write -P 0x55 3M 1M");
    await primary.get("job", "complete", id);
    await primary.crash();
    await primary.start();
    if ((await mirrorOf(primary)).outcome === null) {
      await untilMirror(primary, "ready");
      await primary.get("job", "complete", id, "--wait");
    }
    expect(await mirrorOf(primary)).toMatchObject({ outcome: "pivoted" });
    await primary.untilDrained();
    const expected = await readDisk(primary.uri());
    await qemuIo(primary.uri(), "read -P 0x55 3M 1M", "read -P 5 11M 2M", "read -P 4 2M 1M");
    await primary.stop();
    await tool("qemu-io", "-r", "-f", "raw", "-c", "read -P 0x55 3M 1M", target);
    await compare("raw", target, "raw", pair.imagePath("b"));
    expect(expected.length).toBe(SIZE);
  });

  it.each(["raw", "qcow2"])(
    "copies everything to a target (%s) that was changed while the agent was stopped",
    async (format) => {
      const pair = await AgentPair.protected({ disks: { vda: SIZE } });
      const { primary } = pair;
      const target = join(pair.root, "new.img");
      await qemuIo(primary.uri(), "write -P 7 0 4M", "flush");
      const location = format === "raw" ? target : `${format}:${target}`;
      const { id } = await primary.get<JobStatus>("mirror", "vda", "--to", location, "--create", "--wait");
      await primary.stop();
      await tool("qemu-io", "-f", format, "-c", "write -P 9 1M 64k", target);
      await primary.start();
      await untilMirror(primary, "ready");
      await primary.get("job", "complete", id, "--wait");
      await qemuIo(primary.uri(), "read -P 7 0 4M");
      expect((await primary.status()).disks[0]).toMatchObject({ image: location });
    },
  );

  it("collapses a chain of three qcow2 images into a raw one", async () => {
    const pair = await AgentPair.create({ disks: { vda: SIZE } });
    const { primary } = pair;
    const { top } = await makeChain(pair);
    primary.setFlag("--disk", `vda=qcow2:${top}`);
    await primary.start();
    const before = await readDisk(primary.uri());
    const target = join(pair.root, "flat.img");
    const { id } = await primary.get<JobStatus>("mirror", "vda", "--to", target, "--create", "--wait");
    await qemuIo(primary.uri(), "write -P 9 9M 64k");
    await primary.get("job", "complete", id, "--wait");
    before.fill(9, 9 * MIB, 9 * MIB + 65_536);
    expectSame(await readDisk(primary.uri()), before);
    await qemuIo(primary.uri(), "write -P 8 0 64k", "flush");
    before.fill(8, 0, 65_536);
    expect((await primary.stop()).code).toBe(0);
    await primary.start();
    await primary.get("start-alone");
    expectSame(await readDisk(primary.uri()), before);
  });

  it("copies the top layer alone, and what is written, onto a target that has the others", async () => {
    const pair = await AgentPair.create({ disks: { vda: SIZE } });
    const { primary } = pair;
    const { middle, top } = await makeChain(pair);
    primary.setFlag("--disk", `vda=qcow2:${top}`);
    await primary.start();
    const target = join(pair.root, "second-top.qcow2");
    await tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", middle, "-F", "qcow2", target);
    const ready = await primary.get<JobStatus>("mirror", "vda", "--to", `qcow2:${target}`, "--sync", "top", "--wait");
    expect(ready.progress.doneBytes).toBeLessThan(2 * MIB);
    await qemuIo(primary.uri(), "write -P 4 10M 64k");
    const done = await primary.get<JobStatus>("job", "cancel", ready.id, "--wait");
    expect(done).toMatchObject({ outcome: "completed", error: null });
    await primary.stop();
    await compare("qcow2", top, "qcow2", target);
  });

  it("of nothing but new writes has those, through an NBD server", async () => {
    const pair = await AgentPair.create({ disks: { vda: SIZE } });
    const { primary } = pair;
    await primary.start();
    await qemuIo(primary.uri(), "write -P 1 0 1M");
    const target = join(pair.root, "new.qcow2");
    const socket = join(pair.root, "server.sock");
    await tool("qemu-img", "create", "-q", "-f", "qcow2", target, String(SIZE));
    const server = new ToolProcess("qemu-nbd", ["-f", "qcow2", "-k", socket, "-t", "-x", "target", target]);
    await server.untilListening(socket);
    const uri = `nbd+unix:///target?socket=${socket}`;
    const { id } = await primary.get<JobStatus>("mirror", "vda", "--to", uri, "--sync", "none", "--wait");
    await qemuIo(primary.uri(), "write -P 2 512k 64k", "write -P 3 8M 128k", "discard 0 64k");
    await primary.get("job", "cancel", id, "--wait");
    await server.end();
    const fill = ["read -P 0 0 512k", "read -P 2 512k 64k", "read -P 0 576k 448k", "read -P 3 8M 128k"];
    await tool("qemu-io", "-r", "-f", "qcow2", ...fill.flatMap((command) => ["-c", command]), target);
  });

  it("keeps to its speed, stays paused over restarts, and is given up before it is ready", async () => {
    const pair = await AgentPair.create({ disks: { vda: SIZE } });
    const { primary } = pair;
    await primary.start();
    await qemuIo(primary.uri(), "write -P 1 0 16M");
    const target = join(pair.root, "new.img");
    const { id } = await primary.get<JobStatus>("mirror", "vda", "--to", target, "--create", "--speed", "1MiB");
    const isUnderWay = ({ jobs }: { jobs: readonly JobStatus[] }): boolean =>
      jobs.some((job) => job.id === id && job.progress.doneBytes > MIB && job.bytesPerSecond > 0);
    const { jobs } = await primary.until("under way", isUnderWay);
    expect(present(jobs.find((job) => job.id === id)).bytesPerSecond).toBeLessThan(1.5 * MIB);
    const refused = await primary.ask<ErrorDocument>("job", "complete", id);
    expect(refused).toMatchObject({ code: 1, json: { error: { code: "job-state" } } });
    expect(await primary.get("job", "pause", id)).toMatchObject({ state: "paused" });
    await primary.crash();
    await primary.start();
    const held = { id, state: "paused", speedLimit: MIB, error: null };
    expect(await mirrorOf(primary)).toMatchObject(held);
    await primary.stop();
    await primary.start();
    expect(await mirrorOf(primary)).toMatchObject(held);
    expect(await primary.get("job", "resume", id)).toMatchObject({ state: "running" });
    const gone = await primary.get<JobStatus>("job", "cancel", id, "--wait");
    expect(gone).toMatchObject({ state: "concluded", outcome: "cancelled" });
    await primary.stop();
    await primary.start();
    expect(await mirrorOf(primary)).toMatchObject({ id, outcome: "cancelled" });

    // The target is free again, and can be tried once more.
    const again = await primary.get<JobStatus>("mirror", "vda", "--to", target, "--wait");
    expect(again.id).not.toBe(id);
    expect(await primary.get("job", "pause", again.id)).toMatchObject({ state: "standby" });
    await primary.get("job", "resume", again.id);
    const forced = await primary.get<JobStatus>("job", "cancel", again.id, "--force", "--wait");
    expect(forced).toMatchObject({ outcome: "cancelled" });
  });

  it("is refused where it cannot be what it says", async () => {
    const pair = await AgentPair.protected({ disks: { vda: SIZE } });
    const { primary, secondary } = pair;
    const path = (name: string): string => join(pair.root, name);
    makeImage(path("small.img"), MIB);
    makeImage(path("one.img"), SIZE);
    writeFileSync(path("inside.img"), Buffer.concat([Buffer.from("QFI\xfb", "latin1"), Buffer.alloc(SIZE - 4)]));
    const refusal = async (agent: AgentUnderTest, ...args: string[]): Promise<[number | null, string]> => {
      const { code, json } = await agent.ask<ErrorDocument>("mirror", ...args);
      return [code, json.error.code];
    };
    expect(await refusal(primary, "vda", "--to", pair.imagePath("a"))).toEqual([1, "image-busy"]);
    expect(await refusal(primary, "vda", "--to", primary.uri())).toEqual([1, "image-busy"]);
    expect(await refusal(primary, "vda", "--to", pair.imagePath("b"))).toEqual([1, "image-busy"]);
    expect(await refusal(primary, "vda", "--to", path("small.img"))).toEqual([1, "size-mismatch"]);
    expect(await refusal(primary, "vda", "--to", path("inside.img"))).toEqual([1, "image-format"]);
    expect(await refusal(primary, "vda", "--to", path("none.img"))).toEqual([1, "image-missing"]);
    expect(await refusal(primary, "vda", "--to", "nbd://192.0.2.1/x")).toEqual([2, "usage"]);
    expect(await refusal(primary, "vdz", "--to", path("one.img"))).toEqual([1, "not-found"]);
    expect(await refusal(primary, "vda", "--to", path("one.img"), "--granularity", "5000")).toEqual([2, "usage"]);
    expect(await refusal(secondary, "vda", "--to", path("one.img"))).toEqual([1, "not-primary"]);
    await primary.get("mirror", "vda", "--to", path("one.img"), "--wait");
    expect(await refusal(primary, "vda", "--to", path("one.img"))).toEqual([1, "image-busy"]);
  });
});

describe.runIf(requirePeers("qemu-io"))("a mirror of a shared disk", () => {
  it("is refused", async () => {
    const pair = await AgentPair.create({ disks: { vda: SIZE }, shared: {} });
    await pair.start();
    const { code, json } = await pair.primary.ask<ErrorDocument>(
      "mirror",
      "vda",
      "--to",
      join(pair.root, "x"),
      "--create",
    );
    expect([code, json.error.code]).toEqual([1, "not-supported"]);
  });
});
