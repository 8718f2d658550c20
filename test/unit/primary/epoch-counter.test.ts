import { describe, expect, it } from "vitest";
import { EpochCounter } from "../../../primary/epoch-counter.ts";
import { EPOCH_RESERVATION } from "../../../proto/limits.ts";
import { StateFile } from "../../../shared/journal/state-file.ts";
import { MemoryStorage, turn } from "../../support/memory-storage.ts";
import { stateRecord } from "../../support/state-records.ts";
import { present } from "../../support/present.ts";

async function bench(epochReserved = 0): Promise<{ storage: MemoryStorage; state: StateFile; counter: EpochCounter }> {
  const storage = new MemoryStorage();
  storage.disk.addDirectory("/state");
  const state = await StateFile.create(storage, "/state", stateRecord({ epochReserved }));
  return { storage, state, counter: new EpochCounter(state) };
}

/** The counter of an agent that starts after the power was lost. */
function afterPowerLoss(storage: MemoryStorage): EpochCounter {
  storage.crash("power");
  return new EpochCounter(present(StateFile.open(storage, "/state")));
}

describe("the epoch counter", () => {
  it("opens the epoch behind every number that may have been used", async () => {
    expect((await bench(0)).counter.open).toBe(1);
    expect((await bench(640)).counter.open).toBe(641);
  });

  it("closes epochs one after the other", async () => {
    const { counter } = await bench();
    await counter.reserve();
    expect([counter.close(), counter.close(), counter.open]).toEqual([1, 2, 3]);
  });

  it("never hands out a number twice, not even after the loss of power at any time", async () => {
    const { storage, counter } = await bench();
    let highest = 0;
    let current = counter;
    for (let life = 0; life < 5; life += 1) {
      for (let count = 0; count < 3 * EPOCH_RESERVATION; count += 7) {
        await current.reserve();
        const closed = current.close();
        expect(closed).toBeGreaterThan(highest);
        highest = closed;
      }
      current = afterPowerLoss(storage);
      expect(current.open).toBeGreaterThan(highest);
    }
  });

  it("goes behind what a peer has seen, and not back", async () => {
    const { storage, counter } = await bench();
    counter.skipThrough(1000);
    expect(counter.open).toBe(1001);
    counter.skipThrough(5);
    expect(counter.open).toBe(1001);
    await counter.reserve();
    expect(counter.close()).toBe(1001);
    expect(afterPowerLoss(storage).open).toBeGreaterThan(1001);
  });

  it("writes to the disk once for many epochs, ahead of need", async () => {
    const { storage, counter } = await bench();
    const updates = (): number => storage.disk.faults.calls;
    await counter.reserve();
    await turn();
    await turn();
    const before = updates();
    for (let count = 0; count < EPOCH_RESERVATION / 4; count += 1) {
      await counter.reserve();
      counter.close();
    }
    expect(updates()).toBe(before);
  });

  it("cannot reserve while the state cannot be written, and can again later", async () => {
    const { storage, counter } = await bench();
    storage.disk.faults.inject({ op: "sync", kind: "state", error: "io-error" });
    await expect(counter.reserve()).rejects.toMatchObject({ code: "io-error" });
    await counter.reserve();
    expect(counter.close()).toBe(1);
  });

  it("asks the disk once for many callers at a time", async () => {
    const { counter, state } = await bench();
    await Promise.all([counter.reserve(), counter.reserve(), counter.reserve()]);
    await turn();
    expect(state.record.epochReserved).toBeLessThanOrEqual(1 + 2 * EPOCH_RESERVATION);
  });

  it("refuses to close an epoch whose number is not reserved", async () => {
    const { counter } = await bench();
    expect(() => counter.close()).toThrow(/reserved/);
  });
});
