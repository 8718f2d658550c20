import { describe, expect, it } from "vitest";
import type { ErrorCode } from "../../../../proto/errors.ts";
import {
  NBD_CLIENT_GIVE_UP_MS,
  NBD_CLIENT_IN_FLIGHT_MAX,
  NBD_CLIENT_REQUEST_TIMEOUT_MS,
  NBD_CLIENT_UNFLUSHED_MAX_BYTES,
  NBD_CLIENT_UNFLUSHED_TARGET_BYTES,
  RECONNECT_MAX_MS,
} from "../../../../proto/limits.ts";
import { CHUNK, COMMAND, COMMAND_FLAG, TRANSMISSION_FLAG } from "../../../../proto/nbd-protocol.ts";
import { NbdImage } from "../../../../shared/nbd/nbd-image.ts";
import { SeededRandom } from "../../../sim/seeded-random.ts";
import { SimRandom } from "../../../sim/sim-random.ts";
import {
  chunk,
  dataChunk,
  FakeNbdServer,
  holeChunk,
  simpleReply,
  statusChunk,
  type ServedRequest,
} from "../../../support/fake-nbd-server.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { SilentLog } from "../../../support/silent-log.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const SIZE = 256 * KIB;
const PLAIN = { fua: false } as const;

interface Bench {
  readonly server: FakeNbdServer;
  readonly clock: ManualClock;
  readonly image: NbdImage;
}

function options(server: FakeNbdServer, clock: ManualClock, sizeBytes: number | undefined) {
  const random = new SimRandom(new SeededRandom(1));
  return { source: server, exportName: "vda", sizeBytes, clock, random, log: new SilentLog() };
}

async function connected(prepare: (server: FakeNbdServer) => void = () => undefined, sizeBytes = SIZE): Promise<Bench> {
  const server = new FakeNbdServer(sizeBytes);
  prepare(server);
  const clock = new ManualClock();
  return { server, clock, image: await NbdImage.connect(options(server, clock, undefined)) };
}

/** Lets everything happen that needs no time. */
async function settle(): Promise<void> {
  for (let turns = 0; turns < 40; turns += 1) {
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
  }
}

/** Settles, and lets the client dial again. */
async function redial({ clock }: Bench): Promise<void> {
  await settle();
  clock.advance(2 * RECONNECT_MAX_MS);
  await settle();
}

async function codeOf(promise: Promise<unknown>): Promise<ErrorCode | "done"> {
  try {
    await promise;
    return "done";
  } catch (error) {
    return (error as { code: ErrorCode }).code;
  }
}

function filled(length: number, value: number): Buffer {
  return Buffer.alloc(length, value);
}

async function read(image: NbdImage, offset: number, length: number): Promise<Buffer> {
  const target = filled(length, 0xee);
  await image.read(target, offset);
  return target;
}

