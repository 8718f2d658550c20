/** Disks of other formats: agents with qemu-nbd behind them, which is killed, and dies with them. */
import { existsSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { AgentPair, freePort, MIB, type AgentUnderTest, type PairOptions } from "../support/agent-pair.ts";
import { askColobus, type ErrorDocument } from "../support/cli-runner.ts";
import { formatServersOf, untilNoFormatServer } from "../support/format-servers.ts";
import { NbdGuest } from "../support/nbd-guest.ts";
import { expectSame, qemuIo, readDisk, tool } from "../support/nbd-tools.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { ToolProcess } from "../support/tool-process.ts";
import { requirePeers } from "../support/peers.ts";
import { present } from "../support/present.ts";

const SIZE = 64 * MIB;

async function qcow2Pair(options: PairOptions = {}): Promise<AgentPair> {
  const pair = await AgentPair.create({ imageOf: (path) => `qcow2:${path}`, ...options });
  for (const side of ["a", "b"] as const) {
    await tool("qemu-img", "create", "-q", "-f", "qcow2", pair.imagePath(side), String(SIZE));
  }
  return pair;
}

async function fio(uri: string, ...args: string[]): Promise<void> {
  await tool(
    "fio",
    "--name=guest",
    "--ioengine=nbd",
    `--uri=${uri}`,
    "--bs=4k-64k",
    "--rw=randwrite",
    "--iodepth=16",
    "--randseed=7",
    ...args,
  );
}

/** Kills the one server that the agent has, and resolves when another one has taken its place. */
async function killFormatServer(agent: AgentUnderTest): Promise<void> {
  const pid = present(formatServersOf(agent.run)[0]);
  process.kill(pid, "SIGKILL");
  while (!formatServersOf(agent.run).some((other) => other !== pid)) {
    await pause();
  }
}

function pause(): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, 20);
  });
}

/** A qemu-nbd, for agents that are started with `launcher`, that can be made to hang before it listens. */
class HeldServers {
  readonly #directory = scratchDirectory();

  constructor() {
    const here = this.#directory;
    const held = `while [ -e ${here}/hold ]; do touch ${here}/held; sleep 0.05; done`;
    const path = process.env.PATH ?? "";
    writeFileSync(join(here, "qemu-nbd"), `#!/bin/sh\n${held}\nPATH='${path}' exec qemu-nbd "$@"\n`, { mode: 0o755 });
  }

  get launcher(): readonly string[] {
    return ["env", `PATH=${this.#directory}:${process.env.PATH ?? ""}`];
  }

