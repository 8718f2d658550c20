import { describe, expect, it } from "vitest";
import { NBD_REPLY_ARENA_BYTES } from "../../../../proto/limits.ts";
import { ByteBudget } from "../../../../shared/nbd/byte-budget.ts";
import type { BudgetHolder } from "../../../../shared/nbd/byte-budget.ts";
import { ReplyArenaPool, ReplyWriter } from "../../../../shared/nbd/reply-writer.ts";
import type { Reservation } from "../../../../shared/nbd/reply-writer.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { GENEROUS_BUDGET } from "../../../support/nbd-harness.ts";

interface Scene {
  readonly clock: ManualClock;
  readonly writer: ReplyWriter;
  readonly holder: BudgetHolder;
  /** What was transmitted and not yet taken, as views of the writer's memory. */
  readonly transmitted: (readonly Buffer[])[];
}

function start(): Scene {
  const clock = new ManualClock();
  const budget = new ByteBudget(GENEROUS_BUDGET, clock);
  const holder = budget.join({ granted: () => undefined, isWaitingForClient: () => false, evict: () => undefined });
  const transmitted: (readonly Buffer[])[] = [];
  const writer = new ReplyWriter((parts) => transmitted.push(parts), clock, new ReplyArenaPool(), holder);
  return { clock, writer, holder, transmitted };
}

function fill({ buffer, position, length }: Reservation, byte: number): void {
  buffer.fill(byte, position, position + length);
}

const textOf = (parts: readonly Buffer[] | undefined): string => Buffer.concat(parts ?? []).toString();

describe("replies of a turn", () => {
  it("leave at its end, in one part, in the order in which they were committed", () => {
    const { clock, writer, transmitted } = start();
    for (const letter of "abc") {
      const reservation = writer.reserve(2);
      fill(reservation, letter.charCodeAt(0));
      writer.commit(reservation, 0);
    }
    expect(transmitted).toEqual([]);
    expect(writer.unsentBytes).toBe(6);
    clock.endTurn();
    expect(transmitted.map(textOf)).toEqual(["aabbcc"]);
    expect(transmitted[0]).toHaveLength(1);
  });

  it("leave without one that is still being filled", () => {
    const { clock, writer, transmitted } = start();
    const [a, slow, b] = [writer.reserve(2), writer.reserve(3), writer.reserve(2)];
    fill(a, 97);
    fill(b, 98);
    writer.commit(a, 0);
    writer.commit(b, 0);
    clock.endTurn();
    expect(transmitted.map(textOf)).toEqual(["aabb"]);
    writer.sent();
    const c = writer.reserve(2);
    fill(c, 99);
    fill(slow, 115);
    writer.commit(c, 0);
    writer.commit(slow, 0);
    clock.endTurn();
    expect(transmitted.map(textOf)).toEqual(["aabb", "ccsss"]);
  });

  it("leave before its end when there are very many", () => {
    const { writer, transmitted } = start();
    for (let bytes = 0; bytes < NBD_REPLY_ARENA_BYTES; bytes += 4096) {
      const reservation = writer.reserve(4096);
      fill(reservation, 97);
      writer.commit(reservation, 0);
    }
    expect(transmitted).toHaveLength(1);
  });

  it("leave one write at a time", () => {
    const { clock, writer, transmitted } = start();
    for (const text of ["a", "b", "c"]) {
      writer.append(Buffer.from(text), 0);
      clock.endTurn();
    }
    expect(transmitted.map(textOf)).toEqual(["a"]);
    expect(writer.unsentBytes).toBe(3);
    writer.sent();
    clock.endTurn();
    expect(transmitted.map(textOf)).toEqual(["a", "bc"]);
    writer.sent();
    expect(writer.unsentBytes).toBe(0);
  });
});

describe("memory", () => {
  it("is not used again before the socket has taken it, and no reservation is open in it", () => {
    const { clock, writer, transmitted } = start();
    const slow = writer.reserve(4);
    fill(slow, 115);
    const written = new Map<readonly Buffer[], string>();
    let overwritten = 0;
    for (let round = 0; round < 500; round += 1) {
      const reservation = writer.reserve(4096);
      fill(reservation, 97 + (round % 20));
      writer.commit(reservation, 0);
      clock.endTurn();
      const parts = transmitted.at(-1);
      if (parts !== undefined && !written.has(parts)) written.set(parts, textOf(parts));
      if (round % 7 === 0) {
        for (const [sentParts, text] of written) overwritten += textOf(sentParts) === text ? 0 : 1;
        written.clear();
        transmitted.length = 0;
        writer.sent();
      }
    }
    expect(overwritten).toBe(0);
    expect(slow.buffer.toString("utf8", slow.position, slow.position + 4)).toBe("ssss");
    writer.commit(slow, 0);
  });

  it("of a discarded reservation is used again", () => {
    const { writer } = start();
    const first = writer.reserve(100);
    writer.discard(first);
    expect(writer.reserve(100).position).toBe(first.position);
  });

  it("of a large reply is its own", () => {
    const { clock, writer, transmitted } = start();
    writer.append(Buffer.from("x"), 0);
    const large = writer.reserve(NBD_REPLY_ARENA_BYTES / 2);
    expect(large.buffer.length).toBe(large.length);
    fill(large, 97);
    writer.commit(large, 0);
    clock.endTurn();
    expect(textOf(transmitted[0])).toBe(`x${"a".repeat(large.length)}`);
  });
});

describe("the budget", () => {
  it("gets its bytes back when the client has taken the reply", () => {
    const { clock, writer, holder } = start();
    holder.charge(10);
    writer.append(Buffer.alloc(10), 10);
    clock.endTurn();
    expect(holder.heldBytes).toBe(10);
    writer.sent();
    expect(holder.heldBytes).toBe(0);
  });

  it("gets its bytes back when the client is gone, whatever became of the reply", () => {
    const { clock, writer, holder, transmitted } = start();
    holder.charge(40);
    const late = writer.reserve(10);
    const dropped = writer.reserve(10);
    writer.append(Buffer.alloc(10), 10);
    clock.endTurn();
    writer.append(Buffer.alloc(10), 10);
    writer.close();
    expect(holder.heldBytes).toBe(20);
    writer.commit(late, 10);
    writer.discard(dropped);
    holder.giveBack(10);
    writer.sent();
    clock.endTurn();
    expect(holder.heldBytes).toBe(0);
    expect(transmitted).toHaveLength(1);
    writer.simpleReply(0, 0, 0);
    clock.endTurn();
    expect(transmitted).toHaveLength(1);
  });
});
