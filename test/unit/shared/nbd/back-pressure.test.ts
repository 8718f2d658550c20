import { describe, expect, it } from "vitest";
import {
  NBD_MAX_EXTENTS_PER_REPLY,
  NBD_MAX_IN_FLIGHT_REQUESTS_PER_CLIENT,
  NBD_MAX_UNSENT_BYTES_PER_CLIENT,
  NBD_STALLED_CLIENT_MS,
} from "../../../../proto/limits.ts";
import { COMMAND } from "../../../../proto/nbd-protocol.ts";
import type { Extent } from "../../../../shared/block/block-device.ts";
import { ByteBudget } from "../../../../shared/nbd/byte-budget.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { decodeAnswers, negotiation, request } from "../../../support/nbd-client.ts";
import { MemoryDevice } from "../../../support/memory-device.ts";
import { NbdHarness, TestDirectory, TestExport } from "../../../support/nbd-harness.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const { READ, FLUSH, WRITE, BLOCK_STATUS } = COMMAND;

interface Scene {
  readonly device: MemoryDevice;
  readonly clock: ManualClock;
  readonly budget: ByteBudget;
  connect(options?: Parameters<typeof negotiation>[1]): NbdHarness;
}

function scene(totalBytes = 256 * MIB, perHolderBytes = 128 * MIB): Scene {
  const device = new MemoryDevice(16 * MIB);
  const clock = new ManualClock();
  const limits = { totalBytes, perHolderBytes, guaranteedBytes: 1 * MIB, stalledMs: NBD_STALLED_CLIENT_MS };
  const budget = new ByteBudget(limits, clock);
  const directory = new TestDirectory(new TestExport("vda", device));
  return {
    device,
    clock,
    budget,
    connect: (options) => {
      const harness = new NbdHarness(directory, { clock, budget });
      harness.send(negotiation("vda", options));
      harness.takeOutput();
      return harness;
    },
  };
}

const read = (cookie: number, length: number): Buffer => request({ type: READ, cookie, length });

describe("a client that takes no replies", () => {
  it("is not read from beyond the limit, and gets everything when it takes them again", () => {
    const client = scene().connect();
    client.clientDrains = false;
    for (let cookie = 0; cookie < 256; cookie += 1) client.send(read(cookie, 1 * MIB));
    expect(client.isPaused).toBe(true);
    expect(client.budget.usedBytes).toBeLessThanOrEqual(NBD_MAX_UNSENT_BYTES_PER_CLIENT + 2 * MIB);
    expect(client.unreadBytes).toBeGreaterThan(200 * 28);
    client.clientDrains = true;
    client.endTurn();
    expect(decodeAnswers(client.takeOutput(), () => 1 * MIB).map(({ cookie }) => cookie)).toHaveLength(256);
    expect(client.budget.usedBytes).toBe(0);
  });

  it("does not grow the server by many tiny replies either", () => {
    const client = scene().connect();
    client.clientDrains = false;
    const flushes = Buffer.concat(Array.from({ length: 2048 }, (_, cookie) => request({ type: FLUSH, cookie })));
    const sent = 4 * NBD_MAX_UNSENT_BYTES_PER_CLIENT;
    for (let bytes = 0; bytes < sent; bytes += 2048 * 16) client.send(flushes);
    expect(client.isPaused).toBe(true);
    client.clientDrains = true;
    client.endTurn();
    expect(client.takeOutput().length).toBe(Math.ceil(sent / (2048 * 16)) * 2048 * 16);
  });

  it("does not hold up another client, nor its flush, even when the memory of all is used up", () => {
    const { connect, budget } = scene(16 * MIB);
    const stuck = [connect(), connect()];
    for (const client of stuck) {
      client.clientDrains = false;
      client.send(read(1, 8 * MIB - 16), read(2, 8 * MIB - 16));
    }
    expect(budget.usedBytes).toBe(16 * MIB);
    const other = connect();
    other.send(
      request({ type: FLUSH, cookie: 1 }),
      read(2, 64 * KIB),
      request({ type: WRITE, cookie: 3, payload: Buffer.alloc(9) }),
    );
    expect(
      decodeAnswers(other.takeOutput(), (cookie) => (cookie === 2 ? 64 * KIB : 0)).map(({ cookie }) => cookie),
    ).toEqual([1, 2, 3]);
  });

  it("is dropped when others wait for the memory it holds, and only then", () => {
    const { connect, clock } = scene(16 * MIB);
    const small = connect();
    const large = connect();
    small.clientDrains = false;
    large.clientDrains = false;
    small.send(read(1, 4 * MIB));
    large.send(read(1, 12 * MIB - 32));
    clock.advance(10 * NBD_STALLED_CLIENT_MS);
    expect(large.isDestroyed).toBe(false);
    const other = connect();
    other.send(read(1, 8 * MIB), request({ type: FLUSH, cookie: 2 }));
    expect(other.takeOutput().length).toBe(0);
    clock.advance(NBD_STALLED_CLIENT_MS);
    other.endTurn();
    expect([small.isDestroyed, large.isDestroyed, other.isDestroyed]).toEqual([false, true, false]);
    const lengths = (cookie: number): number => (cookie === 1 ? 8 * MIB : 0);
    expect(decodeAnswers(other.takeOutput(), lengths).map(({ cookie }) => cookie)).toEqual([1, 2]);
  });
});