describe("an image on an NBD server", () => {
  it.each([true, false])("reads what was written and zeroed (structured replies: %s)", async (structuredReplies) => {
    const { image, server } = await connected((fake) => (fake.structuredReplies = structuredReplies));
    expect(image.sizeBytes).toBe(SIZE);
    await image.write(filled(10_000, 1), 5, PLAIN);
    await image.zero(100, 50, { fua: false, mayUnmap: true });
    const expected = Buffer.alloc(SIZE);
    expected.fill(1, 5, 10_005).fill(0, 100, 150);
    expect((await read(image, 0, SIZE)).equals(expected)).toBe(true);
    expect(server.content.equals(expected)).toBe(true);
  });

  it("is not there where the server says what is no reply with the end of its handshake", async () => {
    const wrong = connected((fake) => (fake.behindHandshake = filled(64, 7)));
    await expect(wrong).rejects.toMatchObject({ code: "io-error", cause: { code: "protocol-error" } });
  });

  it("is connected anew where a server that is back says what is no reply with the end of its handshake", async () => {
    const bench = await connected();
    const { image, server } = bench;
    await image.write(filled(KIB, 1), 0, PLAIN);
    server.behindHandshake = filled(64, 7);
    server.crash();
    const reading = read(image, 0, KIB);
    await redial(bench);
    expect(server.dials).toBe(2);
    server.behindHandshake = Buffer.alloc(0);
    await redial(bench);
    expect((await reading).equals(filled(KIB, 1))).toBe(true);
    expect(server.dials).toBe(3);
  });

  it("is connected anew where a server says what is no reply with its answer to the last of what restores it", async () => {
    const bench = await connected();
    const { image, server } = bench;
    await image.write(filled(KIB, 1), 0, PLAIN);
    server.crash();
    server.mishap = (request) => {
      if (request.type !== COMMAND.WRITE) return undefined;
      server.mishap = undefined;
      return Buffer.concat([simpleReply(request, server.serve(request)), filled(64, 7)]);
    };
    const reading = read(image, 0, KIB);
    await redial(bench);
    expect(server.dials).toBe(2);
    await redial(bench);
    expect((await reading).equals(filled(KIB, 1))).toBe(true);
    expect(server.dials).toBe(3);
  });

  it("asks for what is to be cached while the server has room, and for no more", async () => {
    const bench = await connected((fake) => {
      fake.mishap = ({ type }) => (type === COMMAND.CACHE ? "silence" : undefined);
    });
    const { image, server } = bench;
    for (let hint = 0; hint < 2 * NBD_CLIENT_IN_FLIGHT_MAX; hint += 1) image.prefetch(0, 4 * KIB);
    await settle();
    expect(server.requests.filter(({ type }) => type === COMMAND.CACHE)).toHaveLength(NBD_CLIENT_IN_FLIGHT_MAX);
    server.mishap = undefined;
    server.hangUp();
    image.prefetch(0, 4 * KIB);
    await redial(bench);
    expect((await read(image, 0, KIB)).equals(Buffer.alloc(KIB))).toBe(true);
    // What was asked for is asked again on the next connection, and nothing that came while there was no room.
    expect(server.requests.filter(({ type }) => type === COMMAND.CACHE)).toHaveLength(2 * NBD_CLIENT_IN_FLIGHT_MAX);
  });

  it("says where zeroes are, as far as was asked; and nothing where the server cannot tell", async () => {
    const { image } = await connected();
    await image.write(filled(8 * KIB, 1), 64 * KIB, PLAIN);
    expect(await image.extents(0, SIZE, 10)).toEqual([
      { length: 64 * KIB, hole: true, zero: true },
      { length: 8 * KIB, hole: false, zero: false },
      { length: SIZE - 72 * KIB, hole: true, zero: true },
    ]);
    expect(await image.extents(60 * KIB, 8 * KIB, 1)).toEqual([{ length: 4 * KIB, hole: true, zero: true }]);
    const plain = await connected((fake) => (fake.structuredReplies = false));
    expect(await plain.image.extents(0, SIZE, 10)).toEqual([{ length: SIZE, hole: false, zero: false }]);
  });

  it("cuts what is longer than the server takes", async () => {
    const { image, server } = await connected((fake) => (fake.maxPayloadBytes = 16 * KIB));
    const content = Buffer.from(Array.from({ length: 100_000 }, (_, index) => index % 251));
    await image.write(content, 777, { fua: true });
    expect((await read(image, 777, content.length)).equals(content)).toBe(true);
    expect(Math.max(...server.requests.map(({ length }) => length))).toBe(16 * KIB);
    expect(server.durable.subarray(777, 777 + content.length).equals(content)).toBe(true);
  });

  it("asks for space to be kept or freed, and for durability, in the protocol's words", async () => {
    const { image, server } = await connected();
    await image.zero(0, 4096, { fua: false, mayUnmap: false });
    await image.zero(0, 4096, { fua: false, mayUnmap: true });
    await image.write(filled(512, 1), 0, { fua: true });
    expect(server.requests.map(({ type, flags }) => [type, flags])).toEqual([
      [COMMAND.WRITE_ZEROES, COMMAND_FLAG.NO_HOLE],
      [COMMAND.WRITE_ZEROES, 0],
      [COMMAND.WRITE, COMMAND_FLAG.FUA],
    ]);
  });

  it("writes zeroes, and flushes, where the server has no commands for zeroes and FUA", async () => {
    const { image, server } = await connected((fake) => {
      fake.flags &= ~(TRANSMISSION_FLAG.SEND_WRITE_ZEROES | TRANSMISSION_FLAG.SEND_FUA);
      fake.content.fill(9);
    });
    await image.zero(4096, 8192, { fua: true, mayUnmap: true });
    expect(server.requests.map(({ type }) => type)).toEqual([COMMAND.WRITE, COMMAND.FLUSH]);
    expect(server.durable.subarray(4096, 12_288).equals(Buffer.alloc(8192))).toBe(true);
  });

  it("reports the server's errors in words of the disk", async () => {
    const { image, server } = await connected();
    server.mishap = ({ type }) => (type === COMMAND.WRITE ? 28 : type === COMMAND.READ ? 5 : undefined);
    await expect(image.write(filled(512, 1), 4096, PLAIN)).rejects.toMatchObject({ code: "out-of-space" });
    await expect(image.read(filled(512, 1), 4096)).rejects.toMatchObject({
      code: "io-error",
      message: "cannot read 512 bytes at 4096 of fake: its server says EIO",
    });
    server.mishap = undefined;
    expect(await codeOf(image.read(filled(512, 1), 4096))).toBe("done");
  });

  it("takes answers in any order", async () => {
    const { image, server } = await connected();
    const held: (() => void)[] = [];
    server.schedule = (callback) => void held.push(callback);
    const writes = Array.from({ length: 20 }, (_, index) => image.write(filled(512, index), index * 512, PLAIN));
    const target = filled(512, 0xee);
    const reading = image.read(target, 100 * KIB);
    for (const callback of held.reverse()) callback();
    await Promise.all([...writes, reading]);
    expect(server.content[19 * 512]).toBe(19);
    expect(target.equals(Buffer.alloc(512))).toBe(true);
  });
});

