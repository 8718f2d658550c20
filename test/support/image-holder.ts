/**
 * A program that has an image on an NBD server open, for a test that puts it into a network of its own:
 * `image-holder.ts HOST PORT`. Each line on its input is a byte to fill the image's first block with, and to flush; when that
 * is done it prints `written BYTE`, and `lost` whenever the server cannot be used. Its requests are given up ten times
 * sooner than an agent's.
 */
import { createInterface } from "node:readline";
import type { Timer } from "../../shared/host/clock.ts";
import { ServerAddress } from "../../shared/host/node-byte-stream.ts";
import { NodeClock } from "../../shared/host/node-clock.ts";
import { NodeRandom } from "../../shared/host/node-random.ts";
import { NbdImage } from "../../shared/nbd/nbd-image.ts";
import { SilentLog } from "./silent-log.ts";

const FASTER = 10;
const BLOCK_BYTES = 4096;

class HastyClock extends NodeClock {
  override nowMs(): number {
    return super.nowMs() * FASTER;
  }

  override after(delayMs: number, callback: () => void): Timer {
    return super.after(delayMs / FASTER, callback);
  }
}

const [host = "", port] = process.argv.slice(2);
const image = new NbdImage({
  source: new ServerAddress("the image", { kind: "tcp", host, port: Number(port) }),
  exportName: "",
  sizeBytes: BLOCK_BYTES,
  clock: new HastyClock(),
  random: new NodeRandom(),
  log: new SilentLog(),
});
let back: () => void = () => undefined;
image.watchServer((reason) => {
  if (reason === undefined) back();
  else process.stdout.write("lost\n");
});
for await (const line of createInterface({ input: process.stdin })) {
  await written(Buffer.alloc(BLOCK_BYTES, Number(line)));
  process.stdout.write(`written ${line}\n`);
}

/** Resolves when it is, however long the server is away. */
async function written(block: Buffer): Promise<void> {
  for (;;) {
    const returned = new Promise<void>((resolve) => {
      back = resolve;
    });
    try {
      await image.write(block, 0, { fua: false });
      await image.flush();
      return;
    } catch {
      await returned;
    }
  }
}
