import { describe, expect, it } from "vitest";
import { BATCH_TARGET_BYTES, WRITE_PIECE_MAX_BYTES } from "../../../../proto/limits.ts";
import { OutgoingMessages } from "../../../../shared/replication/outgoing-messages.ts";

const LARGEST = BATCH_TARGET_BYTES + WRITE_PIECE_MAX_BYTES;

/** A message of `length` bytes of one value, in three parts. */
function parts(value: number, length: number): Buffer[] {
  const third = Math.floor(length / 3);
  return [Buffer.alloc(third, value), Buffer.alloc(third, value), Buffer.alloc(length - 2 * third, value)];
}

describe("messages on their way", () => {
  it("are their parts, one behind the other", () => {
    const { message } = new OutgoingMessages().join([Buffer.from("ab"), Buffer.from(""), Buffer.from("cde")]);
    expect(message.toString()).toBe("abcde");
  });

  it("stay whole until they are sent, in whatever order that comes to be known", () => {
    const outgoing = new OutgoingMessages();
    const waiting: { message: Buffer; sent: () => void; value: number }[] = [];
    for (let round = 0; round < 400; round += 1) {
      const value = round % 251;
      waiting.push({ ...outgoing.join(parts(value, 1 + ((round * 7919 * 97) % LARGEST))), value });
      if (round % 3 === 0) waiting.splice((round * 31) % waiting.length, 1).forEach(({ sent }) => sent());
      if (round % 50 !== 49) continue;
      for (const { message, value: expected } of waiting) {
        expect(message.equals(Buffer.alloc(message.length, expected))).toBe(true);
      }
      for (const { sent } of waiting.splice(round % 100 === 99 ? 0 : 10)) sent();
    }
  });

  it("use the same memory again, where the network keeps up", () => {
    const outgoing = new OutgoingMessages();
    const memory = new Set<ArrayBufferLike>();
    for (let round = 0; round < 100; round += 1) {
      const first = outgoing.join(parts(1, LARGEST));
      const second = outgoing.join(parts(2, LARGEST));
      memory.add(first.message.buffer).add(second.message.buffer);
      first.sent();
      second.sent();
    }
    expect(memory.size).toBe(1);
  });

  it("keep little of what a slow network has made necessary", () => {
    const outgoing = new OutgoingMessages();
    const sendMany = (): Set<ArrayBufferLike> => {
      const many = Array.from({ length: 200 }, () => outgoing.join(parts(1, LARGEST)));
      for (const { sent } of many) sent();
      return new Set(many.map(({ message }) => message.buffer));
    };
    const first = sendMany();
    const kept = [...sendMany()].filter((memory) => first.has(memory)).length;
    expect(first.size).toBe(100);
    expect(kept).toBeGreaterThan(0);
    expect(kept).toBeLessThan(40);
  });
});