describe("a server that ends", () => {
  it("is connected again, and asked again for what it had not answered", async () => {
    const bench = await connected();
    const { image, server } = bench;
    let isLost = false;
    server.mishap = ({ type }) => {
      if (isLost || type !== COMMAND.WRITE) return undefined;
      isLost = true;
      return "hang up";
    };
    const writing = image.write(filled(4096, 7), 8192, PLAIN);
    const reading = read(image, 0, 512);
    await redial(bench);
    await writing;
    await reading;
    expect(server.content[8192]).toBe(7);
    expect(server.dials).toBe(2);
  });

  it("gets back what it had answered and lost, and nothing overwrites what came later", async () => {
    const bench = await connected();
    const { image, server } = bench;
    await image.write(filled(4096, 1), 0, PLAIN);
    await image.flush();
    await image.write(filled(4096, 2), 0, PLAIN);
    await image.write(filled(1024, 3), 1024, PLAIN);
    await image.zero(2048, 512, { fua: false, mayUnmap: true });
    await image.write(filled(100, 4), 4000, { fua: true });
    const expected = Buffer.from(server.content);
    server.durable.fill(0xdd, 0, 8192); // it loses even more than it may
    server.crash();
    await redial(bench);
    expect((await read(image, 0, 4096)).equals(expected.subarray(0, 4096))).toBe(true);
  });

  it("gets back what it was given, also where that memory was used again since", async () => {
    const bench = await connected((fake) => (fake.maxPayloadBytes = 4 * KIB));
    const { image, server } = bench;
    const lent = filled(8 * KIB, 1);
    await image.write(lent, 0, { fua: false, isLent: true });
    lent.fill(2);
    server.crash();
    await redial(bench);
    expect((await read(image, 0, 8 * KIB)).equals(filled(8 * KIB, 1))).toBe(true);
  });

  it("gets what it was given before it was connected, though that memory was used again meanwhile", async () => {
    const server = new FakeNbdServer(SIZE);
    const image = new NbdImage(options(server, new ManualClock(), SIZE));
    const lent = filled(4 * KIB, 1);
    const writing = image.write(lent, 0, { fua: false, isLent: true });
    lent.fill(2);
    await settle();
    await writing;
    expect(server.content.subarray(0, 4 * KIB).equals(filled(4 * KIB, 1))).toBe(true);
    image.close();
  });

  it("is told nothing again that a flush has covered", async () => {
    const bench = await connected();
    const { image, server } = bench;
    await image.write(filled(4096, 1), 0, PLAIN);
    const flushing = image.flush();
    const later = image.write(filled(4096, 2), 8192, PLAIN);
    await Promise.all([flushing, later]);
    server.requests.length = 0;
    server.crash();
    await redial(bench);
    await read(image, 0, 512);
    expect(server.requests.map(({ type, offset }) => [type, offset])).toEqual([
      [COMMAND.WRITE, 8192],
      [COMMAND.READ, 0],
    ]);
  });

  it("is told again what was answered while a flush was under way", async () => {
    const bench = await connected();
    const { image, server } = bench;
    let release: (() => void) | undefined;
    server.schedule = (callback) => {
      if (server.requests.at(-1)?.type === COMMAND.FLUSH && release === undefined) release = callback;
      else setImmediate(callback);
    };
    const flushing = image.flush();
    await settle();
    await image.write(filled(4096, 2), 8192, PLAIN);
    release?.();
    await flushing;
    server.requests.length = 0;
    server.crash();
    await redial(bench);
    await read(image, 0, 512);
    expect(server.requests.map(({ type }) => type)).toEqual([COMMAND.WRITE, COMMAND.READ]);
  });

  it("fails requests after a while, at once from then on, and serves again when it is back", async () => {
    const bench = await connected();
    const { image, server, clock } = bench;
    await image.write(filled(512, 5), 0, PLAIN);
    server.isDown = true;
    server.crash();
    await settle();
    const waiting = codeOf(image.write(filled(512, 6), 512, PLAIN));
    clock.advance(NBD_CLIENT_GIVE_UP_MS - 1);
    await settle();
    let isWaiting = true;
    void waiting.then(() => (isWaiting = false));
    await settle();
    expect(isWaiting).toBe(true);
    clock.advance(1);
    expect(await waiting).toBe("io-error");
    expect(image.fault?.code).toBe("io-error");
    expect(await codeOf(image.flush())).toBe("io-error");
    await expect(image.read(filled(512, 0), 0)).rejects.toMatchObject({
      message: expect.stringContaining("nobody listens"),
      action: expect.stringContaining("Start the server"),
    });
    server.isDown = false;
    await redial(bench);
    expect(image.fault).toBeUndefined();
    expect((await read(image, 0, 512))[0]).toBe(5);
  });

  it("that does not answer one request is left, and asked again", async () => {
    const bench = await connected();
    const { image, server, clock } = bench;
    let isSilent = true;
    server.mishap = ({ type }) => (isSilent && type === COMMAND.FLUSH ? "silence" : undefined);
    const flushing = image.flush();
    const reads: Promise<Buffer>[] = [];
    for (let step = 0; step < 10; step += 1) {
      reads.push(read(image, 0, 512)); // it does answer others
      await settle();
      clock.advance(NBD_CLIENT_REQUEST_TIMEOUT_MS / 5);
      await settle();
      if (server.dials > 1) isSilent = false;
    }
    await redial(bench);
    await flushing;
    await Promise.all(reads);
    expect(server.dials).toBeGreaterThan(1);
  });

  it("is asked again when it says that it is being stopped", async () => {
    const bench = await connected();
    const { image, server } = bench;
    let answers = 0;
    server.mishap = () => (answers++ < 1 ? 108 : undefined);
    const writing = image.write(filled(512, 9), 0, PLAIN);
    await redial(bench);
    await writing;
    expect(server.content[0]).toBe(9);
  });

  it("that fails a flush is not relied on: the flush fails, and everything is written again before the next", async () => {
    const bench = await connected();
    const { image, server } = bench;
    await image.write(filled(4096, 1), 0, PLAIN);
    let fails = true;
    server.mishap = ({ type }) => (type === COMMAND.FLUSH && fails ? 5 : undefined);
    expect(await codeOf(image.flush())).toBe("io-error");
    fails = false;
    server.content.fill(0); // what a failed fsync may do
    await redial(bench);
    await image.flush();
    expect(server.durable[0]).toBe(1);
  });

  it("that does not take back what it has lost fails every request", async () => {
    const bench = await connected();
    const { image, server, clock } = bench;
    await image.write(filled(4096, 1), 0, PLAIN);
    server.mishap = ({ type }) => (type === COMMAND.WRITE ? 5 : undefined);
    server.crash();
    await settle();
    const reading = codeOf(image.read(filled(512, 0), 0));
    for (let step = 0; step < 10; step += 1) {
      clock.advance(NBD_CLIENT_GIVE_UP_MS / 5);
      await settle();
    }
    expect(await reading).toBe("io-error");
    server.mishap = undefined;
    await redial(bench);
    expect((await read(image, 0, 512))[0]).toBe(1);
  });

  it.each<[string, ErrorCode, (server: FakeNbdServer) => void]>([
    ["too few bytes", "image-changed", (server) => (server.sizeBytes = SIZE / 2)],
    ["no more flushes", "not-supported", (server) => (server.flags &= ~TRANSMISSION_FLAG.SEND_FLUSH)],
    ["no more zeroes", "image-changed", (server) => (server.flags &= ~TRANSMISSION_FLAG.SEND_WRITE_ZEROES)],
    ["only reads", "read-only", (server) => (server.flags |= TRANSMISSION_FLAG.READ_ONLY)],
    ["blocks", "not-supported", (server) => (server.blockBytes = 512)],
  ])("and comes back with %s is refused (%s)", async (_, code, change) => {
    const bench = await connected();
    const { image, server } = bench;
    const { sizeBytes, flags, blockBytes } = server;
    change(server);
    server.hangUp();
    await redial(bench);
    expect(await codeOf(image.read(filled(512, 0), 0))).toBe(code);
    Object.assign(server, { sizeBytes, flags, blockBytes });
    await redial(bench);
    expect(await codeOf(image.read(filled(512, 0), 0))).toBe("done");
  });
});

