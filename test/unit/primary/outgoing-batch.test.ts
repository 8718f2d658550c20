import { describe, expect, it } from "vitest";
import { OutgoingBatch } from "../../../primary/outgoing-batch.ts";
import { BATCH_MAX_OPERATIONS, BATCH_TARGET_BYTES } from "../../../proto/limits.ts";
import { decodeMessage, type DataMessage } from "../../../proto/replication-messages.ts";
import { ManualClock } from "../../support/manual-clock.ts";

function bench(): { clock: ManualClock; batch: OutgoingBatch; messages: DataMessage[]; parts: (readonly Buffer[])[] } {
  const clock = new ManualClock();
  const messages: DataMessage[] = [];
  const parts: (readonly Buffer[])[] = [];
  const batch = new OutgoingBatch(clock, (sent) => {
    const message = decodeMessage(Buffer.concat(sent));
    if (message.type !== "data") throw new Error("a batch is data");
    messages.push(message);
    parts.push(sent);
  });
  return { clock, batch, messages, parts };
}

describe("the outgoing batch", () => {
  it("sends the operations of one turn as one message, at the turn's end", () => {
    const { clock, batch, messages } = bench();
    batch.add("write", 0, 4096, 3, Buffer.from("abc"));
    batch.add("discard", 1, 2 ** 40, 8192, undefined);
    batch.add("zero", 0, 0, 512, undefined);
    expect(messages).toEqual([]);
    clock.endTurn();
    expect(messages).toEqual([
      {
        type: "data",
        firstSequence: 1,
        operations: [
          { kind: "write", disk: 0, offset: 4096, length: 3, payload: Buffer.from("abc") },
          { kind: "discard", disk: 1, offset: 2 ** 40, length: 8192, payload: Buffer.alloc(0) },
          { kind: "zero", disk: 0, offset: 0, length: 512, payload: Buffer.alloc(0) },
        ],
      },
    ]);
  });

  it("numbers operations without a gap from message to message", () => {
    const { clock, batch, messages } = bench();
    for (let message = 0; message < 3; message += 1) {
      for (let count = 0; count <= message; count += 1) batch.add("zero", 0, 0, 1, undefined);
      clock.endTurn();
    }
    expect(messages.map(({ firstSequence }) => firstSequence)).toEqual([1, 2, 4]);
  });

  it("does not copy payloads", () => {
    const { batch, parts } = bench();
    const payload = Buffer.from("payload");
    batch.add("write", 0, 0, payload.length, payload);
    batch.flush();
    expect(parts[0]?.[1]).toBe(payload);
  });

  it("goes out early when it has become large, or has many operations", () => {
    const large = bench();
    large.batch.add("write", 0, 0, BATCH_TARGET_BYTES, Buffer.alloc(BATCH_TARGET_BYTES));
    expect(large.messages).toHaveLength(1);
    const many = bench();
    for (let count = 0; count < BATCH_MAX_OPERATIONS; count += 1) many.batch.add("zero", 0, 0, 1, undefined);
    expect(many.messages.map(({ operations }) => operations.length)).toEqual([BATCH_MAX_OPERATIONS]);
    expect(many.clock.endTurn()).toBe(true);
    expect(many.messages).toHaveLength(1);
  });

  it("sends nothing when there is nothing, and nothing twice", () => {
    const { clock, batch, messages } = bench();
    batch.flush();
    batch.add("zero", 0, 0, 1, undefined);
    batch.flush();
    batch.flush();
    clock.endTurn();
    expect(messages).toHaveLength(1);
  });

  it("sends nothing more once its session is lost", () => {
    const { clock, batch, messages } = bench();
    batch.add("zero", 0, 0, 1, undefined);
    batch.discard();
    clock.endTurn();
    batch.flush();
    expect(messages).toEqual([]);
  });
});
