import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../../proto/errors.ts";
import { NBD_MAX_PAYLOAD_BYTES } from "../../../../proto/limits.ts";
import { COMMAND, COMMAND_FLAG } from "../../../../proto/nbd-protocol.ts";
import type { Answer, SentRequest } from "../../../support/nbd-client.ts";
import { DISCONNECT, decodeAnswers, negotiation, request } from "../../../support/nbd-client.ts";
import type { DeviceOperation } from "../../../support/memory-device.ts";
import { MemoryDevice } from "../../../support/memory-device.ts";
import { NbdHarness, TestDirectory, TestExport } from "../../../support/nbd-harness.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const SIZE = 1 * MIB;
const { READ, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS } = COMMAND;
const { FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN } = COMMAND_FLAG;
const EPERM = 1;
const EIO = 5;
const EINVAL = 22;
const ENOSPC = 28;
const ENOTSUP = 95;
const ESHUTDOWN = 108;

class Session {
  readonly device = new MemoryDevice(SIZE);
  readonly nbdExport: TestExport;
  readonly directory: TestDirectory;
  readonly harness: NbdHarness;

  constructor(options: { structured?: boolean; allocation?: boolean; readOnly?: boolean } = {}) {
    this.nbdExport = new TestExport("vda", this.device);
    this.nbdExport.readOnly = options.readOnly ?? false;
    this.directory = new TestDirectory(this.nbdExport);
    this.harness = new NbdHarness(this.directory);
    this.harness.send(negotiation("vda", options));
    this.harness.takeOutput();
    this.device.operations = [];
  }

  /** Sends requests in one chunk and decodes what came back within the turn. */
  ask(...requests: SentRequest[]): Answer[] {
    this.harness.send(Buffer.concat(requests.map(request)));
    return this.#answers(requests);
  }

  #answers(requests: readonly SentRequest[]): Answer[] {
    const reads = new Map(requests.filter(({ type }) => type === READ).map(({ cookie, length }) => [cookie, length]));
    return decodeAnswers(this.harness.takeOutput(), (cookie) => reads.get(cookie) ?? 0);
  }

  answer(sent: SentRequest): Answer {
    const answers = this.ask(sent);
    assert.deepEqual(
      answers.map(({ cookie }) => cookie),
      [sent.cookie],
    );
    return answers[0] as Answer;
  }

  operations(): readonly DeviceOperation[] {
    return this.device.operations?.splice(0) ?? [];
  }
}

const pattern = (length: number, seed = 1): Buffer =>
  Buffer.from(Array.from({ length }, (_, index) => (index * 7 + seed) & 0xff));

