import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { COMMAND, COMMAND_FLAG } from "../../proto/nbd-protocol.ts";
import { MemoryDevice } from "../support/memory-device.ts";
import type { SentRequest } from "../support/nbd-client.ts";
import { DISCONNECT, decodeAnswers, negotiation, request, splitAfterNegotiation } from "../support/nbd-client.ts";
import { NbdHarness, TestDirectory, TestExport } from "../support/nbd-harness.ts";

const SIZE = 256 * 1024;
const { READ, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS } = COMMAND;

/** Offsets and lengths that are often, not always, within the disk. */
const range = fc.record({
  offset: fc.oneof(
    fc.nat(SIZE),
    fc.nat(SIZE / 4096).map((block) => block * 4096),
    fc.nat({ max: 2 * SIZE }),
  ),
  length: fc.oneof(fc.nat(600), fc.nat(SIZE / 2), fc.constant(4096)),
});

const sentRequest: fc.Arbitrary<Omit<SentRequest, "cookie">> = fc.oneof(
  range.map((at) => ({ type: READ, ...at })),
  range.map((at) => ({ type: READ, flags: COMMAND_FLAG.DF, ...at })),
  fc.tuple(range, fc.nat(255), fc.nat(9000)).map(([{ offset }, byte, length]) => ({
    type: WRITE,
    offset,
    payload: Buffer.alloc(length, byte),
  })),
  fc.constant({ type: FLUSH }),
  range.map((at) => ({ type: TRIM, ...at })),
  range.map((at) => ({ type: CACHE, ...at })),
  fc
    .tuple(range, fc.boolean())
    .map(([at, keeps]) => ({ type: WRITE_ZEROES, flags: keeps ? COMMAND_FLAG.NO_HOLE : 0, ...at })),
  range.map((at) => ({ type: BLOCK_STATUS, ...at })),
  fc.record({ type: fc.nat(65535), flags: fc.nat(255), length: fc.nat(100) }).filter(({ type }) => type > 8),
);

const script = fc.record({
  structured: fc.boolean(),
  requests: fc
    .array(sentRequest, { minLength: 1, maxLength: 20 })
    .map((list) => list.map((sent, cookie) => ({ ...sent, cookie }))),
});

function serve(device: MemoryDevice): NbdHarness {
  return new NbdHarness(new TestDirectory(new TestExport("vda", device)));
}

/** A disk as an array of bytes: what the protocol says must have become of it. */
class ModelDisk {
  readonly bytes = Buffer.alloc(SIZE);

  /** The error and data that the request must be answered with. */
  apply(
    { type, offset = 0, length = 0, payload, flags = 0 }: SentRequest,
    structured: boolean,
  ): { error: number; data?: Buffer } {
    const count = payload?.length ?? length;
    const isInside = offset + count <= SIZE;
    switch (type) {
      case READ:
        if (!isInside || (flags !== 0 && !structured)) return { error: 22 };
        return { error: 0, data: Buffer.from(this.bytes.subarray(offset, offset + count)) };
      case WRITE:
        if (!isInside) return { error: 28 };
        this.bytes.set(payload ?? [], offset);
        return { error: 0 };
      case WRITE_ZEROES:
      case TRIM:
        if (!isInside) return { error: type === TRIM ? 22 : 28 };
        this.bytes.fill(0, offset, offset + count);
        return { error: 0 };
      case FLUSH:
        return { error: 0 };
      case CACHE:
        return { error: isInside ? 0 : 22 };
      case BLOCK_STATUS:
        return { error: isInside && structured && count > 0 ? 0 : 22 };
      default:
        return { error: 22 };
    }
  }
}

describe("a session", () => {
  it("is answered as a plain array of bytes would answer it, and leaves the same bytes", () => {
    fc.assert(
      fc.property(script, ({ structured, requests }) => {
        const device = new MemoryDevice(SIZE);
        const harness = serve(device);
        harness.send(negotiation("vda", { structured, allocation: structured }), ...requests.map(request), DISCONNECT);
        const model = new ModelDisk();
        const expected = requests.map((sent) => model.apply(sent, structured));
        const { rest } = splitAfterNegotiation(harness.takeOutput());
        const answers = decodeAnswers(rest, (cookie) => expected[cookie]?.data?.length ?? 0);
        expect(answers.map(({ error }) => error)).toEqual(expected.map(({ error }) => error));
        const wrong = expected.filter(({ data }, cookie) => data !== undefined && !answers[cookie]?.data.equals(data));
        expect(wrong).toEqual([]);
        const covered = answers.map(({ extents }) => extents.reduce((sum, { length }) => sum + length, 0));
        const asked = requests.map(({ type, length = 0 }, cookie) =>
          type === BLOCK_STATUS && expected[cookie]?.error === 0 ? length : 0,
        );
        expect(covered).toEqual(asked);
        expect(device.bytes.equals(model.bytes)).toBe(true);
        expect(harness.hasEnded).toBe(true);
      }),
      { numRuns: 300 },
    );
  });

  it("means the same however its bytes are cut, and whether the disk is quick or slow", async () => {
    const cuts = fc.array(fc.nat(), { maxLength: 40 });
    await fc.assert(
      fc.asyncProperty(script, cuts, fc.boolean(), async ({ structured, requests }, cutPoints, isSlow) => {
        const bytes = Buffer.concat([
          negotiation("vda", { structured, allocation: structured }),
          ...requests.map(request),
        ]);
        const whole = new MemoryDevice(SIZE);
        const wholeHarness = serve(whole);
        wholeHarness.send(bytes);

        const cut = new MemoryDevice(SIZE);
        // Slow in order: the disk itself keeps requests to the same bytes apart, which a server need not.
        if (isSlow) cut.gate = ({ kind }) => (kind === "push" || kind === "open-write" ? Promise.resolve() : undefined);
        const cutHarness = serve(cut);
        const points = [...new Set(cutPoints.map((point) => point % bytes.length))].sort((a, b) => a - b);
        cutHarness.send(...[0, ...points].map((start, index) => Buffer.from(bytes.subarray(start, points[index]))));
        await cutHarness.settle();

        expect(cutHarness.takeOutput().equals(wholeHarness.takeOutput())).toBe(true);
        expect(cut.bytes.equals(whole.bytes)).toBe(true);
        expect(cut.openWrites).toBe(0);
        expect(cutHarness.log.errors).toEqual([]);
      }),
      { numRuns: 200 },
    );
  });

  it("of random bytes is survived, at the start and after the negotiation", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 400 }), fc.boolean(), (noise, isNegotiated) => {
        const device = new MemoryDevice(SIZE);
        const harness = serve(device);
        harness.send(...(isNegotiated ? [negotiation("vda")] : []), Buffer.from(noise));
        harness.halfClose();
        expect(harness.hasEnded || harness.isDestroyed).toBe(true);
        expect(harness.log.errors).toEqual([]);
        expect(device.bytes.equals(Buffer.alloc(SIZE))).toBe(true);
      }),
      { numRuns: 1000 },
    );
  });
});
