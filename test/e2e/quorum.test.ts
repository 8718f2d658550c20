/** Several copies of a disk on the primary's side, behind servers that fail and hang on demand. */
import { closeSync, copyFileSync, openSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { ChildAnswer } from "../../proto/control-api.ts";
import type { AgentEvent, JobStatus, Status } from "../../proto/status.ts";
import { AgentPair, makeImage, MIB } from "../support/agent-pair.ts";
import type { ErrorDocument } from "../support/cli-runner.ts";
import { FailingServer } from "../support/failing-server.ts";
import { untilNoFormatServer } from "../support/format-servers.ts";
import { qemuIo, tool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";

const SIZE = 48 * MIB;

const childOf = (status: Status, name: string) => status.disks[0]?.children.find((child) => child.name === name);
const isChild = (name: string, state: string) => (status: Status) => childOf(status, name)?.state === state;
const areSound = (status: Status): boolean =>
  status.disks[0]?.children.every(({ state }) => state === "sound") === true;

async function expectIdentical(...images: string[]): Promise<void> {
  const [first = "", ...others] = images;
  for (const other of others) {
    const said = await tool("qemu-img", "compare", "-U", "-f", "raw", "-F", "raw", first, other);
    expect(said.toString()).toContain("identical");
  }
}

/** A pair that is whole, whose disk has its own image behind a server that fails on demand, and a copy in a file. */
async function startOnFailingImage(): Promise<{
  readonly pair: AgentPair;
  readonly server: FailingServer;
  readonly served: string;
  readonly second: string;
}> {
  const root = scratchDirectory();
  const served = join(root, "local.img");
  const second = join(root, "second.img");
  makeImage(served, SIZE);
  makeImage(second, SIZE);
  const server = await FailingServer.start(served);
  const pair = await AgentPair.create({
    disks: { vda: SIZE },
    imageOf: (path) => (path.includes("/a/") ? server.uri : path),
    primaryFlags: ["--child", `vda:b=${second}`],
  });
  await pair.start();
  await pair.primary.until("whole", areSound);
  return { pair, server, served, second };
}

describe.runIf(requirePeers("nbdkit", "qemu-nbd", "fio", "qemu-io", "qemu-img"))("a disk with several copies", () => {
  it("hides an image that fails under verified load, and mends it, also when it breaks again", async () => {
    const { pair, server, served, second } = await startOnFailingImage();
    const load = tool(
      "fio",
      "--name=load",
      "--ioengine=nbd",
      `--uri=${pair.primary.uri()}`,
      "--rw=randwrite",
      "--bs=4k",
      `--size=${SIZE}`,
      "--loops=3",
      "--iodepth=8",
      "--verify=crc32c",
      "--verify_backlog=512",
      "--randseed=11",
      "--rate_iops=6000",
    );
    server.fail();
    await pair.primary.until("degraded", isChild("local", "broken"));
    server.mend();
    await pair.primary.until("syncing again", (status) => !isChild("local", "broken")(status));
    server.fail();
    await pair.primary.until("degraded again", isChild("local", "broken"));
    server.mend();
    await load;
    await pair.primary.until("whole again", areSound);
    const { stdout } = await pair.primary.cli("events", "--json");
    const events = stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as AgentEvent);
    const broken = events.filter(({ type, data }) => type === "child-broken" && data.child === "local");
    expect(broken.length).toBeGreaterThanOrEqual(2);
    expect(events.some(({ type }) => type === "quorum-report-bad")).toBe(true);
    expect(events.some(({ type }) => type === "quorum-failure" || type === "disk-error")).toBe(false);
    await pair.primary.untilDrained();
    await pair.primary.stop();
    await pair.secondary.stop();
    await expectIdentical(served, second, pair.imagePath("b"));
  });

  it("delays a guest by a copy that hangs for its time limit, and no longer", async () => {
    const second = join(scratchDirectory(), "second.img");
    makeImage(second, SIZE);
    const server = await FailingServer.start(second, ["--filter=delay"], ["wdelay=60"]);
    const pair = await AgentPair.create({
      disks: { vda: SIZE },
      primaryFlags: ["--child", `vda:b=${server.uri}`, "--child-timeout", "500ms"],
    });
    await pair.start();
    await qemuIo(pair.primary.uri(), "write -P 7 1M 64k", "flush", "read -P 7 1M 64k");
    const status = await pair.primary.until("degraded", isChild("b", "broken"));
    expect(childOf(status, "b")?.lastError?.code).toBe("child-timed-out");
    expect(status.disks[0]?.state).toBe("UpToDate");
  });

  it("knows after a kill -9 what its copies may lack", async () => {
    const second = join(scratchDirectory(), "second.img");
    makeImage(second, SIZE);
    const pair = await AgentPair.create({ disks: { vda: SIZE }, primaryFlags: ["--child", `vda:b=${second}`] });
    await pair.start();
    await pair.primary.until("whole", areSound);
    await pair.primary.stop();
    await pair.primary.start();
    await pair.primary.until("whole", areSound);
    await qemuIo(pair.primary.uri(), "write -P 7 1M 256k");
    await pair.primary.crash();
    await pair.primary.start();
    const { disks, jobs } = await pair.primary.until("whole again", areSound);
    expect(disks[0]?.children.map(({ name }) => name)).toEqual(["local", "b"]);
    const resync = jobs.find(({ type, child }) => type === "resync" && child === "b");
    expect(resync?.progress.totalBytes).toBeLessThanOrEqual(4 * MIB);
    await pair.primary.stop();
    await expectIdentical(pair.imagePath("a"), second);
  });

  it.each(["raw", "qcow2"])(
    "brings a copy (%s) everything that was changed while the agent was stopped",
    async (format) => {
      const file = join(scratchDirectory(), "second.img");
      await tool("qemu-img", "create", "-q", "-f", format, file, String(SIZE));
      const pair = await AgentPair.create({
        disks: { vda: SIZE },
        primaryFlags: ["--child", `vda:b=${format === "raw" ? file : `${format}:${file}`}`],
      });
      const { primary } = pair;
      await pair.start();
      await qemuIo(primary.uri(), "write -P 7 0 4M");
      await primary.until("whole", areSound);
      await primary.stop();
      await primary.start();
      const kept = await primary.until("whole again", areSound);
      expect(kept.jobs.filter(({ child }) => child === "b")).toEqual([]);
      await primary.stop();
      await tool("qemu-io", "-f", format, "-c", "write -P 9 1M 64k", file);
      await primary.start();
      await primary.until("mended", areSound);
      await primary.stop();
      const said = await tool("qemu-img", "compare", "-f", "raw", "-F", format, pair.imagePath("a"), file);
      expect(said.toString()).toContain("identical");
    },
  );

  it("takes a copy that is asked for twice at once, and makes its image once", async () => {
    const file = join(scratchDirectory(), "second.qcow2");
    const pair = await AgentPair.protected({ disks: { vda: SIZE } });
    const { primary } = pair;
    await qemuIo(primary.uri(), "write -P 3 0 2M");
    const ask = () => primary.ask<ErrorDocument>("child", "add", "vda", `b=qcow2:${file}`, "--create");
    const answers = await Promise.all([ask(), ask(), ask()]);
    expect(answers.filter(({ code }) => code === 0).length).toBe(1);
    for (const { code, json } of answers) if (code !== 0) expect(json.error.code).toBe("child-refused");
    const { disks } = await primary.until("whole", areSound);
    expect(disks[0]?.children.map(({ name }) => name)).toEqual(["local", "b"]);
    await qemuIo(primary.uri(), "write -P 4 1M 2M", "flush");
    expect(childOf(await primary.status(), "b")?.state).toBe("sound");
    await primary.stop();
    expect(primary.log.match(/the format server has ended/g)?.length).toBe(1);
    const said = await tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", pair.imagePath("a"), file);
    expect(said.toString()).toContain("identical");
  });

  it("keeps no server of an image that it refuses as a copy, and takes it once it fits", async () => {
    const file = join(scratchDirectory(), "second.qcow2");
    await tool("qemu-img", "create", "-q", "-f", "qcow2", file, String(SIZE - MIB));
    const pair = await AgentPair.protected({ disks: { vda: SIZE } });
    const { primary } = pair;
    const ask = () => primary.ask<ErrorDocument>("child", "add", "vda", `b=qcow2:${file}`);
    expect((await ask()).json.error.code).toBe("size-mismatch");
    await untilNoFormatServer(primary.run);
    await tool("qemu-img", "resize", "-q", "-f", "qcow2", file, String(SIZE));
    expect((await ask()).code).toBe(0);
    await primary.until("whole", areSound);
  });

  it("freezes guests when two copies that are compared differ, until an operator lets them go on", async () => {
    const second = join(scratchDirectory(), "second.img");
    makeImage(second, SIZE);
    const pair = await AgentPair.create({
      disks: { vda: SIZE },
      primaryFlags: ["--child", `vda:b=${second}`, "--blkverify"],
    });
    const { primary, secondary } = pair;
    await pair.start();
    await primary.until("whole", areSound);
    await qemuIo(primary.uri(), "write -P 7 1M 64k");
    await pair.untilProtected();
    const file = openSync(second, "r+");
    writeSync(file, Buffer.of(8), 0, 1, MIB + 100);
    closeSync(file);
    const where = `copies local and b of disk vda differ at offset ${MIB + 100}, in a read of 4096 bytes at ${MIB}`;
    await expect(qemuIo(primary.uri(), "read 1M 4k")).rejects.toThrow("Input/output error");
    const { protection } = await primary.status();
    expect(protection).toMatchObject({ state: "NotProtected", reason: "held" });
    expect(protection.nextAction).toContain(where);
    expect(protection.nextAction).toContain("colobus start-alone");
    // The secondary has nothing to say of it.
    await secondary.stop();
    await primary.until("alone", ({ peers }) => peers[0]?.connection === "Connecting");
    await secondary.start();
    const again = await primary.until("back", ({ peers }) => peers[0]?.replication === "Established");
    expect(again.protection).toMatchObject({ reason: "held", nextAction: protection.nextAction });
    expect(await primary.get("start-alone")).toMatchObject({ released: true });
    await expect(qemuIo(primary.uri(), "read 1M 4k")).rejects.toThrow("Input/output error");
    const failed = await primary.status();
    expect(failed.protection).toMatchObject({ reason: "disk-failed" });
    expect(failed.protection.nextAction).toContain(where);
    await qemuIo(primary.uri(), "write -P 9 1M 64k", "read -P 9 1M 64k");
    await pair.untilProtected();
  });

  it("takes copies in and out while it runs, and refuses what does not fit", async () => {
    const root = scratchDirectory();
    const pair = await AgentPair.protected({ disks: { vda: SIZE } });
    await qemuIo(pair.primary.uri(), "write -P 3 0 2M");
    const added = await pair.primary.get<ChildAnswer>("child", "add", "vda", `b=${join(root, "b.img")}`, "--create");
    expect(added.children.map(({ name }) => name)).toEqual(["local", "b"]);
    await pair.primary.until("whole", areSound);
    await qemuIo(pair.primary.uri(), "write -P 4 1M 2M");
    writeFileSync(join(root, "small.img"), Buffer.alloc(MIB));
    const small = await pair.primary.ask("child", "add", "vda", `c=${join(root, "small.img")}`);
    expect(small).toMatchObject({ code: 1, json: { error: { code: "size-mismatch" } } });
    const local = await pair.primary.ask("child", "remove", "vda", "local");
    expect(local).toMatchObject({ code: 1, json: { error: { code: "child-refused" } } });
    const replaced = await pair.primary.get<ChildAnswer>(
      "child",
      "replace",
      "vda",
      `b=${join(root, "c.img")}`,
      "--create",
    );
    expect(replaced.children.map(({ name, replaces }) => [name, replaces])).toEqual([
      ["local", undefined],
      ["b", undefined],
      ["b.new", "b"],
    ]);
    const { disks } = await pair.primary.until("replaced", (status) => status.disks[0]?.children.length === 2);
    expect(disks[0]?.children[1]).toMatchObject({ name: "b", state: "sound", path: join(root, "c.img") });
    await qemuIo(pair.primary.uri(), "write -P 5 3M 1M");
    await pair.primary.get("child", "remove", "vda", "b");
    copyFileSync(join(root, "c.img"), join(root, "d.img"));
    await pair.primary.stop();
    await expectIdentical(pair.imagePath("a"), join(root, "d.img"));
  });

  it("grows with all its copies, which stay sound, while guests write", async () => {
    const root = scratchDirectory();
    const pair = await AgentPair.protected({ disks: { vda: SIZE } });
    const { primary } = pair;
    const copy = join(root, "b.qcow2");
    await primary.get("child", "add", "vda", `b=qcow2:${copy}`, "--create");
    await primary.get("child", "add", "vda", `c=${join(root, "c.img")}`, "--create");
    await primary.until("whole", areSound);
    const load = tool(
      "fio",
      "--name=load",
      "--ioengine=nbd",
      `--uri=${primary.uri()}`,
      "--rw=randwrite",
      "--bs=4k",
      `--size=${SIZE}`,
      "--iodepth=8",
      "--verify=crc32c",
      "--rate_iops=6000",
    );
    load.catch(() => undefined); // it is awaited below
    await primary.get("resize", "vda", String(2 * SIZE));
    expect((await primary.status()).disks[0]).toMatchObject({ sizeBytes: 2 * SIZE });
    expect((await primary.status()).disks[0]?.children.map(({ state }) => state)).toEqual(["sound", "sound", "sound"]);
    await load;
    await qemuIo(primary.uri(), `write -P 9 ${2 * SIZE - MIB} 1M`, "flush");
    await primary.crash();
    await primary.start();
    await primary.until("whole again", areSound);
    await qemuIo(primary.uri(), `read -P 9 ${2 * SIZE - MIB} 1M`);
    await primary.stop();
    await expectIdentical(pair.imagePath("a"), join(root, "c.img"));
    const said = await tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", pair.imagePath("a"), copy);
    expect(said.toString()).toContain("identical");
  });

  it("pivots to a mirror's target beside the same copies, also from an image that is broken", async () => {
    const { pair, server, second } = await startOnFailingImage();
    const target = join(scratchDirectory(), "target.img");
    const { primary } = pair;
    await qemuIo(primary.uri(), "write -P 1 0 8M");
    server.fail();
    await qemuIo(primary.uri(), "write -P 2 4M 8M");
    await primary.until("degraded", isChild("local", "broken"));
    const ready = await primary.get<JobStatus>("mirror", "vda", "--to", target, "--create", "--wait");
    const taken = await primary.ask<ErrorDocument>("mirror", "vda", "--to", second);
    expect(taken).toMatchObject({ code: 1, json: { error: { code: "image-busy" } } });
    const done = await primary.get<JobStatus>("job", "complete", ready.id, "--wait");
    expect(done).toMatchObject({ outcome: "pivoted" });
    const children = (status: Status) => status.disks[0]?.children.map(({ name, state, path }) => [name, state, path]);
    const expected = [
      ["local", "sound", target],
      ["b", "sound", second],
    ];
    expect(children(await primary.status())).toEqual(expected);
    await qemuIo(primary.uri(), "write -P 3 6M 1M");
    await primary.crash();
    await primary.start();
    expect(children(await primary.until("whole again", areSound))).toEqual(expected);
    await qemuIo(primary.uri(), "read -P 1 0 4M", "read -P 2 4M 2M", "read -P 3 6M 1M");
    await primary.get("child", "remove", "vda", "b");
    await primary.stop();
    const said = await tool("qemu-io", "-r", "-f", "raw", "-c", "read -P 3 6M 1M", target);
    expect(said.toString()).not.toContain("failed");
  });
});