describe.each([
  ["simple replies", {}],
  ["structured replies", { structured: true, allocation: true }],
])("with %s", (_, options) => {
  it("reads back what was written", () => {
    const session = new Session(options);
    const data = pattern(5000);
    expect(session.answer({ type: WRITE, cookie: 1, offset: 777, payload: data })).toMatchObject({ error: 0 });
    const read = session.answer({ type: READ, cookie: 2, offset: 777, length: 5000 });
    expect(read).toMatchObject({ error: 0 });
    expect(read.data).toEqual(data);
  });

  it("answers many requests of a turn in one write", () => {
    const session = new Session(options);
    const before = session.harness.transmissions;
    const requests: SentRequest[] = [];
    for (let cookie = 0; cookie < 64; cookie += 2) {
      requests.push({ type: WRITE, cookie, offset: cookie * 512, payload: pattern(512, cookie) });
      requests.push({ type: READ, cookie: cookie + 1, offset: cookie * 512, length: 512 });
    }
    const answers = session.ask(...requests);
    expect(answers.map(({ cookie }) => cookie)).toEqual(requests.map(({ cookie }) => cookie));
    expect(answers[63]?.data).toEqual(pattern(512, 62));
    expect(session.harness.transmissions).toBe(before + 1);
  });

  const past = { offset: SIZE - 512, length: 1024 };
  const wrapping = { offset: 2 ** 53 - 512, length: 1024 };
  it.each([
    ["read past the end", { type: READ, ...past }, EINVAL],
    ["read far past the end", { type: READ, ...wrapping }, EINVAL],
    ["read at the end", { type: READ, offset: SIZE, length: 1 }, EINVAL],
    ["read longer than a payload may be", { type: READ, length: NBD_MAX_PAYLOAD_BYTES + 1 }, EINVAL],
    ["write past the end", { type: WRITE, offset: SIZE - 512, payload: pattern(1024) }, ENOSPC],
    ["write far past the end", { type: WRITE, offset: 2 ** 53 - 512, payload: pattern(1024) }, ENOSPC],
    ["empty write past the end", { type: WRITE, offset: SIZE + 1, length: 0 }, ENOSPC],
    ["write zeroes past the end", { type: WRITE_ZEROES, ...past }, ENOSPC],
    ["trim past the end", { type: TRIM, ...past }, EINVAL],
    ["cache past the end", { type: CACHE, ...past }, EINVAL],
    ["unknown command", { type: 8, length: 512 }, EINVAL],
    ["another unknown command", { type: 0xffff, length: 0xffffffff }, EINVAL],
    ["read with an unknown flag", { type: READ, flags: 1 << 15, length: 512 }, EINVAL],
    ["read with a flag of writes", { type: READ, flags: NO_HOLE, length: 512 }, EINVAL],
    ["write with DF", { type: WRITE, flags: DF, payload: pattern(512) }, EINVAL],
    ["write with PAYLOAD_LEN", { type: WRITE, flags: PAYLOAD_LEN, payload: pattern(512) }, EINVAL],
    ["flush with an unknown flag", { type: FLUSH, flags: FAST_ZERO }, EINVAL],
    ["trim with NO_HOLE", { type: TRIM, flags: NO_HOLE, length: 512 }, EINVAL],
    ["cache with an unknown flag", { type: CACHE, flags: 1 << 9, length: 512 }, EINVAL],
    ["zeroes with REQ_ONE", { type: WRITE_ZEROES, flags: REQ_ONE, length: 512 }, EINVAL],
    ["block status past the end", { type: BLOCK_STATUS, ...past }, EINVAL],
    ["block status of nothing", { type: BLOCK_STATUS, length: 0 }, EINVAL],
  ])("refuses a %s and stays in step", (_case, sent, error) => {
    const session = new Session(options);
    const answer = session.answer({ ...sent, cookie: 9 });
    expect(answer.error).toBe(error);
    expect(answer.isStructured).toBe("structured" in options);
    expect(answer.message !== "").toBe(answer.isStructured);
    expect(session.operations()).toEqual([]);
    expect(session.device.bytes.equals(Buffer.alloc(SIZE))).toBe(true);
    expect(session.answer({ type: READ, cookie: 10, length: 16 }).error).toBe(0);
  });

  it("compares 64-bit offsets without wrapping", () => {
    const session = new Session(options);
    for (const [type, error] of [
      [READ, EINVAL],
      [WRITE_ZEROES, ENOSPC],
    ] as const) {
      const header = request({ type, cookie: 3, length: 1024 });
      header.writeBigUInt64BE(2n ** 64n - 512n, 16);
      session.harness.send(header);
      expect(decodeAnswers(session.harness.takeOutput(), () => 0)[0]?.error).toBe(error);
    }
  });

  it.each([
    ["write", { type: WRITE, payload: pattern(512) }],
    ["empty write", { type: WRITE, length: 0 }],
    ["trim", { type: TRIM, length: 512 }],
    ["write zeroes", { type: WRITE_ZEROES, length: 512 }],
  ])("refuses a %s of a read-only export with EPERM", (_case, sent) => {
    const session = new Session({ ...options, readOnly: true });
    expect(session.answer({ ...sent, cookie: 4 }).error).toBe(EPERM);
    expect(session.operations()).toEqual([]);
    expect(session.answer({ type: READ, cookie: 5, length: 16 }).error).toBe(0);
  });

  it.each([
    ["read", { type: READ }],
    ["write", { type: WRITE }],
    ["trim", { type: TRIM }],
    ["write zeroes", { type: WRITE_ZEROES }],
    ["cache", { type: CACHE }],
  ])("does nothing for a %s of 0 bytes, also at the very end", (_case, sent) => {
    const session = new Session(options);
    expect(session.answer({ ...sent, cookie: 1, offset: SIZE, length: 0 })).toMatchObject({
      error: 0,
      data: Buffer.alloc(0),
    });
    expect(session.operations()).toEqual([]);
  });

  it.each([
    ["read", { type: READ, length: 512 }],
    ["flush", { type: FLUSH }],
    ["cache", { type: CACHE, length: 512 }],
  ])("accepts FUA on a %s", (_case, sent) => {
    expect(new Session(options).answer({ ...sent, cookie: 1, flags: FUA }).error).toBe(0);
  });

  it("ignores offset and length of a flush", () => {
    const session = new Session(options);
    expect(session.answer({ type: FLUSH, cookie: 1, offset: 2 ** 52, length: 77 }).error).toBe(0);
    expect(session.operations()).toMatchObject([{ kind: "flush" }]);
  });

  it("hands FUA and permission to unmap on to the disk", () => {
    const session = new Session(options);
    session.ask(
      { type: WRITE, cookie: 1, payload: pattern(512) },
      { type: WRITE, cookie: 2, payload: pattern(512), flags: FUA },
      { type: TRIM, cookie: 3, length: 512 },
      { type: TRIM, cookie: 4, length: 512, flags: FUA },
      { type: WRITE_ZEROES, cookie: 5, length: 512 },
      { type: WRITE_ZEROES, cookie: 6, length: 512, flags: NO_HOLE | FUA },
      { type: WRITE_ZEROES, cookie: 7, length: 512, flags: FAST_ZERO },
      { type: WRITE_ZEROES, cookie: 8, length: 512, flags: FAST_ZERO | NO_HOLE },
      { type: CACHE, cookie: 9, offset: 1024, length: 512 },
    );
    expect(session.operations().map(({ kind, fua, mayUnmap }) => [kind, fua, mayUnmap])).toEqual([
      ["write", false, undefined],
      ["write", true, undefined],
      ["zero", false, true],
      ["zero", true, true],
      ["zero", false, true],
      ["zero", true, false],
      ["zero", false, true],
      ["zero", false, false],
      ["prefetch", undefined, undefined],
    ]);
  });

  it("zeroes a range larger than any payload in one go", () => {
    const device = new MemoryDevice(NBD_MAX_PAYLOAD_BYTES + 8 * KIB);
    const session = new Session(options);
    session.nbdExport.device = device;
    device.bytes.fill(1);
    const length = device.sizeBytes - 4096;
    expect(session.answer({ type: WRITE_ZEROES, cookie: 1, offset: 4096, length }).error).toBe(0);
    expect(device.bytes.indexOf(0)).toBe(4096);
    expect(device.bytes.lastIndexOf(1)).toBe(4095);
  });

  it.each([
    ["out-of-space", READ, 0, ENOSPC],
    ["io-error", READ, 0, EIO],
    ["permission-denied", FLUSH, 0, EPERM],
    ["handed-over", FLUSH, 0, ESHUTDOWN],
    ["not-supported", TRIM, 0, EINVAL],
    ["not-supported", WRITE_ZEROES, 0, EINVAL],
    ["not-supported", WRITE_ZEROES, FAST_ZERO, ENOTSUP],
    ["out-of-range", READ, 0, EINVAL],
    ["out-of-range", WRITE_ZEROES, 0, ENOSPC],
    ["out-of-range", WRITE, 0, ENOSPC],
  ] as const)(
    "tells a failure %s of command %i with flags %i as %i, thrown or later",
    async (code, type, flags, error) => {
      for (const isLater of [false, true]) {
        const session = new Session(options);
        session.device.gate = () => {
          const failure = new ColobusError(code, "the disk failed");
          if (isLater) return Promise.reject(failure);
          throw failure;
        };
        const sent = { type, cookie: 6, flags, length: 512, ...(type === WRITE ? { payload: pattern(512) } : {}) };
        session.harness.send(request(sent));
        await session.harness.settle();
        const [answer] = decodeAnswers(session.harness.takeOutput(), () => 0);
        expect(answer).toMatchObject({ cookie: 6, error });
        expect(answer?.message).toBe(answer?.isStructured === true ? "the disk failed" : "");
        expect(session.harness.log.errors).toEqual([]);
        session.device.gate = undefined;
        expect(session.answer({ type: READ, cookie: 7, length: 512 }).error).toBe(0);
      }
    },
  );

  it("ends the connection without an answer to what the agent cannot do before it stops, thrown or later, once the rest is done", async () => {
    for (const isLater of [false, true]) {
      const session = new Session(options);
      let finish = (): void => undefined;
      session.device.gate = () =>
        new Promise<void>((resolve) => {
          finish = resolve;
        });
      session.harness.send(request({ type: WRITE, cookie: 5, offset: 4096, length: 512, payload: pattern(512) }));
      session.device.gate = () => {
        const failure = new ColobusError("shutting-down", "the agent is being stopped");
        if (isLater) return Promise.reject(failure);
        throw failure;
      };
      const write = request({ type: WRITE, cookie: 6, length: 512, payload: pattern(512) });
      session.harness.send(Buffer.concat([write, request({ type: READ, cookie: 7, offset: 8192, length: 512 })]));
      await session.harness.settle();
      expect(session.harness.hasEnded).toBe(false);
      finish();
      await session.harness.settle();
      expect(decodeAnswers(session.harness.takeOutput(), () => 0)).toMatchObject([{ cookie: 5, error: 0 }]);
      expect(session.harness.hasEnded).toBe(true);
    }
  });

  it("answers a bug of the disk with EIO, logs it, and goes on", () => {
    const session = new Session(options);
    session.device.gate = () => {
      throw new TypeError("undefined is not a function");
    };
    expect(session.answer({ type: READ, cookie: 1, length: 512 }).error).toBe(EIO);
    expect(session.harness.log.errors).toHaveLength(1);
    session.device.gate = undefined;
    expect(session.answer({ type: READ, cookie: 2, length: 512 }).error).toBe(0);
  });

  it("warns of each kind of failure once for a client", () => {
    const session = new Session(options);
    session.device.gate = ({ kind }) => {
      throw new ColobusError(kind === "read" ? "io-error" : "out-of-space", "no");
    };
    for (let cookie = 0; cookie < 5; cookie += 1) {
      session.answer({ type: READ, cookie, length: 512 });
      session.answer({ type: WRITE, cookie, payload: pattern(512) });
    }
    expect(session.harness.log.warnings).toHaveLength(2);
  });

  it("asks for the device and for write permission anew with each request", () => {
    const session = new Session(options);
    session.answer({ type: WRITE, cookie: 1, payload: pattern(512, 1) });
    const other = new MemoryDevice(SIZE);
    session.nbdExport.device = other;
    expect(session.answer({ type: READ, cookie: 2, length: 512 }).data).toEqual(Buffer.alloc(512));
    session.nbdExport.readOnly = true;
    expect(session.answer({ type: WRITE, cookie: 3, payload: pattern(512, 3) }).error).toBe(EPERM);
    session.nbdExport.readOnly = false;
    expect(session.answer({ type: WRITE, cookie: 4, payload: pattern(512, 4) }).error).toBe(0);
    expect(other.bytes.subarray(0, 512)).toEqual(pattern(512, 4));
  });

  it.each([READ, WRITE, FLUSH, TRIM, WRITE_ZEROES, CACHE])(
    "command %i fails when there is nothing to serve",
    (type) => {
      const session = new Session(options);
      Object.defineProperty(session.nbdExport, "device", {
        get: () => {
          throw new ColobusError("no-checkpoint", "nothing was committed yet");
        },
      });
      Object.defineProperty(session.nbdExport, "sizeBytes", { get: () => SIZE });
      const sent = { type, cookie: 1, length: 512, ...(type === WRITE ? { payload: pattern(512) } : {}) };
      expect(session.answer(sent).error).toBe(EIO);
    },
  );

  it("does not make requests wait for each other", async () => {
    const session = new Session(options);
    let release: () => void = () => undefined;
    const slow = new Promise<void>((resolve) => {
      release = resolve;
    });
    session.device.gate = ({ kind, offset }) => (offset === 4096 || kind === "flush" ? slow : undefined);
    const answers = session.ask(
      { type: READ, cookie: 1, offset: 4096, length: 512 },
      { type: WRITE, cookie: 2, offset: 4096, payload: pattern(512) },
      { type: FLUSH, cookie: 3 },
      { type: TRIM, cookie: 4, offset: 4096, length: 512 },
      { type: READ, cookie: 5, offset: 0, length: 512 },
    );
    expect(answers.map(({ cookie }) => cookie)).toEqual([5]);
    release();
    await session.harness.settle();
    const later = decodeAnswers(session.harness.takeOutput(), (cookie) => (cookie === 1 ? 512 : 0));
    expect(later.map(({ cookie }) => cookie).sort((a, b) => a - b)).toEqual([1, 2, 3, 4]);
  });

  it("finishes what is outstanding at DISC, and then ends the connection", async () => {
    const session = new Session(options);
    let release: () => void = () => undefined;
    const slow = new Promise<void>((resolve) => {
      release = resolve;
    });
    session.device.gate = () => slow;
    const reads = Array.from({ length: 64 }, (_, cookie) =>
      request({ type: READ, cookie, offset: cookie * 512, length: 512 }),
    );
    session.harness.send(Buffer.concat([...reads, DISCONNECT, request({ type: READ, cookie: 99, length: 512 })]));
    expect(session.harness.hasEnded).toBe(false);
    release();
    await session.harness.settle();
    const answers = decodeAnswers(session.harness.takeOutput(), () => 512);
    expect(answers.map(({ cookie }) => cookie)).toEqual(reads.map((_, cookie) => cookie));
    expect(session.harness.hasEnded).toBe(true);
    session.harness.disconnect();
    expect(session.directory.openNames).toEqual([]);
    expect(session.harness.budget.usedBytes).toBe(0);
  });

  it.each([
    ["a wrong magic", Buffer.alloc(28, 0x55)],
    ["a write payload beyond all limits", request({ type: WRITE, cookie: 1, length: NBD_MAX_PAYLOAD_BYTES + 1 })],
  ])("ends the connection at %s, after the replies that are due", (_case, bytes) => {
    const session = new Session(options);
    session.harness.send(
      Buffer.concat([request({ type: FLUSH, cookie: 1 }), bytes, request({ type: FLUSH, cookie: 2 })]),
    );
    expect(decodeAnswers(session.harness.takeOutput(), () => 0).map(({ cookie }) => cookie)).toEqual([1]);
    expect(session.harness.hasEnded).toBe(true);
    expect(session.harness.log.warnings).toHaveLength(1);
  });
});