describe("a write that is still on its way when its connection", () => {
  const overtaken: readonly (readonly [string, (bench: Bench, write: Promise<void>) => Promise<NbdImage>])[] = [
    [
      "is given up, because nothing is answered,",
      async (bench, write) => {
        bench.clock.advance(NBD_CLIENT_REQUEST_TIMEOUT_MS);
        await redial(bench);
        await write;
        return bench.image;
      },
    ],
    [
      "is made anew",
      async (bench, write) => {
        bench.image.leave();
        await redial(bench);
        await write;
        return bench.image;
      },
    ],
    [
      "is closed, and the image opened again,",
      async ({ image, server, clock }, write) => {
        const outcome = codeOf(write);
        image.close();
        expect(await outcome).toBe("shutting-down");
        return NbdImage.connect(options(server, clock, undefined));
      },
    ],
  ];

  it.each(overtaken)("%s never arrives over a newer one", async (_, overtake) => {
    const bench = await connected();
    const { image, server } = bench;
    server.cutOff();
    const write = image.write(filled(512, 1), 0, PLAIN);
    await settle();
    expect(server.requests).toHaveLength(0);
    const next = await overtake(bench, write);
    await next.write(filled(512, 2), 0, PLAIN);
    await next.flush();
    server.heal();
    await settle();
    expect(server.content[0]).toBe(2);
    expect(server.durable[0]).toBe(2);
  });
});

