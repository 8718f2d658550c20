/** Images on the NBD servers that people use: what was written is read, whatever the server, and whatever becomes of it. */
import { closeSync, ftruncateSync, openSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { ColobusError } from "../../proto/errors.ts";
import { NodeClock } from "../../shared/host/node-clock.ts";
import { NodeRandom } from "../../shared/host/node-random.ts";
import { ServerAddress } from "../../shared/host/node-byte-stream.ts";
import { NbdImage } from "../../shared/nbd/nbd-image.ts";
import { NbdServer } from "../../shared/nbd/server.ts";
import { SeededRandom } from "../sim/seeded-random.ts";
import { MemoryDevice } from "../support/memory-device.ts";
import { TestDirectory, TestExport } from "../support/nbd-harness.ts";
import { expectSame, tool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { SilentLog } from "../support/silent-log.ts";
import { ToolProcess } from "../support/tool-process.ts";

const MIB = 1024 * 1024;
const SIZE = 24 * MIB;

interface Served {
  readonly socket: string;
  readonly process: ToolProcess | undefined;
}

async function served(socket: string, program: string, ...args: string[]): Promise<Served> {
  const process = new ToolProcess(program, args);
  await process.untilListening(socket);
  return { socket, process };
}

function emptyFile(path: string): string {
  const fd = openSync(path, "w");
  ftruncateSync(fd, SIZE);
  closeSync(fd);
  return path;
}

const SERVERS: Record<string, (directory: string, socket: string) => Promise<Served>> = {
  "qemu-nbd on a raw file": (directory, socket) =>
    served(socket, "qemu-nbd", "-f", "raw", "-t", "-e", "4", "-k", socket, emptyFile(join(directory, "disk"))),
  "qemu-nbd on qcow2": async (directory, socket) => {
    const path = join(directory, "disk.qcow2");
    await tool("qemu-img", "create", "-q", "-f", "qcow2", path, String(SIZE));
    return served(socket, "qemu-nbd", "-f", "qcow2", "--discard=unmap", "-t", "-e", "4", "-k", socket, path);
  },
  "qemu-storage-daemon": (directory, socket) =>
    served(
      socket,
      "qemu-storage-daemon",
      "--blockdev",
      `driver=file,node-name=disk,discard=unmap,filename=${emptyFile(join(directory, "disk"))}`,
      "--nbd-server",
      `addr.type=unix,addr.path=${socket},max-connections=4`,
      "--export",
      "type=nbd,id=export,node-name=disk,name=,writable=on",
    ),
  "nbdkit memory": (_, socket) => served(socket, "nbdkit", "-f", "-U", socket, "memory", String(SIZE)),
  "nbdkit file": (directory, socket) =>
    served(socket, "nbdkit", "-f", "-U", socket, "file", emptyFile(join(directory, "disk"))),
  "nbdkit that takes its time": (_, socket) =>
    served(socket, "nbdkit", "-f", "-U", socket, "--filter=delay", "memory", String(SIZE), "wdelay=2ms", "rdelay=1ms"),
  "nbdkit that errs": (_, socket) =>
    served(
      socket,
      "nbdkit",
      "-f",
      "-U",
      socket,
      "--filter=error",
      "memory",
      String(SIZE),
      "error=EIO",
      "error-rate=5%",
    ),
  "nbdkit without structured replies": (_, socket) =>
    served(socket, "nbdkit", "-f", "--no-sr", "-U", socket, "memory", String(SIZE)),
  "nbdkit without zeroes": (_, socket) =>
    served(socket, "nbdkit", "-f", "-U", socket, "--filter=nozero", "memory", String(SIZE)),
  "our own server": async (_, socket) => {
    const directory = new TestDirectory(new TestExport("vda", new MemoryDevice(SIZE), "the disk"));
    const server = new NbdServer({ directory, clock: new NodeClock(), log: new SilentLog() });
    await server.listenUnix(socket);
    onTestFinished(() => server.close());
    return { socket, process: undefined };
  },
};

async function connect(socket: string): Promise<NbdImage> {
  const image = await NbdImage.connect({
    source: new ServerAddress("image", { kind: "unix", path: socket }),
    exportName: "",
    sizeBytes: undefined,
    clock: new NodeClock(),
    random: new NodeRandom(),
    log: new SilentLog(),
  });
  onTestFinished(() => image.close());
  return image;
}

/** Does it until the server does not err. */
async function persistently<T>(work: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof ColobusError) || error.code !== "io-error") throw error;
    }
  }
}