describe("the bound on requests in flight", () => {
  it("stops the parser, and lets it go on as requests finish", async () => {
    const { connect, device } = scene();
    const client = connect();
    let release: () => void = () => undefined;
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    device.gate = () => held;
    device.operations = [];
    const count = NBD_MAX_IN_FLIGHT_REQUESTS_PER_CLIENT + 100;
    client.send(Buffer.concat(Array.from({ length: count }, (_, cookie) => request({ type: FLUSH, cookie }))));
    expect(device.operations).toHaveLength(NBD_MAX_IN_FLIGHT_REQUESTS_PER_CLIENT);
    expect(client.isPaused).toBe(true);
    release();
    await client.settle();
    expect(decodeAnswers(client.takeOutput(), () => 0)).toHaveLength(count);
    expect(client.isPaused).toBe(false);
  });
});

describe("the bound on bytes in flight", () => {
  it("of one client makes its next read wait for its own replies only", () => {
    const { connect } = scene(256 * MIB, 10 * MIB);
    const client = connect();
    const other = connect();
    client.clientDrains = false;
    client.send(read(1, 7 * MIB), read(2, 7 * MIB));
    expect(client.budget.usedBytes).toBe(7 * MIB + 16);
    other.send(read(1, 9 * MIB));
    expect(other.takeOutput().length).toBe(9 * MIB + 16);
    client.clientDrains = true;
    client.endTurn();
    expect(decodeAnswers(client.takeOutput(), () => 7 * MIB).map(({ cookie }) => cookie)).toEqual([1, 2]);
  });

  it("counts writes that a slow disk holds, and serves all in the end", async () => {
    const { connect, device, budget } = scene(2 * MIB, 2 * MIB);
    const client = connect();
    let release: () => void = () => undefined;
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    device.gate = ({ kind }) => (kind === "write" ? held : undefined);
    const count = 64;
    for (let cookie = 0; cookie < count; cookie += 1) {
      client.send(request({ type: WRITE, cookie, offset: cookie * 64 * KIB, payload: Buffer.alloc(64 * KIB, cookie) }));
    }
    expect(client.isPaused).toBe(true);
    expect(budget.usedBytes).toBeLessThanOrEqual(2 * MIB + 64 * KIB);
    release();
    await client.settle();
    expect(decodeAnswers(client.takeOutput(), () => 0)).toHaveLength(count);
    expect(budget.usedBytes).toBe(0);
    expect(device.bytes[63 * 64 * KIB]).toBe(63);
  });

  it("counts what block statuses may come to need, also before they are answered", async () => {
    const { connect, device, budget } = scene(256 * MIB, 4 * MIB);
    let release: () => void = () => undefined;
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    let asked = 0;
    const known = device.extents.bind(device);
    Object.assign(device, {
      asksForExtents: true,
      extents: async (...range: Parameters<MemoryDevice["extents"]>): Promise<Extent[]> => {
        asked += 1;
        await held;
        return known(...range);
      },
    });
    for (let at = 0; at < device.sizeBytes; at += 8 * KIB) void device.write(Buffer.alloc(KIB, 1), at, { fua: false });
    const client = connect({ structured: true, allocation: true });
    const count = NBD_MAX_IN_FLIGHT_REQUESTS_PER_CLIENT;
    const status = (cookie: number): Buffer =>
      request({ type: BLOCK_STATUS, cookie, offset: 0, length: device.sizeBytes });
    client.send(Buffer.concat(Array.from({ length: count }, (_, cookie) => status(cookie))));
    expect(client.isPaused).toBe(true);
    expect(asked).toBeLessThan(count / 16);
    expect(budget.usedBytes).toBeLessThanOrEqual(4 * MIB);
    release();
    await client.settle();
    const answers = decodeAnswers(client.takeOutput(), () => 0);
    expect(answers).toHaveLength(count);
    expect(answers[0]?.extents).toHaveLength(NBD_MAX_EXTENTS_PER_REPLY);
    expect(budget.usedBytes).toBe(0);
  });

  it("is not granted to a client that has left, while its requests in flight still run", async () => {
    const { connect, budget, device } = scene(4 * MIB);
    const holder = connect();
    const leaver = connect();
    let release: () => void = () => undefined;
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    device.gate = ({ kind }) => (kind === "flush" ? held : undefined);
    holder.clientDrains = false;
    holder.send(read(1, 3 * MIB));
    leaver.send(request({ type: FLUSH, cookie: 1 }), read(2, 2 * MIB));
    leaver.disconnect();
    holder.disconnect();
    leaver.endTurn();
    expect(leaver.isGone).toBe(false);
    expect(budget.usedBytes).toBe(0);
    release();
    await leaver.settle();
    expect(leaver.isGone).toBe(true);
  });

  it("is given back by a client that leaves while waiting and while others do", () => {
    const { connect, budget } = scene(4 * MIB);
    const holder = connect();
    const leaver = connect();
    const waiter = connect();
    holder.clientDrains = false;
    holder.send(read(1, 3 * MIB));
    leaver.send(read(1, 2 * MIB));
    waiter.send(read(1, 2 * MIB));
    expect(waiter.takeOutput().length).toBe(0);
    leaver.disconnect();
    expect(leaver.isGone).toBe(true);
    holder.disconnect();
    waiter.endTurn();
    expect(waiter.takeOutput().length).toBe(2 * MIB + 16);
    expect(budget.usedBytes).toBe(0);
  });
});