describe("what no flush has covered", () => {
  it("is flushed by itself, and bounded: further writes wait for the flush", async () => {
    const { image, server } = await connected(undefined, 128 * MIB);
    let release: (() => void) | undefined;
    const schedule = server.schedule;
    let isHeld = true;
    server.schedule = (callback) => {
      const last = server.requests.at(-1);
      if (isHeld && last?.type === COMMAND.FLUSH && release === undefined) release = callback;
      else schedule(callback);
    };
    const piece = filled(4 * MIB, 1);
    const count = NBD_CLIENT_UNFLUSHED_MAX_BYTES / piece.length + 4;
    const writes = Array.from({ length: count }, (_, index) => image.write(piece, index * piece.length, PLAIN));
    await settle();
    const sent = server.requests.filter(({ type }) => type === COMMAND.WRITE).length;
    expect(sent).toBeGreaterThanOrEqual(NBD_CLIENT_UNFLUSHED_TARGET_BYTES / piece.length);
    expect(sent).toBeLessThanOrEqual(NBD_CLIENT_UNFLUSHED_MAX_BYTES / piece.length);
    isHeld = false;
    release?.();
    await Promise.all(writes);
    expect(server.requests.filter(({ type }) => type === COMMAND.WRITE)).toHaveLength(count);
  });
});