/** Changes stretches of the image that do not overlap, side by side, and the model alike. */
async function change(image: NbdImage, model: Buffer, random: SeededRandom): Promise<void> {
  const work: Promise<void>[] = [];
  const slot = SIZE / 16;
  for (let index = 0; index < 16; index += 1) {
    const offset = index * slot + random.below(slot / 2);
    const length = 1 + random.below(index === 0 ? slot / 2 : 40_000);
    const fua = random.below(10) === 0;
    if (random.below(4) === 0) {
      model.fill(0, offset, offset + length);
      const flags = { fua, mayUnmap: random.below(2) === 0 };
      work.push(persistently(() => image.zero(offset, length, flags)));
    } else {
      const payload = Buffer.alloc(length, 1 + random.below(255));
      payload.copy(model, offset);
      work.push(persistently(() => image.write(payload, offset, { fua })));
    }
  }
  await Promise.all(work);
}

async function content(image: NbdImage): Promise<Buffer> {
  const bytes = Buffer.alloc(image.sizeBytes, 0xee);
  await persistently(() => image.read(bytes, 0));
  return bytes;
}

describe.runIf(requirePeers("qemu-nbd", "qemu-img", "qemu-storage-daemon", "nbdkit"))("an image on", () => {
  it.each(Object.keys(SERVERS))("%s holds what was written, and its holes read as zeroes", async (name) => {
    const directory = scratchDirectory();
    const { socket } = (await SERVERS[name]?.(directory, join(directory, "s"))) ?? { socket: "" };
    const image = await connect(socket);
    expect(image.sizeBytes).toBe(SIZE);
    const random = new SeededRandom(7);
    const model = Buffer.alloc(SIZE);
    for (let round = 0; round < 12; round += 1) {
      await change(image, model, random);
      if (round % 4 === 3) await persistently(() => image.flush());
      image.prefetch(0, 65_536);
      const offset = random.below(SIZE - 200_000);
      const part = Buffer.alloc(200_000);
      await persistently(() => image.read(part, offset));
      expectSame(part, model.subarray(offset, offset + part.length));
    }
    let at = 0;
    while (at < SIZE) {
      for (const { length, zero } of await persistently(() => image.extents(at, SIZE - at, 64))) {
        if (zero) expectSame(model.subarray(at, at + length), Buffer.alloc(length));
        at += length;
      }
    }
    expect(at).toBe(SIZE);
    expectSame(await content(image), model);
    image.close();
    const again = await connect(socket);
    expectSame(await content(again), model);
  });

  it("qemu-nbd on qcow2 that is killed again and again loses nothing that was answered", async () => {
    const directory = scratchDirectory();
    const path = join(directory, "disk.qcow2");
    const socket = join(directory, "s");
    await tool("qemu-img", "create", "-q", "-f", "qcow2", path, String(SIZE));
    const start = (): Promise<Served> => served(socket, "qemu-nbd", "-f", "qcow2", "-t", "-e", "4", "-k", socket, path);
    let server = await start();
    const image = await connect(socket);
    const random = new SeededRandom(3);
    const model = Buffer.alloc(SIZE);
    for (let life = 0; life < 4; life += 1) {
      for (let round = 0; round < 4; round += 1) {
        await change(image, model, random);
        if (round === life) await image.flush();
      }
      const underWay = change(image, model, random);
      await server.process?.end("SIGKILL");
      server = await start();
      await underWay;
      expectSame(await content(image), model);
    }
    await image.flush();
    await server.process?.end("SIGKILL");
    await tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, `${path}.raw`);
    server = await start();
    expectSame(await content(image), model);
  });
});
