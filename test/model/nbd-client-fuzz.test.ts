import { describe, expect, it } from "vitest";
import { ColobusError } from "../../proto/errors.ts";
import { COMMAND } from "../../proto/nbd-protocol.ts";
import { ReplyParser } from "../../shared/nbd/client-reply-parser.ts";
import { OpenRequest } from "../../shared/nbd/open-request.ts";
import { SeededRandom } from "../sim/seeded-random.ts";
import {
  chunk,
  dataChunk,
  holeChunk,
  simpleReply,
  statusChunk,
  type ServedRequest,
} from "../support/fake-nbd-server.ts";
import { FUZZ_RUNS, FUZZ_SEED } from "../support/fuzz-runs.ts";

/**
 * Replies of a server that were damaged anywhere, and cut anywhere, against the parser: it either understands them, and then
 * a read has every byte that it asked for, or ends the connection; it never writes outside of a request's buffer.
 */
const LENGTH = 600;
/** Each run is a whole connection, which costs several times what a damaged message does. */
const RUNS = Math.ceil(FUZZ_RUNS / 3);
const GUARD = 64;
const CONTEXT_ID = 77;

interface Session {
  readonly bytes: Buffer;
  readonly structuredReplies: boolean;
}

function served(type: number, slot: number): ServedRequest {
  const length = type === COMMAND.FLUSH ? 0 : LENGTH;
  return { flags: 0, type, cookieHigh: 7, cookieLow: slot, offset: 4096, length, payload: Buffer.alloc(0) };
}

const TYPES = [COMMAND.READ, COMMAND.WRITE, COMMAND.BLOCK_STATUS, COMMAND.READ, COMMAND.FLUSH] as const;

function structuredSession(random: SeededRandom): Session {
  const replies: Buffer[] = [];
  for (const [slot, type] of TYPES.entries()) {
    const request = served(type, slot);
    if (type === COMMAND.BLOCK_STATUS) {
      replies.push(
        statusChunk(request, [
          [200, 0],
          [400, 3],
        ]),
      );
    } else if (type === COMMAND.READ) {
      const cut = 1 + random.below(LENGTH - 1);
      const pieces = [
        dataChunk(request, 4096, Buffer.alloc(cut, 1), false),
        holeChunk(request, 4096 + cut, LENGTH - cut, false),
      ];
      if (random.chance(0.5)) pieces.reverse();
      replies.push(...pieces, chunk(request, 0, Buffer.alloc(0), true));
    } else replies.push(simpleReply(request, random.chance(0.2) ? 5 : 0));
  }
  return { bytes: Buffer.concat(replies), structuredReplies: true };
}

function simpleSession(random: SeededRandom): Session {
  const replies = TYPES.filter((type) => type !== COMMAND.BLOCK_STATUS).map((type, slot) => {
    const errno = random.chance(0.2) ? 5 : 0;
    const reply = simpleReply(served(type, slot), errno);
    return type === COMMAND.READ && errno === 0 ? Buffer.concat([reply, Buffer.alloc(LENGTH, 2)]) : reply;
  });
  return { bytes: Buffer.concat(replies), structuredReplies: false };
}

function damage(bytes: Buffer, random: SeededRandom): Buffer {
  const damaged = Buffer.from(bytes);
  for (let count = random.below(4); count > 0; count -= 1) {
    const at = random.below(damaged.length);
    damaged[at] = random.chance(0.5) ? (damaged[at] ?? 0) ^ (1 << random.below(8)) : random.below(256);
  }
  if (random.chance(0.2)) return Buffer.concat([damaged, damaged.subarray(random.below(damaged.length))]);
  return random.chance(0.2) ? damaged.subarray(0, random.below(damaged.length)) : damaged;
}

/** Returns how many requests were not answered. */
function parse({ structuredReplies }: Session, bytes: Buffer, random: SeededRandom): number {
  const types = structuredReplies ? TYPES : TYPES.filter((type) => type !== COMMAND.BLOCK_STATUS);
  const buffers = types.map(() => Buffer.alloc(LENGTH + 2 * GUARD, 0xee));
  const open = new Map<number, OpenRequest>();
  for (const [slot, type] of types.entries()) {
    const target = buffers[slot]?.subarray(GUARD, GUARD + LENGTH) ?? Buffer.alloc(0);
    const { flags, offset, length } = served(type, slot);
    const request = new OpenRequest({ type, flags, offset, length, target, maxExtents: 4 }, () => undefined);
    request.begin(slot, 0);
    open.set(slot, request);
  }
  const parser = new ReplyParser({
    structuredReplies,
    allocationContextId: CONTEXT_ID,
    find: (high, low) => (high === 7 ? open.get(low) : undefined),
    finished: (request) => {
      open.delete(request.slot);
      const buffer = buffers[request.slot];
      if (request.type === COMMAND.READ && request.errno === 0) {
        expect(buffer?.subarray(GUARD, GUARD + LENGTH).every((byte) => byte !== 0xee || bytes.includes(0xee))).toBe(
          true,
        );
      }
      if (request.type === COMMAND.BLOCK_STATUS && request.errno === 0) {
        const total = request.extents.reduce((sum, { length }) => sum + length, 0);
        expect(total > 0 && total <= LENGTH && request.extents.length <= 4).toBe(true);
      }
    },
  });
  try {
    for (let at = 0; at < bytes.length;) {
      const end = Math.min(bytes.length, at + 1 + random.below(200));
      parser.feed(bytes.subarray(at, end));
      at = end;
    }
  } catch (error) {
    if (!(error instanceof ColobusError) || error.code !== "protocol-error") throw error;
  }
  for (const buffer of buffers) {
    expect(buffer.subarray(0, GUARD).every((byte) => byte === 0xee)).toBe(true);
    expect(buffer.subarray(GUARD + LENGTH).every((byte) => byte === 0xee)).toBe(true);
  }
  return open.size;
}

describe("replies of an NBD server", () => {
  it(`that are whole are understood however they are cut`, () => {
    const random = new SeededRandom(FUZZ_SEED);
    for (let run = 0; run < 200; run += 1) {
      for (const session of [structuredSession(random), simpleSession(random)]) {
        expect(parse(session, session.bytes, random)).toBe(0);
      }
    }
  });

  it(`that are damaged, ${RUNS} times, end the connection or are understood, and harm nothing`, () => {
    const random = new SeededRandom(FUZZ_SEED);
    for (let run = 0; run < RUNS; run += 1) {
      const session = run % 2 === 0 ? structuredSession(random) : simpleSession(random);
      parse(session, damage(session.bytes, random), random);
    }
  });

  it("that are noise end the connection", () => {
    const random = new SeededRandom(FUZZ_SEED);
    for (let run = 0; run < 1000; run += 1) {
      const noise = Buffer.from(Array.from({ length: 1 + random.below(400) }, () => random.below(256)));
      parse({ bytes: noise, structuredReplies: run % 2 === 0 }, noise, random);
    }
  });
});
