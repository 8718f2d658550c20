import { describe, expect, it } from "vitest";
import { ByteBudget } from "../../../../shared/nbd/byte-budget.ts";
import type { BudgetHolder } from "../../../../shared/nbd/byte-budget.ts";
import { ManualClock } from "../../../support/manual-clock.ts";

const LIMITS = { totalBytes: 100, perHolderBytes: 60, guaranteedBytes: 10, stalledMs: 1000 };

class Owner {
  readonly name: string;
  readonly grants: string[];
  holder: BudgetHolder;
  isStuck = false;
  evicted = 0;

  constructor(name: string, budget: ByteBudget, grants: string[]) {
    this.name = name;
    this.grants = grants;
    this.holder = budget.join(this);
  }

  granted(): void {
    this.grants.push(this.name);
  }

  isWaitingForClient(): boolean {
    return this.isStuck;
  }

  evict(): void {
    this.evicted += 1;
  }
}

function start(): { clock: ManualClock; budget: ByteBudget; grants: string[]; join: (name: string) => Owner } {
  const clock = new ManualClock();
  const budget = new ByteBudget(LIMITS, clock);
  const grants: string[] = [];
  return { clock, budget, grants, join: (name) => new Owner(name, budget, grants) };
}

describe("taking", () => {
  it("stops at a holder's own limit and at the total", () => {
    const { budget, join } = start();
    const [a, b] = [join("a"), join("b")];
    expect(a.holder.tryTake(61)).toBe(false);
    expect(a.holder.tryTake(60)).toBe(true);
    expect(a.holder.tryTake(1)).toBe(false);
    expect(b.holder.tryTake(41)).toBe(false);
    expect(b.holder.tryTake(40)).toBe(true);
    expect(budget.usedBytes).toBe(100);
  });

  it("always grants the guaranteed share, also while others wait in line", () => {
    const { clock, join } = start();
    const [a, b, c, d] = [join("a"), join("b"), join("c"), join("d")];
    a.holder.tryTake(60);
    b.holder.tryTake(40);
    c.holder.waitFor(20);
    clock.endTurn();
    expect(d.holder.tryTake(10)).toBe(true);
    expect(d.holder.tryTake(1)).toBe(false);
  });

  it("does not pass those who wait in line", () => {
    const { clock, grants, join } = start();
    const [a, b, c, d] = [join("a"), join("b"), join("c"), join("d")];
    a.holder.tryTake(60);
    b.holder.tryTake(20);
    c.holder.waitFor(30);
    expect(d.holder.tryTake(15)).toBe(false);
    d.holder.waitFor(15);
    clock.endTurn();
    expect(grants).toEqual([]);
    b.holder.giveBack(20);
    clock.endTurn();
    expect(grants).toEqual(["c"]);
    a.holder.giveBack(60);
    clock.endTurn();
    expect(grants).toEqual(["c", "d"]);
  });

  it("lets those pass who stand behind a holder that waits for its own limit", () => {
    const { clock, grants, join } = start();
    const [a, b] = [join("a"), join("b")];
    a.holder.tryTake(50);
    a.holder.waitFor(20);
    expect(b.holder.tryTake(30)).toBe(false);
    b.holder.waitFor(30);
    clock.endTurn();
    expect(grants).toEqual(["b"]);
    a.holder.giveBack(50);
    clock.endTurn();
    expect(grants).toEqual(["b", "a"]);
    expect(a.holder.heldBytes).toBe(20);
  });

  it("counts what was charged beyond the limits, until that is given back", () => {
    const { clock, grants, join } = start();
    const a = join("a");
    a.holder.charge(200);
    expect(a.holder.isExhausted).toBe(true);
    a.holder.waitFor(0);
    clock.endTurn();
    a.holder.giveBack(100);
    clock.endTurn();
    expect(grants).toEqual([]);
    a.holder.giveBack(40);
    clock.endTurn();
    expect(grants).toEqual(["a"]);
    expect(a.holder.isExhausted).toBe(false);
  });

  it("makes room when a holder leaves the line", () => {
    const { clock, grants, join } = start();
    const [a, b, c] = [join("a"), join("b"), join("c")];
    a.holder.tryTake(60);
    b.holder.waitFor(50);
    c.holder.waitFor(40);
    clock.endTurn();
    expect(grants).toEqual([]);
    b.holder.stopWaiting();
    b.holder.leave();
    clock.endTurn();
    expect(grants).toEqual(["c"]);
  });
});

describe("a stalled holder", () => {
  it("is evicted when others wait: the largest of those whose client takes nothing", () => {
    const { clock, join } = start();
    const [slowDisk, small, large, waiter] = [join("slow"), join("small"), join("large"), join("waiter")];
    slowDisk.holder.tryTake(50);
    small.holder.tryTake(20);
    large.holder.tryTake(30);
    small.isStuck = true;
    large.isStuck = true;
    waiter.holder.waitFor(20);
    clock.advance(999);
    expect(large.evicted).toBe(0);
    clock.advance(1);
    expect([slowDisk.evicted, small.evicted, large.evicted]).toEqual([0, 0, 1]);
  });

  it("is left alone while it makes progress, and when nobody waits", () => {
    const { clock, join } = start();
    const [a, b] = [join("a"), join("b")];
    a.isStuck = true;
    a.holder.tryTake(60);
    clock.advance(10_000);
    b.holder.waitFor(50);
    clock.advance(500);
    a.holder.giveBack(1);
    clock.advance(500);
    expect(a.evicted).toBe(0);
    clock.advance(1000);
    expect(a.evicted).toBe(1);
  });
});