describe("structured reads", () => {
  it("never send a chunk of data without data", () => {
    const session = new Session({ structured: true });
    expect(session.answer({ type: READ, cookie: 1, length: 0 })).toMatchObject({
      isStructured: true,
      chunks: 1,
      holes: 0,
    });
  });

  it("of a sparse range tell holes apart, and are one chunk with DF", () => {
    const session = new Session({ structured: true });
    session.answer({ type: WRITE, cookie: 1, offset: 64 * KIB, payload: pattern(8 * KIB) });
    const sparse = session.answer({ type: READ, cookie: 2, offset: 512, length: 256 * KIB });
    expect([sparse.error, sparse.chunks, sparse.holes]).toEqual([0, 3, 2]);
    expect(sparse.data.equals(session.device.bytes.subarray(512, 512 + 256 * KIB))).toBe(true);
    const whole = session.answer({ type: READ, cookie: 3, offset: 512, length: 256 * KIB, flags: DF });
    expect([whole.error, whole.chunks, whole.holes]).toEqual([0, 1, 0]);
    expect(whole.data.equals(sparse.data)).toBe(true);
  });

  it("of a hole alone are a single chunk", () => {
    const session = new Session({ structured: true });
    const { chunks, holes, data } = session.answer({ type: READ, cookie: 1, length: SIZE });
    expect([chunks, holes]).toEqual([1, 1]);
    expect(data.equals(Buffer.alloc(SIZE))).toBe(true);
  });

  it("that fail in part are answered by the error alone", async () => {
    const session = new Session({ structured: true });
    for (const offset of [0, 128 * KIB]) session.answer({ type: WRITE, cookie: 1, offset, payload: pattern(8 * KIB) });
    for (const isLater of [false, true]) {
      session.device.gate = ({ offset }) => {
        if (offset === 0) return undefined;
        const failure = new ColobusError("io-error", "bad sector");
        if (isLater) return Promise.reject(failure);
        throw failure;
      };
      session.harness.send(request({ type: READ, cookie: 2, length: 256 * KIB }));
      await session.harness.settle();
      expect(decodeAnswers(session.harness.takeOutput(), () => 0)).toMatchObject([
        { error: EIO, chunks: 1, message: "bad sector" },
      ]);
    }
    expect(session.harness.budget.usedBytes).toBe(0);
  });

  it("DF is refused when they were not negotiated", () => {
    expect(new Session().answer({ type: READ, cookie: 1, length: 512, flags: DF }).error).toBe(EINVAL);
  });
});