  hold(): void {
    writeFileSync(join(this.#directory, "hold"), "");
  }

  async untilHeld(): Promise<void> {
    while (!existsSync(join(this.#directory, "held"))) await pause();
  }

  release(): void {
    rmSync(join(this.#directory, "hold"));
  }
}

describe.runIf(requirePeers("qemu-nbd", "qemu-img", "qemu-io", "nbdcopy", "fio"))("a pair on qcow2 images", () => {
  it.each(["process", "power"])("fails over to what the checkpoint held (durability %s)", async (durability) => {
    const pair = await qcow2Pair({ flags: ["--durability", durability] });
    const { primary, secondary } = pair;
    await pair.start();
    await fio(primary.uri(), "--size=48M", "--io_size=24M", "--verify=crc32c", "--do_verify=1");
    await qemuIo(primary.uri(), "write -z -u 8M 8M", "discard 20M 4M", "flush");
    await pair.checkpoint();
    const expected = await readDisk(primary.uri());
    await qemuIo(primary.uri(), "write -P 0x55 0 16M");
    await primary.untilDrained();

    await primary.crash();
    await untilNoFormatServer(primary.run);
    await secondary.until("alone", ({ peers }) => peers[0]?.connection === "Connecting");
    await secondary.get("failover");
    expectSame(await readDisk(secondary.uri()), expected);
    await secondary.get("wait", "merged");
    expectSame(await readDisk(secondary.uri()), expected);
    expect((await secondary.stop()).code).toBe(0);
    await untilNoFormatServer(secondary.run);
    await tool("qemu-img", "check", "-q", pair.imagePath("a"));
    await tool("qemu-img", "check", "-q", pair.imagePath("b"));
    await tool("qemu-img", "convert", "-O", "raw", pair.imagePath("b"), `${pair.root}/b.raw`);
    expectSame(readFileSync(`${pair.root}/b.raw`), expected);
  });

  it("goes on when qemu-nbd of either side is killed under load, and loses nothing", async () => {
    const pair = await qcow2Pair();
    const { primary, secondary } = pair;
    await pair.start();
    const load = fio(primary.uri(), "--size=48M", "--io_size=96M", "--rate_iops=2500", "--verify=crc32c");
    const killing = (async () => {
      for (let round = 0; round < 3; round += 1) {
        await killFormatServer(primary);
        await killFormatServer(secondary);
      }
    })();
    await Promise.all([load, killing]);
    await pair.checkpoint();
    const expected = await readDisk(primary.uri());
    await primary.stop();
    await secondary.stop();
    const compared = await tool(
      "qemu-img",
      "compare",
      "-f",
      "qcow2",
      "-F",
      "qcow2",
      pair.imagePath("a"),
      pair.imagePath("b"),
    );
    expect(compared.toString()).toContain("identical");
    await Promise.all([primary.start(), secondary.start()]);
    expectSame(await readDisk(primary.uri()), expected);
  });

  it("grows on both sides under load, and is as large after a crash", async () => {
    const pair = await qcow2Pair();
    const { primary, secondary } = pair;
    await pair.start();
    const load = fio(primary.uri(), "--size=48M", "--io_size=48M", "--rate_iops=2500", "--verify=crc32c");
    load.catch(() => undefined); // it is awaited below
    await primary.get("resize", "vda", String(2 * SIZE));
    await load;
    await qemuIo(primary.uri(), `write -P 0x66 ${2 * SIZE - MIB} 1M`, "flush");
    await pair.checkpoint();
    await primary.crash();
    await primary.start();
    await pair.untilProtected();
    await qemuIo(primary.uri(), `read -P 0x66 ${2 * SIZE - MIB} 1M`, `read -P 0 ${SIZE} 1M`);
    await qemuIo(secondary.uri(), `read -P 0x66 ${2 * SIZE - MIB} 1M`);
    expectSame(await readDisk(secondary.uri()), await readDisk(primary.uri()));
    await primary.stop();
    await tool("qemu-img", "check", "-q", pair.imagePath("a"));
  });

  it("goes on after a clean restart of both sides without sending everything again", async () => {
    const pair = await qcow2Pair();
    const { primary, secondary } = pair;
    await pair.start();
    await qemuIo(primary.uri(), "write -P 0x11 0 32M");
    await pair.checkpoint();
    for (const agent of [secondary, primary]) expect((await agent.stop()).code).toBe(0);
    for (const agent of [secondary, primary]) await agent.start();
    await pair.untilProtected();
    expect((await primary.status()).jobs.filter(({ type }) => type === "full-sync")).toEqual([]);
    await qemuIo(secondary.uri(), "read -P 0x11 0 32M");
  });

  it("does not start on an image that was changed behind it, is in use, is missing, or of another format", async () => {
    const pair = await qcow2Pair();
    const { primary, secondary } = pair;
    const image = pair.imagePath("a");
    const refusal = async (): Promise<ErrorDocument["error"]> => {
      const { code, json } = await askColobus<ErrorDocument>(...primary.command);
      expect(code).toBe(1);
      return json.error;
    };
    await pair.start();
    expect((await primary.stop()).code).toBe(0);

    await tool("qemu-io", "-f", "qcow2", "-c", "write -P 0x77 0 4k", image);
    expect(await refusal()).toMatchObject({ code: "image-changed" });
    primary.command.push("--adopt-image");
    const other = new ToolProcess("qemu-nbd", ["--format=qcow2", `--socket=${pair.root}/other.sock`, "-t", image]);
    await other.untilListening(`${pair.root}/other.sock`);
    expect(await refusal()).toMatchObject({ code: "image-busy" });
    await other.end();
    await tool("mv", image, `${image}.away`);
    expect(await refusal()).toMatchObject({ code: "image-missing" });
    await tool("truncate", "-s", String(SIZE), image);
    expect(await refusal()).toMatchObject({ code: "image-format" });
    await tool("mv", `${image}.away`, image);
    await primary.start();
    await pair.untilProtected();
    await pair.checkpoint();
    await qemuIo(secondary.uri(), "read -P 0x77 0 4k");
  });

  it("changes roles, and takes the old primary back, in the same processes", async () => {
    const port = await freePort();
    const pair = await qcow2Pair({ primaryFlags: ["--listen", `127.0.0.1:${port}`] });
    const { primary, secondary } = pair;
    await pair.start();
    await qemuIo(primary.uri(), "write -P 0x11 0 8M");
    await primary.get("switchover");
    await secondary.get("wait", "merged");
    await pair.untilProtected();
    await qemuIo(secondary.uri(), "read -P 0x11 0 8M", "write -P 0x22 4M 8M");
    await secondary.get("checkpoint");
    await qemuIo(primary.uri(), "read -P 0x11 0 4M", "read -P 0x22 4M 8M");
    await secondary.crash();
    await primary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
    await primary.get("failover");
    await qemuIo(primary.uri(), "write -P 0x33 16M 1M");
    await secondary.start();
    await secondary.until("outdated", ({ protection }) => protection.reason === "outdated");
    await secondary.get("rejoin", "--peer", `ws://127.0.0.1:${port}`);
    await pair.untilProtected();
    await primary.get("checkpoint");
    expectSame(await readDisk(secondary.uri()), await readDisk(primary.uri()));
  });

  it("starts again at once after kill -9, with what it had answered", async () => {
    const pair = await qcow2Pair({ flags: ["--durability", "process"] });
    const { primary, secondary } = pair;
    await pair.start();
    for (let round = 1; round <= 3; round += 1) {
      await qemuIo(primary.uri(), `write -P ${round} 0 8M`);
      await primary.untilDrained();
      for (const agent of [primary, secondary]) await agent.crash();
      for (const agent of [primary, secondary]) await agent.start();
      await pair.untilProtected();
      await qemuIo(primary.uri(), `read -P ${round} 0 8M`);
      expect(primary.log).not.toContain("never fsyncs");
    }
  });

  it("takes what it has lost for lost when agent and qemu-nbd are killed at once", async () => {
    const pair = await qcow2Pair({ flags: ["--durability", "process"] });
    const { primary, secondary } = pair;
    await pair.start();
    await qemuIo(primary.uri(), "write -P 0x11 0 8M");
    await primary.untilDrained();
    primary.freeze();
    for (const pid of formatServersOf(primary.run)) process.kill(pid, "SIGKILL");
    await primary.crash();
    await untilNoFormatServer(primary.run);
    await primary.start();
    expect(primary.log).toContain("never fsyncs");
    await pair.untilProtected();
    await pair.checkpoint();
    expectSame(await readDisk(secondary.uri()), await readDisk(primary.uri()));
  });

  it.each(["a", "b"] as const)(
    "takes what it has lost for lost when qemu-nbd is killed, and side %s before the next one had it again",
    async (side) => {
      const servers = new HeldServers();
      const host = { address: "127.0.0.1", launcher: servers.launcher };
      const pair = await qcow2Pair({ flags: ["--durability", "process"], hosts: { a: host, b: host } });
      const { primary, secondary } = pair;
      const agent = side === "a" ? primary : secondary;
      await pair.start();
      // qemu-io would flush as it leaves.
      const guest = await NbdGuest.connect(join(primary.run, "nbd.sock"));
      await guest.write(0, Buffer.alloc(8 * MIB, 0x11));
      guest.close();
      await primary.untilDrained();
      servers.hold();
      process.kill(present(formatServersOf(agent.run)[0]), "SIGKILL");
      await servers.untilHeld();
      await agent.crash();
      await untilNoFormatServer(agent.run);
      servers.release();
      await agent.start();
      expect(agent.log).toContain("never fsyncs");
      await pair.untilProtected();
      await pair.checkpoint();
      expectSame(await readDisk(secondary.uri()), await readDisk(primary.uri()));
    },
  );

  it("says on either side that qemu-nbd is away, what to do, and when it is back", async () => {
    const servers = new HeldServers();
    const host = { address: "127.0.0.1", launcher: servers.launcher };
    const pair = await qcow2Pair({ hosts: { a: host, b: host } });
    await pair.start();
    for (const agent of [pair.primary, pair.secondary]) {
      servers.hold();
      process.kill(present(formatServersOf(agent.run)[0]), "SIGKILL");
      const { protection, peers } = await agent.until("without its image", ({ protection: { reason } }) => {
        return reason === "image-away";
      });
      expect(protection.nextAction).toContain("Start the server");
      expect(peers[0]?.lastError).toMatchObject({
        code: "io-error",
        message: expect.stringContaining("qcow2:"),
        action: expect.stringContaining("Start the server"),
      });
      servers.release();
      await pair.untilProtected();
      const events = (await agent.control.events(0)).filter(({ type }) => type.startsWith("image-"));
      expect(events.map(({ type, data }) => [type, data.disk])).toEqual([
        ["image-away", "vda"],
        ["image-back", "vda"],
      ]);
    }
  });

  it("makes a missing image of the secondary at the primary's size", async () => {
    const pair = await qcow2Pair({ secondaryFlags: ["--create"] });
    const { secondary } = pair;
    await tool("rm", pair.imagePath("b"));
    await pair.start();
    expect((await secondary.status()).disks[0]?.sizeBytes).toBe(SIZE);
    expect(statSync(pair.imagePath("b")).mode & 0o777).toBe(0o600);
    const info = await tool("qemu-img", "info", "-U", "--output=json", pair.imagePath("b"));
    expect(JSON.parse(info.toString())).toMatchObject({ "format": "qcow2", "virtual-size": SIZE });
  });
});

describe.runIf(requirePeers("qemu-nbd", "qemu-io"))("a disk on an NBD server", () => {
  it("grows once its image was made longer there, and has the first part of it until then", async () => {
    const root = scratchDirectory();
    const [image, socket] = [join(root, "a.img"), join(root, "a.sock")];
    writeFileSync(image, "");
    truncateSync(image, SIZE);
    const serve = async (): Promise<ToolProcess> => {
      const server = new ToolProcess("qemu-nbd", ["-f", "raw", "-k", socket, "-t", image]);
      await server.untilListening(socket);
      return server;
    };
    const server = await serve();
    const uri = `nbd+unix:///?socket=${socket}`;
    const pair = await AgentPair.create({
      disks: { vda: SIZE },
      imageOf: (path) => (path.includes("/a/") ? uri : path),
    });
    const { primary, secondary } = pair;
    await pair.start();
    await qemuIo(primary.uri(), "write -P 1 0 1M");
    const early = await primary.ask<ErrorDocument>("resize", "vda", String(2 * SIZE));
    expect(early).toMatchObject({ code: 1, json: { error: { code: "not-supported" } } });
    expect(early.json.error.action).toContain("resize again");
    await server.end();
    truncateSync(image, 2 * SIZE);
    await serve();
    await qemuIo(primary.uri(), "read -P 1 0 1M", "write -P 2 1M 1M");
    expect((await primary.status()).disks[0]?.sizeBytes).toBe(SIZE);
    await primary.stop();
    await primary.start();
    await primary.get("resize", "vda", String(2 * SIZE));
    await qemuIo(primary.uri(), `write -P 3 ${2 * SIZE - MIB} 1M`, "read -P 2 1M 1M");
    await pair.untilProtected();
    await pair.checkpoint();
    await qemuIo(secondary.uri(), `read -P 3 ${2 * SIZE - MIB} 1M`, "read -P 1 0 1M");
  });
});