describe("opening an image on an NBD server", () => {
  it("fails at once when nobody listens, or the export is not what it has to be; nothing is left open", async () => {
    const refused = async (
      prepare: (server: FakeNbdServer) => void,
      sizeBytes?: number,
    ): Promise<ErrorCode | "done"> => {
      const server = new FakeNbdServer(SIZE);
      prepare(server);
      const clock = new ManualClock();
      const code = await codeOf(NbdImage.connect(options(server, clock, sizeBytes)));
      expect(server.stops).toBe(1);
      expect(clock.pendingTimers).toBe(0);
      return code;
    };
    expect(await refused((server) => (server.isDown = true))).toBe("io-error");
    expect(await refused(() => undefined, SIZE + 512)).toBe("image-changed");
    expect(await refused((server) => (server.sizeBytes = 1000))).toBe("image-format");
    expect(await refused((server) => (server.flags |= TRANSMISSION_FLAG.READ_ONLY))).toBe("read-only");
    expect(await refused((server) => (server.flags &= ~TRANSMISSION_FLAG.SEND_FLUSH))).toBe("not-supported");
  });

  it("is opened for two hosts only where the server's connections share one cache", async () => {
    const server = new FakeNbdServer(SIZE);
    const open = (): Promise<NbdImage> =>
      NbdImage.connect({ ...options(server, new ManualClock(), SIZE), isShared: true });
    await expect(open()).rejects.toMatchObject({
      code: "not-supported",
      message: expect.stringContaining("multi-conn"),
    });
    server.flags |= TRANSMISSION_FLAG.CAN_MULTI_CONN;
    expect((await open()).sizeBytes).toBe(SIZE);
  });

  it("without waiting has the first requests wait", async () => {
    const server = new FakeNbdServer(SIZE);
    const image = new NbdImage(options(server, new ManualClock(), SIZE));
    const [bytes] = await Promise.all([read(image, 0, 512), image.write(filled(512, 3), 1024, PLAIN), image.flush()]);
    expect(bytes.equals(Buffer.alloc(512))).toBe(true);
    expect(server.durable.length).toBe(SIZE);
  });
});