describe("block status", () => {
  const negotiated = { structured: true, allocation: true };

  it("reports the extents of the range and nothing beyond", () => {
    const session = new Session(negotiated);
    session.answer({ type: WRITE, cookie: 1, offset: 8 * KIB, payload: pattern(4 * KIB) });
    expect(session.answer({ type: BLOCK_STATUS, cookie: 2, offset: 4 * KIB, length: SIZE - 4 * KIB })).toMatchObject({
      chunks: 1,
      contextId: 1,
      extents: [
        { length: 4 * KIB, state: 3 },
        { length: 4 * KIB, state: 0 },
        { length: SIZE - 12 * KIB, state: 3 },
      ],
    });
  });

  it("reports one extent with REQ_ONE", () => {
    const session = new Session(negotiated);
    session.answer({ type: WRITE, cookie: 1, offset: 8 * KIB, payload: pattern(4 * KIB) });
    expect(session.answer({ type: BLOCK_STATUS, cookie: 2, length: SIZE, flags: REQ_ONE }).extents).toEqual([
      { length: 8 * KIB, state: 3 },
    ]);
  });

  it("is refused when nothing was selected", () => {
    for (const options of [{}, { structured: true }]) {
      expect(new Session(options).answer({ type: BLOCK_STATUS, cookie: 1, length: 4096 }).error).toBe(EINVAL);
    }
  });
});
