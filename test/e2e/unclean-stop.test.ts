/** Agents that cannot leave their disks as they should: they end all the same, and say why. */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { AgentPair, freePort, makeImage, MIB } from "../support/agent-pair.ts";
import { NbdClient, qemuIo, runTool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { ToolProcess } from "../support/tool-process.ts";

const SIZE = 16 * MIB;

async function serve(port: number, image: string): Promise<ToolProcess> {
  const server = new ToolProcess("qemu-nbd", [
    "--format=raw",
    "--persistent",
    "--shared=0",
    "--bind=127.0.0.1",
    `--port=${port}`,
    image,
  ]);
  while ((await runTool("nbdinfo", ["--size", `nbd://127.0.0.1:${port}/`])).code !== 0) continue; // it does not listen yet
  return server;
}

describe.runIf(requirePeers("qemu-nbd", "nbdinfo", "qemu-io", "python3:nbd"))("SIGTERM", () => {
  it("ends a primary whose image's server is gone, with exit code 1, and the next one starts", async () => {
    const port = await freePort();
    const pair = await AgentPair.create({ disks: { vda: SIZE }, flags: ["--peer-timeout", "1s"] });
    const { primary } = pair;
    makeImage(pair.imagePath("a"), SIZE);
    const server = await serve(port, pair.imagePath("a"));
    primary.setFlag("--disk", `vda=nbd://127.0.0.1:${port}/`);
    await pair.start();
    await qemuIo(primary.uri(), "write -P 7 0 64k");
    await server.end("SIGKILL");
    const { code, stderr } = await primary.stop();
    expect(stderr).toContain("the server of image nbd://127.0.0.1");
    expect(code).toBe(1);
    const again = await serve(port, pair.imagePath("a"));
    await pair.primary.start();
    await pair.untilProtected();
    expect((await primary.stop()).code).toBe(0);
    await again.end();
  });

  it("says what it waits for, and a second one ends it at once", async () => {
    const root = scratchDirectory();
    const image = join(root, "vda.img");
    makeImage(image, SIZE);
    const socket = join(root, "nbd.sock");
    const server = new ToolProcess("qemu-nbd", [
      "--format=raw",
      "--persistent",
      "--shared=0",
      `--socket=${socket}`,
      image,
    ]);
    await server.untilListening(socket);
    const pair = await AgentPair.create({ disks: { vda: SIZE } });
    const { primary } = pair;
    primary.setFlag("--disk", `vda=nbd+unix:///?socket=${socket}`);
    await pair.start();
    await pair.untilProtected();
    const guest = await NbdClient.connect(primary.uri());
    await guest.write({ offset: 0, length: 65_536 }, 7); // and no flush
    server.signal("SIGSTOP");
    const ended = primary.stop();
    await primary.untilLogged("the stop is waiting");
    expect(primary.log).toContain('"waitsFor":"the image of disk vda to be flushed"');
    expect(primary.isRunning).toBe(true);
    const { signal, stderr } = await primary.stop();
    expect(signal).toBe("SIGTERM");
    expect(stderr).toContain("a second signal (SIGTERM) ends the agent at once");
    await ended;
    server.signal("SIGCONT");
    await primary.start();
    await pair.untilProtected();
    await qemuIo(primary.uri(), "read -P 7 0 64k");
  });
});