describe("invalidating, and closing", () => {
  it("makes the connection anew, and answers requests of the meantime from there", async () => {
    const bench = await connected();
    const { image, server } = bench;
    image.leave();
    await read(image, 0, 512);
    expect(server.dials).toBe(2);
  });

  it("asks again, on the new connection, what was not answered on the old one", async () => {
    const bench = await connected();
    const { image, server } = bench;
    server.mishap = () => "silence";
    const reading = read(image, 0, 512);
    await settle();
    server.mishap = () => undefined;
    image.leave();
    await redial(bench);
    await reading;
    expect(server.dials).toBe(2);
  });

  it("leaves the server alone until there is something to ask, from the start where that is said", async () => {
    const { server, clock, image } = await connected();
    image.leave();
    image.leave();
    await image.flush();
    clock.advance(60_000);
    await settle();
    expect(server.dials).toBe(1);
    const late = new NbdImage({ ...options(server, clock, SIZE), onDemand: true });
    await late.flush();
    expect(server.dials).toBe(1);
    await read(late, 0, 512);
    expect(server.dials).toBe(2);
  });

  it("fails what waits, and takes nothing more", async () => {
    const { image, server, clock } = await connected();
    server.mishap = () => "silence";
    const reading = codeOf(image.read(filled(512, 0), 0));
    await settle();
    image.close();
    expect(await reading).toBe("shutting-down");
    expect(await codeOf(image.flush())).toBe("shutting-down");
    expect(clock.pendingTimers).toBe(0);
    expect(server.stops).toBe(1);
  });
});

