import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../../proto/errors.ts";
import { NBD_MAX_PAYLOAD_BYTES } from "../../../../proto/limits.ts";
import { COMMAND } from "../../../../proto/nbd-protocol.ts";
import { decodeAnswers, negotiation, request } from "../../../support/nbd-client.ts";
import { deferred } from "../../../support/deferred.ts";
import { MemoryDevice } from "../../../support/memory-device.ts";
import { NbdHarness, TestDirectory, TestExport } from "../../../support/nbd-harness.ts";

const MIB = 1024 * 1024;
const { READ, WRITE, FLUSH } = COMMAND;

function start(sizeBytes = 1 * MIB): { harness: NbdHarness; device: MemoryDevice; nbdExport: TestExport } {
  const device = new MemoryDevice(sizeBytes);
  const nbdExport = new TestExport("vda", device);
  const harness = new NbdHarness(new TestDirectory(nbdExport));
  harness.send(negotiation("vda"));
  harness.takeOutput();
  device.operations = [];
  return { harness, device, nbdExport };
}

const answersOf = (harness: NbdHarness): [number, number][] =>
  decodeAnswers(harness.takeOutput(), () => 0).map(({ cookie, error }) => [cookie, error]);
const sortedAnswersOf = (harness: NbdHarness): [number, number][] => answersOf(harness).sort(([a], [b]) => a - b);
const kindsOf = (device: MemoryDevice): string[] => device.operations?.map(({ kind }) => kind) ?? [];

const payload = Buffer.from(Array.from({ length: 3000 }, (_, index) => (index * 11) & 0xff));
const write = request({ type: WRITE, cookie: 1, offset: 512, payload });
const flush = request({ type: FLUSH, cookie: 2 });

describe("the payload of a write", () => {
  it("goes to the disk as it is when it lies within one chunk", () => {
    const { harness, device } = start();
    harness.send(write);
    expect(kindsOf(device)).toEqual(["write"]);
    expect(answersOf(harness)).toEqual([[1, 0]]);
  });

  it("goes to the disk as it is when only its header came before", () => {
    const { harness, device } = start();
    harness.send(write.subarray(0, 28), write.subarray(28));
    expect(kindsOf(device)).toEqual(["write"]);
  });

  it("is pushed in the pieces in which it arrives, at their places", () => {
    const { harness, device } = start();
    harness.send(write.subarray(0, 1000), write.subarray(1000, 2000), write.subarray(2000));
    expect(device.operations).toEqual([
      { kind: "open-write", offset: 512, length: 3000, fua: false },
      { kind: "push", offset: 512, length: 972 },
      { kind: "push", offset: 1484, length: 1000 },
      { kind: "push", offset: 2484, length: 1028 },
      { kind: "end", offset: 512, length: 3000 },
    ]);
    expect(answersOf(harness)).toEqual([[1, 0]]);
    expect(device.bytes.subarray(512, 3512).equals(payload)).toBe(true);
  });

  it("of the largest size allowed is taken without being collected", () => {
    const { harness, device } = start(NBD_MAX_PAYLOAD_BYTES);
    device.operations = undefined;
    const chunk = Buffer.alloc(64 * 1024, 7);
    harness.send(request({ type: WRITE, cookie: 1, length: NBD_MAX_PAYLOAD_BYTES }));
    for (let sent = 0; sent < NBD_MAX_PAYLOAD_BYTES; sent += chunk.length) harness.send(chunk);
    expect(answersOf(harness)).toEqual([[1, 0]]);
    expect(harness.budget.usedBytes).toBe(0);
    expect(device.bytes.equals(Buffer.alloc(NBD_MAX_PAYLOAD_BYTES, 7))).toBe(true);
  });
});

