/**
 * The memory that all NBD connections of the agent share for replies that are being made or not yet taken.
 *
 * A connection takes bytes before it allocates them and gives them back when the client has taken the reply. When the
 * bytes are used up, connections wait in line, and one that waits for its own limit does not hold up those behind it.
 * Every connection gets a small guaranteed amount beside the total, so clients that take no replies cannot starve one
 * that does. If others wait and a client takes nothing for `stalledMs`, the owner is asked to drop it.
 *
 * Invariant: used = sum of all holders; used <= totalBytes + guaranteedBytes per holder + what `charge` added.
 */
import assert from "node:assert/strict";
import type { Clock, Timer } from "../host/clock.ts";

export interface ByteBudgetLimits {
  readonly totalBytes: number;
  readonly perHolderBytes: number;
  readonly guaranteedBytes: number;
  readonly stalledMs: number;
}

export interface ByteBudgetOwner {
  /** The bytes that the owner waited for are taken now. */
  granted(): void;
  /** Whether the bytes are held because the client takes no replies, not because the disk is slow. */
  isWaitingForClient(): boolean;
  /** Others need the memory: drop the client. */
  evict(): void;
}

export class ByteBudget {
  readonly #limits: ByteBudgetLimits;
  readonly #clock: Clock;
  readonly #holders = new Set<BudgetHolder>();
  #waiting: BudgetHolder[] = [];
  #usedBytes = 0;
  #grantScheduled = false;
  #stallTimer: Timer | undefined;

  constructor(limits: ByteBudgetLimits, clock: Clock) {
    this.#limits = limits;
    this.#clock = clock;
  }

  get usedBytes(): number {
    return this.#usedBytes;
  }

  /** A new holder with nothing taken. `leave` must follow. */
  join(owner: ByteBudgetOwner): BudgetHolder {
    const holder = new BudgetHolder(this, owner);
    this.#holders.add(holder);
    return holder;
  }

  /** For BudgetHolder only. */
  tryTake(holder: BudgetHolder, bytes: number): boolean {
    if (!this.#fitsHolder(holder, bytes) || !this.#fitsTotal(holder, bytes)) return false;
    if (this.#waiting.length > 0 && !this.#isGuaranteed(holder, bytes)) return false;
    this.add(holder, bytes);
    return true;
  }

  /** For BudgetHolder only. */
  isExhausted(holder: BudgetHolder): boolean {
    return !this.#fitsHolder(holder, 0) || !this.#fitsTotal(holder, 0);
  }

  /** For BudgetHolder only. */
  add(holder: BudgetHolder, bytes: number): void {
    holder.heldBytes += bytes;
    this.#usedBytes += bytes;
  }

  /** For BudgetHolder only. */
  giveBack(holder: BudgetHolder, bytes: number): void {
    assert(bytes <= holder.heldBytes, "more bytes are given back than were taken");
    holder.heldBytes -= bytes;
    holder.madeProgress = true;
    this.#usedBytes -= bytes;
    if (this.#waiting.length > 0) this.#scheduleGrant();
  }

  /** For BudgetHolder only. */
  enqueue(holder: BudgetHolder): void {
    assert(!this.#waiting.includes(holder), "a holder waits for one amount at a time");
    this.#waiting.push(holder);
    // It may stand behind holders that wait for limits of their own only, and then nothing else would wake it.
    this.#scheduleGrant();
    this.#watchForStall();
  }

  /** For BudgetHolder only. */
  remove(holder: BudgetHolder): void {
    assert(holder.heldBytes === 0, "a holder leaves with nothing taken");
    this.#holders.delete(holder);
    this.cancel(holder);
  }

  /** For BudgetHolder only. */
  cancel(holder: BudgetHolder): void {
    const index = this.#waiting.indexOf(holder);
    if (index < 0) return;
    this.#waiting.splice(index, 1);
    if (this.#waiting.length > 0) this.#scheduleGrant();
  }

  #fitsHolder(holder: BudgetHolder, bytes: number): boolean {
    return holder.heldBytes + bytes <= this.#limits.perHolderBytes;
  }

  #fitsTotal(holder: BudgetHolder, bytes: number): boolean {
    return this.#isGuaranteed(holder, bytes) || this.#usedBytes + bytes <= this.#limits.totalBytes;
  }

  #isGuaranteed(holder: BudgetHolder, bytes: number): boolean {
    return holder.heldBytes + bytes <= this.#limits.guaranteedBytes;
  }

  /** Grants from a turn of its own, since bytes are given back in the middle of another connection's work. */
  #scheduleGrant(): void {
    if (this.#grantScheduled) return;
    this.#grantScheduled = true;
    this.#clock.defer(() => {
      this.#grantScheduled = false;
      this.#grant();
    });
  }

  #grant(): void {
    const granted: BudgetHolder[] = [];
    const stillWaiting: BudgetHolder[] = [];
    let totalIsUsedUp = false;
    for (const holder of this.#waiting) {
      const bytes = holder.wantedBytes;
      const mustStayInLine = totalIsUsedUp && !this.#isGuaranteed(holder, bytes);
      if (!this.#fitsHolder(holder, bytes) || mustStayInLine) {
        stillWaiting.push(holder);
      } else if (this.#fitsTotal(holder, bytes)) {
        this.add(holder, bytes);
        granted.push(holder);
      } else {
        totalIsUsedUp = true;
        stillWaiting.push(holder);
      }
    }
    this.#waiting = stillWaiting;
    for (const holder of granted) holder.owner.granted();
  }

  #watchForStall(): void {
    if (this.#stallTimer !== undefined) return;
    for (const holder of this.#holders) holder.madeProgress = false;
    this.#stallTimer = this.#clock.after(this.#limits.stalledMs, () => {
      this.#stallTimer = undefined;
      if (this.#waiting.length === 0) return;
      this.#evictLargestStalled();
      this.#watchForStall();
    });
  }

  #evictLargestStalled(): void {
    let largest: BudgetHolder | undefined;
    for (const holder of this.#holders) {
      if (holder.madeProgress || holder.heldBytes === 0 || !holder.owner.isWaitingForClient()) continue;
      if (largest === undefined || holder.heldBytes > largest.heldBytes) largest = holder;
    }
    largest?.owner.evict();
  }
}

/** One connection's share. */
export class BudgetHolder {
  /** Fields of the budget: bytes taken now, bytes waited for, and whether bytes came back since the last look. */
  heldBytes = 0;
  wantedBytes = 0;
  madeProgress = false;
  readonly owner: ByteBudgetOwner;
  readonly #budget: ByteBudget;

  constructor(budget: ByteBudget, owner: ByteBudgetOwner) {
    this.#budget = budget;
    this.owner = owner;
  }

  /** Takes `bytes` now, or returns false with nothing taken. */
  tryTake(bytes: number): boolean {
    return this.#budget.tryTake(this, bytes);
  }

  /** More was charged than the limits allow: wait for 0 bytes before taking on more work. */
  get isExhausted(): boolean {
    return this.#budget.isExhausted(this);
  }

  /** Waits in line for `bytes`; `owner.granted` is called, later, when they are taken. */
  waitFor(bytes: number): void {
    this.wantedBytes = bytes;
    this.#budget.enqueue(this);
  }

  /** Leaves the line. */
  stopWaiting(): void {
    this.#budget.cancel(this);
  }

  /** Counts bytes that exist already, whatever the limits say. */
  charge(bytes: number): void {
    this.#budget.add(this, bytes);
  }

  giveBack(bytes: number): void {
    if (bytes > 0) this.#budget.giveBack(this, bytes);
  }

  leave(): void {
    this.#budget.remove(this);
  }
}