describe("a server that breaks the protocol", () => {
  const other = (request: ServedRequest): ServedRequest => ({ ...request, cookieHigh: request.cookieHigh ^ 0x1000 });
  const half = 256;
  const error = (length: number, messageLength: number): Buffer => {
    const payload = Buffer.alloc(length);
    payload.writeUInt32BE(5, 0);
    payload.writeUInt16BE(messageLength, 4);
    return payload;
  };
  const ofRead: [string, (request: ServedRequest) => Buffer][] = [
    ["no magic", () => filled(16, 0x41)],
    ["a strange cookie", (request) => simpleReply(other(request), 0)],
    ["a simple reply to a read", (request) => Buffer.concat([simpleReply(request, 0), filled(512, 1)])],
    ["half of the data", (request) => dataChunk(request, request.offset, filled(half, 1), true)],
    ["no data", (request) => chunk(request, CHUNK.NONE, Buffer.alloc(0), true)],
    ["an empty chunk of data", (request) => dataChunk(request, request.offset, Buffer.alloc(0), true)],
    ["data before the range", (request) => dataChunk(request, request.offset - 1, filled(512, 1), true)],
    ["data behind the range", (request) => dataChunk(request, request.offset + 1, filled(512, 1), true)],
    ["data far behind the range", (request) => dataChunk(request, 2 ** 52, filled(512, 1), true)],
    [
      "the same data twice",
      (request) =>
        Buffer.concat([
          dataChunk(request, request.offset, filled(half, 1), false),
          dataChunk(request, request.offset, filled(half, 1), true),
        ]),
    ],
    [
      "the same data twice, apart",
      (request) =>
        Buffer.concat([
          dataChunk(request, request.offset + half, filled(half, 1), false),
          dataChunk(request, request.offset + half - 1, filled(half, 1), true),
        ]),
    ],
    ["a hole of no length", (request) => holeChunk(request, request.offset, 0, true)],
    ["a hole beyond the range", (request) => holeChunk(request, request.offset, 513, true)],
    ["a hole of another form", (request) => chunk(request, CHUNK.OFFSET_HOLE, Buffer.alloc(16), true)],
    ["a block status", (request) => statusChunk(request, [[512, 0]])],
    ["an unknown type", (request) => chunk(request, 99, Buffer.alloc(0), true)],
    ["a last chunk that is not the last", (request) => chunk(request, CHUNK.NONE, Buffer.alloc(0), false)],
    ["an error that is none", (request) => chunk(request, CHUNK.ERROR, Buffer.alloc(6), true)],
    ["an error with too long a message", (request) => chunk(request, CHUNK.ERROR, error(10, 5), true)],
    ["an error too short", (request) => chunk(request, CHUNK.ERROR, error(6, 0).subarray(0, 5), true)],
    ["an endless error", (request) => chunk(request, CHUNK.ERROR, error(20_000, 0), true)],
  ];
  const ofStatus: [string, (request: ServedRequest) => Buffer][] = [
    ["a strange context", (request) => statusChunk(request, [[512, 0]], 5)],
    ["no extents", (request) => statusChunk(request, [])],
    ["an extent of no length", (request) => statusChunk(request, [[0, 0]])],
    [
      "more extents than the range holds",
      (request) =>
        statusChunk(request, [
          [SIZE, 0],
          [512, 0],
        ]),
    ],
    ["a simple reply", (request) => simpleReply(request, 0)],
    ["data", (request) => dataChunk(request, 0, filled(512, 1), true)],
  ];

  async function survives(type: number, reply: (request: ServedRequest) => Buffer): Promise<void> {
    const bench = await connected();
    const { image, server } = bench;
    server.content.fill(0x33);
    let isBroken = true;
    server.mishap = (request) => {
      if (!isBroken || request.type !== type) return undefined;
      isBroken = false;
      return reply(request);
    };
    const reading = read(image, 4096, 512);
    const status = image.extents(0, SIZE, 10);
    await redial(bench);
    expect((await reading).equals(filled(512, 0x33))).toBe(true);
    expect(await status).toEqual([{ length: SIZE, hole: false, zero: false }]);
    expect(server.dials).toBe(2);
  }

  it.each(ofRead)("by %s is left, and asked again", async (_, reply) => {
    await survives(COMMAND.READ, reply);
  });

  it.each(ofStatus)("by %s in answer to a block status is left, and asked again", async (_, reply) => {
    await survives(COMMAND.BLOCK_STATUS, reply);
  });

  it("has the first part of an export that was made longer, until the disk grows", async () => {
    const bench = await connected();
    const { image, server } = bench;
    await image.write(Buffer.alloc(512, 7), 0, PLAIN);
    server.content = Buffer.concat([server.content, Buffer.alloc(SIZE, 1)]);
    server.durable = Buffer.concat([server.durable, Buffer.alloc(SIZE, 1)]);
    server.sizeBytes = 2 * SIZE;
    server.hangUp();
    await redial(bench);
    expect((await read(image, 0, 512))[0]).toBe(7);
    expect(image.sizeBytes).toBe(SIZE);
    await image.grow(2 * SIZE);
    expect(image.sizeBytes).toBe(2 * SIZE);
    expect((await read(image, 2 * SIZE - 512, 512))[0]).toBe(1);
    await image.ungrow(SIZE);
    expect(image.sizeBytes).toBe(SIZE);
  });

  it("asks anew for how long an export is when its disk is to grow, and says who makes it longer", async () => {
    const bench = await connected();
    const { image, server, clock } = bench;
    const refusal = codeOf(image.grow(2 * SIZE));
    await settle();
    clock.advance(RECONNECT_MAX_MS);
    expect(await refusal).toBe("not-supported");
    expect(image.sizeBytes).toBe(SIZE);
    server.content = Buffer.concat([server.content, Buffer.alloc(SIZE)]);
    server.durable = Buffer.from(server.content);
    server.sizeBytes = 2 * SIZE;
    const growing = image.grow(2 * SIZE);
    // What is asked for meanwhile goes to the next connection.
    const writing = image.write(Buffer.alloc(512, 9), 512, PLAIN);
    await settle();
    clock.advance(RECONNECT_MAX_MS);
    await growing;
    await writing;
    expect(image.sizeBytes).toBe(2 * SIZE);
    expect(server.content[512]).toBe(9);
  });
});
