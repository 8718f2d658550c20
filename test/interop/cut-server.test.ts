/**
 * The way to the NBD server of an image is cut while a write is under way, in network namespaces: what the kernel has not
 * delivered by then is forgotten, and does not come when the way is back, over what was written since.
 */
import { spawn, spawnSync, type ChildProcessByStdio } from "node:child_process";
import { once } from "node:events";
import { closeSync, ftruncateSync, openSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { fileURLToPath } from "node:url";
import { describe, expect, it, onTestFinished } from "vitest";
import type { AgentHost } from "../support/agent-pair.ts";
import { canMakeNamespaces, NetworkNamespaces } from "../support/network-namespaces.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { ToolProcess } from "../support/tool-process.ts";

const PORT = 10_809;
const SIZE = 1024 * 1024;
const HOLDER = fileURLToPath(new URL("../support/image-holder.ts", import.meta.url));

/** See image-holder.ts. */
class ImageHolder {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #lines: AsyncIterator<string>;

  constructor(on: AgentHost, server: AgentHost) {
    const [program, ...args] = [...on.launcher, process.execPath, "--import", "tsx", HOLDER, server.address];
    this.#child = spawn(program, [...args, String(PORT)], { stdio: ["pipe", "pipe", "inherit"] });
    onTestFinished(() => void this.#child.kill("SIGKILL"));
    this.#lines = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]();
  }

  write(byte: number): void {
    this.#child.stdin.write(`${byte}\n`);
  }

  async until(line: string): Promise<void> {
    for (;;) {
      const { value, done } = await this.#lines.next();
      if (done === true) throw new Error(`it has ended before it said "${line}"`);
      if (value === line) return;
    }
  }

  async kill(): Promise<void> {
    const ended = once(this.#child, "exit");
    this.#child.kill("SIGKILL");
    await ended;
  }
}

/** What the host's kernel still has to send to the server, over connections that were made. */
function bytesUnderWay({ launcher }: AgentHost, server: AgentHost): number {
  const [program, ...args] = [...launcher, "ss", "-Htan", "dst", `${server.address}:${PORT}`];
  const { status, stdout, stderr } = spawnSync(program, args, { encoding: "utf8" });
  if (status !== 0) throw new Error(`ss: ${stderr}`);
  let bytes = 0;
  for (const line of stdout.split("\n").filter((text) => text !== "")) {
    const [state, , sending] = line.split(/\s+/);
    if (state !== "SYN-SENT") bytes += Number(sending);
  }
  return bytes;
}

async function untilUnderWay(host: AgentHost, server: AgentHost): Promise<void> {
  while (bytesUnderWay(host, server) === 0) {
    await new Promise((resolve) => {
      setTimeout(resolve, 20);
    });
  }
}

describe.runIf(requirePeers("ip", "tc", "ss", "nbdkit") && canMakeNamespaces())(
  "a write that the cut way holds",
  () => {
    it.each<[string, (network: NetworkNamespaces, holder: ImageHolder) => Promise<ImageHolder>]>([
      [
        "is not delivered behind those of the next connection",
        async (network, holder) => {
          await holder.until("lost");
          expect(bytesUnderWay(network.a, network.b)).toBe(0);
          network.setSilent("a", false);
          await holder.until("written 1");
          return holder;
        },
      ],
      [
        "is not delivered behind those of the next process, when its own is killed",
        async (network, holder) => {
          await holder.kill();
          expect(bytesUnderWay(network.a, network.b)).toBe(0);
          network.setSilent("a", false);
          return new ImageHolder(network.a, network.b);
        },
      ],
    ])("%s", async (_, goOn) => {
      const network = new NetworkNamespaces();
      const { a, b } = network;
      const path = join(scratchDirectory(), "disk");
      const fd = openSync(path, "w");
      ftruncateSync(fd, SIZE);
      closeSync(fd);
      const [program, ...args] = [...b.launcher, "nbdkit", "-f", "-i", b.address, "-p", String(PORT), "file", path];
      const server = new ToolProcess(program, args);
      const holder = new ImageHolder(a, b);
      holder.write(9);
      await holder.until("written 9");
      network.setSilent("a", true);
      holder.write(1);
      await untilUnderWay(a, b);
      const next = await goOn(network, holder);
      next.write(2);
      await next.until("written 2");
      await server.end("SIGKILL"); // it would wait for its client
      expect(readFileSync(path)[0]).toBe(2);
    });
  },
);
