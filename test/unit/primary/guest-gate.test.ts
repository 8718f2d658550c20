import { describe, expect, it } from "vitest";
import { GuestGate } from "../../../primary/guest-gate.ts";
import { ColobusError } from "../../../proto/errors.ts";
import type { Pending } from "../../../shared/block/block-device.ts";
import { turn } from "../../support/memory-storage.ts";

const REASON = new ColobusError("outdated", "no");

async function outcomeOf(pending: Pending): Promise<string> {
  let outcome = pending === undefined ? "done" : "waits";
  pending?.then(
    () => (outcome = "done"),
    (error: unknown) => (outcome = (error as ColobusError).code),
  );
  await turn();
  return outcome;
}

describe("the guests' gate", () => {
  it("lets everybody through while it is open", () => {
    const gate = new GuestGate();
    expect([gate.admitRead(), gate.admitChange()]).toEqual([undefined, undefined]);
  });

  it("has everybody wait while it holds, and lets them go in order", async () => {
    const gate = new GuestGate();
    gate.hold();
    const order: string[] = [];
    const waiting = ["read", "change", "read"].map(async (kind) => {
      await (kind === "read" ? gate.admitRead() : gate.admitChange());
      order.push(kind);
    });
    await turn();
    expect(order).toEqual([]);
    gate.open();
    await Promise.all(waiting);
    expect(order).toEqual(["read", "change", "read"]);
    expect(gate.admitChange()).toBeUndefined();
  });

  it("lets reads through while changes are frozen, until it is opened", async () => {
    const gate = new GuestGate();
    gate.freeze();
    expect(gate.admitRead()).toBeUndefined();
    const change = gate.admitChange();
    expect(await outcomeOf(change)).toBe("waits");
    gate.open();
    expect(await outcomeOf(change)).toBe("done");
  });

  it("holds what was frozen, and does not freeze what is held", async () => {
    const gate = new GuestGate();
    gate.freeze();
    const change = gate.admitChange();
    gate.hold();
    gate.freeze();
    expect(gate.state).toBe("held");
    expect(await outcomeOf(change)).toBe("waits");
    expect(await outcomeOf(gate.admitRead())).toBe("waits");
    gate.open();
    expect(await outcomeOf(change)).toBe("done");
  });

  it("fails who waits and who comes, for ever, once it refuses", async () => {
    const gate = new GuestGate();
    gate.hold();
    const outcomes = [outcomeOf(gate.admitRead()), outcomeOf(gate.admitChange())];
    gate.refuse(REASON);
    expect(await Promise.all(outcomes)).toEqual(["outdated", "outdated"]);
    gate.open();
    gate.hold();
    gate.freeze();
    expect(() => gate.admitRead()).toThrow(REASON);
    expect(() => gate.admitChange()).toThrow(REASON);
    expect(gate.state).toBe("refusing");
  });
});
