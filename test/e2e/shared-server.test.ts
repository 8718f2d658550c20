/** One NBD server for both agents: the disk that they share is what it serves over TCP. */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { AgentPair, freePort, MIB } from "../support/agent-pair.ts";
import { INITIAL, SIZE } from "../support/halved-disk.ts";
import { expectSame, qemuIo, readDisk, runTool, tool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { failOverFenced } from "../support/shared-image.ts";
import { ToolProcess } from "../support/tool-process.ts";

/** A qemu-nbd that serves a qcow2 image to any number of clients; it can be killed, and started again on its port. */
class SharedServer {
  readonly uri: string;
  readonly image: string;
  readonly #port: number;
  #process: ToolProcess;

  private constructor(port: number, image: string) {
    this.#port = port;
    this.image = image;
    this.uri = `nbd://127.0.0.1:${port}/`;
    this.#process = this.#start();
  }

  static async start(content: Buffer): Promise<SharedServer> {
    const image = join(scratchDirectory(), "disk.qcow2");
    await tool("qemu-img", "create", "-q", "-f", "qcow2", image, String(content.length));
    await tool("qemu-io", "-f", "qcow2", "-c", `write -P ${content[0] ?? 0} 0 ${content.length}`, image);
    const server = new SharedServer(await freePort(), image);
    while ((await runTool("nbdinfo", ["--size", server.uri])).code !== 0) continue; // it does not listen yet
    return server;
  }

  async kill(): Promise<void> {
    await this.#process.end("SIGKILL");
  }

  restart(): void {
    this.#process = this.#start();
  }

  /** Ends the server in good order; what the image holds then. */
  async stop(): Promise<Buffer> {
    await this.#process.end();
    await tool("qemu-img", "check", "-q", this.image);
    const raw = `${this.image}.raw`;
    await tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", this.image, raw);
    return tool("cat", raw);
  }

  #start(): ToolProcess {
    return new ToolProcess("qemu-nbd", [
      "--format=qcow2",
      "--persistent",
      "--shared=0",
      "--bind=127.0.0.1",
      `--port=${this.#port}`,
      this.image,
    ]);
  }
}

describe.runIf(requirePeers("qemu-nbd", "qemu-img", "qemu-io", "nbdinfo", "nbdcopy"))(
  "a pair that shares what one NBD server serves",
  () => {
    it("keeps each checkpoint through the server's death, fails over once fenced, and swaps the roles", async () => {
      const server = await SharedServer.start(INITIAL);
      const port = await freePort();
      const pair = await AgentPair.protected({
        disks: { vda: SIZE },
        shared: { pathOf: () => server.uri },
        primaryFlags: ["--listen", `127.0.0.1:${port}`],
      });
      const { primary, secondary } = pair;
      await qemuIo(primary.uri(), `write -P 0x22 0 ${MIB}`, `write -z -u ${MIB} ${MIB}`, "flush");
      expectSame(await readDisk(secondary.uri()), INITIAL);
      await pair.checkpoint();
      const shown = Buffer.from(INITIAL)
        .fill(0x22, 0, MIB)
        .fill(0, MIB, 2 * MIB);
      expectSame(await readDisk(secondary.uri()), shown);

      const writing = qemuIo(primary.uri(), `write -P 0x33 0 ${SIZE}`);
      await secondary.until("written to", ({ disks }) => (disks[0]?.hiddenBytes ?? 0) > 0);
      await server.kill();
      server.restart();
      await writing;
      expectSame(await readDisk(primary.uri()), Buffer.alloc(SIZE, 0x33));
      expectSame(await readDisk(secondary.uri()), shown);

      await failOverFenced(pair);
      expectSame(await readDisk(secondary.uri()), shown);
      await secondary.get("wait", "merged");
      await qemuIo(secondary.uri(), `write -P 0x44 ${2 * MIB} ${MIB}`);
      await primary.start();
      await primary.until("outdated", ({ protection }) => protection.reason === "outdated");
      await primary.get("rejoin", "--peer", `ws://127.0.0.1:${pair.port}`);
      await pair.untilProtected();
      await secondary.get("switchover");
      await primary.get("wait", "merged");
      await pair.untilProtected();
      shown.fill(0x44, 2 * MIB, 3 * MIB);
      expectSame(await readDisk(primary.uri()), shown);
      expectSame(await readDisk(secondary.uri()), shown);
      for (const agent of [primary, secondary]) expect((await agent.stop()).code).toBe(0);
      expectSame(await server.stop(), shown);
    });
  },
);
