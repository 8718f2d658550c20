import { Packr, unpack } from "msgpackr";
import { describe, expect, it } from "vitest";
import { ColobusError } from "../../proto/errors.ts";
import { decodeMessage, type Message } from "../../proto/replication-messages.ts";
import { SeededRandom } from "../sim/seeded-random.ts";
import { FUZZ_RUNS, FUZZ_SEED } from "../support/fuzz-runs.ts";
import { goldenBytes } from "../support/golden.ts";
import { mutate, seededRandom } from "../support/mutate.ts";

const SLOTS = 2 ** 53 - 1;

/** The message, or undefined where it is refused as it should be; any other exception is a bug, and fails with its bytes. */
function tryDecode(bytes: Buffer): Message | undefined {
  try {
    return decodeMessage(bytes);
  } catch (error) {
    if (error instanceof ColobusError && error.message.length < 1000) return undefined;
    throw new Error(`a bug at ${bytes.toString("hex").slice(0, 2000)}`, { cause: error });
  }
}

/** What every decoded message must hold, so that nobody behind the decoder needs to look again. */
function assertSound(message: Message, bytes: Buffer): void {
  if (message.type !== "data") return;
  let payloadBytes = 0;
  for (const { kind, disk, offset, length, payload } of message.operations) {
    if (!["write", "discard", "zero", "original", "zero-original"].includes(kind)) throw new Error(`operation ${kind}`);
    for (const number of [disk, offset, length]) {
      if (!Number.isSafeInteger(number) || number < 0 || number > SLOTS) throw new Error(`number ${number}`);
    }
    if (payload.length !== (kind === "write" ? length : 0)) throw new Error("a payload of another length");
    if (payload.buffer !== bytes.buffer) throw new Error("a payload that was copied");
    payloadBytes += payload.length;
  }
  if (payloadBytes > bytes.length) throw new Error("more payload than was sent");
}

function randomValue(random: SeededRandom, depth: number): unknown {
  const kinds = depth > 3 ? 8 : 11;
  switch (random.below(kinds)) {
    case 0:
      return random.below(2 ** 31);
    case 1:
      return random.pick([0, -1, 1.5, 2 ** 53, 2 ** 60, Number.NaN, Number.POSITIVE_INFINITY, -(2 ** 40)]);
    case 2:
      return random.pick([
        "",
        "data",
        "greeting",
        "hello",
        "length",
        "toString",
        "__proto__",
        "constructor",
        "x".repeat(random.below(300)),
      ]);
    case 3:
      return Buffer.alloc(random.below(40), random.below(256));
    case 4:
      return [null, undefined, true, false][random.below(4)];
    case 5:
      return random.pick([
        new Date(0),
        new Error("e"),
        new Set([1]),
        new Map([[1, 2]]),
        10n ** 12n,
        new Float64Array(3),
      ]);
    case 6:
    case 7:
      return random.below(5);
    case 8:
      return Array.from({ length: random.below(9) }, () => randomValue(random, depth + 1));
    default:
      return Object.fromEntries(
        Array.from({ length: random.below(5) }, () => [
          String(randomValue(random, 9)).slice(0, 20),
          randomValue(random, depth + 1),
        ]),
      );
  }
}

/** A header's length and the message's number, which come before it. */
const HEAD_BYTES = 8;

/** The headers of real messages, as msgpack has them. */
const HEADERS = [...goldenBytes("replication-protocol-1.txt", new Map()).values()].map((bytes) => {
  const end = HEAD_BYTES + bytes.readUInt32BE(0);
  return unpack(bytes.subarray(HEAD_BYTES, end)) as Record<string, unknown>;
});
const FIELDS = [...new Set(HEADERS.flatMap((header) => Object.keys(header)))];

/** A real header of which some fields were replaced, removed or added; at times none. */
function damagedHeader(random: SeededRandom): Record<string, unknown> {
  const header = { ...random.pick(HEADERS) };
  for (let count = random.below(4); count > 0; count -= 1) {
    const field = random.pick(random.chance(0.5) ? FIELDS : Object.keys(header));
    if (random.chance(0.2)) delete header[field];
    else header[field] = randomValue(random, 0);
    if (Object.keys(header).length === 0) break;
  }
  return header;
}

describe("the decoder of replication messages", () => {
  it(`takes or refuses damaged messages, and throws nothing else (${FUZZ_RUNS} messages)`, () => {
    const golden = [...goldenBytes("replication-protocol-1.txt", new Map()).values()];
    const random = seededRandom(FUZZ_SEED);
    let taken = 0;
    for (let run = 0; run < FUZZ_RUNS; run += 1) {
      const bytes = mutate(golden[run % golden.length] ?? Buffer.alloc(1), random);
      const message = tryDecode(bytes);
      if (message === undefined) continue;
      assertSound(message, bytes);
      taken += 1;
    }
    expect(taken).toBeGreaterThan(0);
  });

  it(`takes or refuses any msgpack, and throws nothing else (${FUZZ_RUNS} messages)`, () => {
    const packr = new Packr({ useRecords: false });
    const random = new SeededRandom(FUZZ_SEED);
    let taken = 0;
    for (let run = 0; run < FUZZ_RUNS; run += 1) {
      const body = packr.pack(random.chance(0.9) ? damagedHeader(random) : randomValue(random, 0));
      const bytes = Buffer.alloc(HEAD_BYTES + body.length + random.below(10));
      bytes.writeUInt32BE(random.chance(0.95) ? body.length : random.next(), 0);
      body.copy(bytes, HEAD_BYTES);
      const message = tryDecode(bytes);
      if (message === undefined) continue;
      assertSound(message, bytes);
      taken += 1;
    }
    expect(taken).toBeGreaterThan(FUZZ_RUNS / 50);
  });

  it(`refuses random bytes, and throws nothing else (${FUZZ_RUNS} messages)`, () => {
    const random = new SeededRandom(FUZZ_SEED);
    for (let run = 0; run < FUZZ_RUNS; run += 1) {
      const bytes = random.bytes(HEAD_BYTES + random.below(64));
      bytes.writeUInt32BE(random.below(bytes.length), 0);
      // msgpack's containers, so that nesting and lengths beyond the end are met often.
      for (let at = HEAD_BYTES; at < bytes.length; at += 1)
        if (random.chance(0.3))
          bytes[at] = random.pick([0x81, 0x91, 0x9f, 0xdc, 0xdd, 0xde, 0xdf, 0xc7, 0xc9, 0xd4, 0x72]);
      tryDecode(bytes);
    }
  });
});