describe("while the disk holds a piece", () => {
  it.each(["open-write", "push", "end"])(
    "(%s) the request behind it is answered in time, and the bytes are right",
    async (kind) => {
      const { harness, device } = start();
      const held = deferred();
      device.gate = (operation) => (operation.kind === kind ? held.promise : undefined);
      harness.send(write.subarray(0, 1000), write.subarray(1000, 2000), Buffer.concat([write.subarray(2000), flush]));
      // Once the payload is complete the parser goes on; before, what follows stays in the socket.
      expect(answersOf(harness)).toEqual(kind === "end" ? [[2, 0]] : []);
      expect(harness.isPaused).toBe(kind !== "end");
      expect(harness.connection.isTransmitting).toBe(true);
      held.resolve();
      await harness.settle();
      expect(sortedAnswersOf(harness)).toEqual(
        kind === "end"
          ? [[1, 0]]
          : [
              [1, 0],
              [2, 0],
            ],
      );
      expect(device.bytes.subarray(512, 3512).equals(payload)).toBe(true);
      expect(harness.isPaused).toBe(false);
    },
  );

  it("a whole write does not hold up the parser, and its memory counts", async () => {
    const { harness, device } = start();
    const held = deferred();
    device.gate = ({ kind }) => (kind === "write" ? held.promise : undefined);
    harness.send(Buffer.concat([write, flush]));
    expect(answersOf(harness)).toEqual([[2, 0]]);
    expect(harness.budget.usedBytes).toBe(3000);
    held.resolve();
    await harness.settle();
    expect(answersOf(harness)).toEqual([[1, 0]]);
    expect(harness.budget.usedBytes).toBe(0);
  });
});

describe("a write that fails", () => {
  const failure = new ColobusError("out-of-space", "the file system is full");
  const pieces = [write.subarray(0, 1000), write.subarray(1000, 2000), Buffer.concat([write.subarray(2000), flush])];

  it.each(["open-write", "push", "end"])("at %s has its payload consumed, and is answered once", async (kind) => {
    for (const isLater of [false, true]) {
      const { harness, device } = start();
      device.gate = (operation) => {
        if (operation.kind !== kind) return undefined;
        if (isLater) return Promise.reject(failure);
        throw failure;
      };
      harness.send(...pieces);
      await harness.settle();
      expect(sortedAnswersOf(harness)).toEqual([
        [1, 28],
        [2, 0],
      ]);
      expect(device.openWrites).toBe(0);
      expect(harness.connection.isTransmitting).toBe(true);
    }
  });

  it("in its last piece is answered once", async () => {
    for (const isLater of [false, true]) {
      const { harness, device } = start();
      device.gate = ({ kind, offset }) => {
        if (kind !== "push" || offset < 2000) return undefined;
        if (isLater) return Promise.reject(failure);
        throw failure;
      };
      harness.send(...pieces);
      await harness.settle();
      expect(sortedAnswersOf(harness)).toEqual([
        [1, 28],
        [2, 0],
      ]);
      expect(device.openWrites).toBe(0);
      expect(kindsOf(device)).toContain("abandon");
    }
  });

  it("because it is refused has its payload consumed in pieces", () => {
    const { harness, device, nbdExport } = start();
    nbdExport.readOnly = true;
    harness.send(...pieces);
    expect(answersOf(harness)).toEqual([
      [1, 1],
      [2, 0],
    ]);
    expect(kindsOf(device)).toEqual(["flush"]);
  });
});

