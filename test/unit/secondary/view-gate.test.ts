import { describe, expect, it } from "vitest";
import { ViewGate } from "../../../secondary/view-gate.ts";
import { deferred } from "../../support/deferred.ts";
import { turn } from "../../support/memory-storage.ts";

describe("the view gate", () => {
  it("runs requests at once while it is open, without a promise where none is needed", () => {
    const gate = new ViewGate();
    let runs = 0;
    expect(gate.run(() => void (runs += 1))).toBeUndefined();
    expect(runs).toBe(1);
  });

  it("closes at once when nothing is under way", async () => {
    const gate = new ViewGate();
    await gate.close();
    gate.open();
    await gate.close();
  });

  it("lets the requests under way finish before it is closed, failed ones too", async () => {
    const gate = new ViewGate();
    const one = deferred();
    const two = deferred();
    const first = gate.run(() => one.promise);
    const second = gate.run(() => two.promise);
    let closed = false;
    const closing = gate.close().then(() => {
      closed = true;
    });
    one.resolve();
    await first;
    await turn();
    expect(closed).toBe(false);
    two.reject(new Error("unreadable"));
    await expect(second).rejects.toThrow("unreadable");
    await closing;
  });

  it("holds later requests until it is open again, and runs them in order", async () => {
    const gate = new ViewGate();
    await gate.close();
    const order: number[] = [];
    const held = [1, 2, 3].map(async (number) => gate.run(() => void order.push(number)));
    await turn();
    expect(order).toEqual([]);
    gate.open();
    await Promise.all(held);
    expect(order).toEqual([1, 2, 3]);
  });

  it("holds requests again that it held, when it closes before they could run", async () => {
    const gate = new ViewGate();
    await gate.close();
    let ran = false;
    const held = gate.run(() => void (ran = true));
    gate.open();
    await gate.close();
    await turn();
    expect(ran).toBe(false);
    gate.open();
    await held;
    expect(ran).toBe(true);
  });

  it("hands on what a request throws", async () => {
    const gate = new ViewGate();
    const fail = (): undefined => {
      throw new Error("refused");
    };
    expect(() => gate.run(fail)).toThrow("refused");
    await gate.close();
    const held = gate.run(fail);
    gate.open();
    await expect(held).rejects.toThrow("refused");
    await gate.close();
  });
});