describe("a client that leaves in the middle of a payload", () => {
  it.each(["half-closes", "disconnects"])("(%s) has its write abandoned, without an answer", (how) => {
    const { harness, device } = start();
    harness.send(flush, write.subarray(0, 2000));
    if (how === "half-closes") harness.halfClose();
    else harness.disconnect();
    expect(kindsOf(device)).toEqual(["flush", "open-write", "push", "abandon"]);
    expect(answersOf(harness)).toEqual([[2, 0]]);
    expect(harness.hasEnded).toBe(how === "half-closes");
    expect(harness.isGone).toBe(how === "disconnects");
  });

  it.each(["open-write", "push"])(
    "while the disk holds a piece (%s) has it abandoned as soon as that is done",
    async (kind) => {
      for (const fails of [false, true]) {
        const { harness, device } = start();
        const held = deferred();
        device.gate = (operation) => (operation.kind === kind ? held.promise : undefined);
        harness.send(write.subarray(0, 2000));
        harness.disconnect();
        expect(harness.isGone).toBe(false);
        if (fails) held.reject(new ColobusError("io-error", "bad sector"));
        else held.resolve();
        await harness.settle();
        expect(device.openWrites).toBe(0);
        expect(harness.isGone).toBe(true);
        expect(harness.takeOutput().length).toBe(0);
        expect(harness.log.errors).toEqual([]);
      }
    },
  );

  it("after the payload was complete has its write done and, half-closed, answered", async () => {
    const { harness, device } = start();
    const held = deferred();
    device.gate = ({ kind }) => (kind === "push" ? held.promise : undefined);
    harness.send(write.subarray(0, 2000), write.subarray(2000));
    held.resolve();
    await harness.settle();
    device.gate = ({ kind }) => (kind === "push" ? again.promise : undefined);
    const again = deferred();
    harness.send(write.subarray(0, 28 + 2999));
    again.resolve();
    await harness.settle();
    const last = deferred();
    device.gate = ({ kind }) => (kind === "push" ? last.promise : undefined);
    harness.takeOutput();
    harness.send(write.subarray(28 + 2999));
    harness.halfClose();
    expect(harness.hasEnded).toBe(false);
    last.resolve();
    await harness.settle();
    expect(answersOf(harness)).toEqual([[1, 0]]);
    expect(harness.hasEnded).toBe(true);
  });
});

describe("a half-closed client", () => {
  it("gets the replies to requests that could not even be taken yet", async () => {
    const { harness, device } = start();
    const held = deferred();
    device.gate = ({ kind }) => (kind === "push" ? held.promise : undefined);
    harness.send(write.subarray(0, 2000), Buffer.concat([write.subarray(2000), flush, flush.subarray(0, 9)]));
    expect(harness.isPaused).toBe(true);
    harness.halfClose();
    expect(harness.hasEnded).toBe(false);
    held.resolve();
    await harness.settle();
    expect(answersOf(harness)).toEqual([
      [1, 0],
      [2, 0],
    ]);
    expect(harness.hasEnded).toBe(true);
  });

  it("gets all replies that are outstanding", async () => {
    const { harness, device } = start();
    const held = deferred();
    device.gate = () => held.promise;
    const reads = Array.from({ length: 64 }, (_, cookie) => request({ type: READ, cookie, length: 16 }));
    harness.send(Buffer.concat(reads));
    harness.halfClose();
    expect(harness.hasEnded).toBe(false);
    held.resolve();
    await harness.settle();
    expect(decodeAnswers(harness.takeOutput(), () => 16)).toHaveLength(64);
    expect(harness.hasEnded).toBe(true);
  });
});

describe("shutdown", () => {
  it("finishes a write whose payload is arriving and takes no request behind it", () => {
    const { harness, device } = start();
    harness.send(flush, write.subarray(0, 2000));
    harness.connection.shutDown();
    harness.endTurn();
    expect(harness.hasEnded).toBe(false);
    harness.send(Buffer.concat([write.subarray(2000), flush]));
    expect(answersOf(harness)).toEqual([
      [2, 0],
      [1, 0],
    ]);
    expect(harness.hasEnded).toBe(true);
    expect(kindsOf(device).filter((kind) => kind === "flush")).toHaveLength(1);
  });

  it("finishes requests in flight and then ends the connection", async () => {
    const { harness, device } = start();
    const held = deferred();
    device.gate = () => held.promise;
    harness.send(flush);
    harness.connection.shutDown();
    harness.send(request({ type: FLUSH, cookie: 3 }));
    expect(harness.hasEnded).toBe(false);
    held.resolve();
    await harness.settle();
    expect(answersOf(harness)).toEqual([[2, 0]]);
    expect(harness.hasEnded).toBe(true);
  });
});
