import { describe, expect, it } from "vitest";
import type { SimHost } from "../../sim/sim-host.ts";
import { SimWorld } from "../../sim/world.ts";

/** A small life with timers, storage and links on two hosts; the trace hash at its end. */
async function liveLife(seed: number): Promise<string> {
  const world = new SimWorld(seed);
  const [left, right] = [world.host("left"), world.host("right")];
  right.listen((link) => link.start({ message: (data) => link.send([data]), closed: () => undefined }));
  const link = await world.runFor("dial", left.dialer("right").dial(new AbortController().signal));
  const file = left.storage.open("/log", { kind: "other", create: "new" });
  let at = 0;
  const append = (data: Uint8Array): void => {
    file.write(data, at);
    at += data.length;
    void file.sync();
  };
  link.start({ message: append, closed: () => undefined });
  const tick = (): void => {
    link.send([left.random.bytes(1 + world.random.below(100))]);
    left.clock.after(left.random.fraction() * 5, tick);
  };
  tick();
  await world.run({ forMs: 100 });
  left.crash("power");
  await world.run({ forMs: 100 });
  return world.traceHash;
}

function recordTicks(host: SimHost, ticks: string[], name: string, delayMs: number): void {
  host.clock.after(delayMs, () => ticks.push(`${name} ${host.clock.nowMs().toFixed(0)}`));
}

describe("SimWorld", () => {
  it("does the same for the same seed, and something else for another", async () => {
    const first = await liveLife(7);
    expect(await liveLife(7)).toBe(first);
    expect(await liveLife(8)).not.toBe(first);
  });

  it("tells seeds beyond 32 bits apart", async () => {
    expect(await liveLife(7 + 2 ** 32)).not.toBe(await liveLife(7));
  });

  it("lets everything that follows from an event happen before the next event", async () => {
    const world = new SimWorld(1);
    const order: string[] = [];
    const slowFollower = async (): Promise<void> => {
      for (let index = 0; index < 1_000; index++) await Promise.resolve();
      order.push("followed");
    };
    world.schedule(1, () => {
      order.push("first");
      void slowFollower();
      process.nextTick(() => queueMicrotask(() => order.push("ticked")));
    });
    world.schedule(1.0001, () => order.push("second"));
    await world.run();
    expect(order).toHaveLength(4);
    expect(order.at(-1)).toBe("second");
  });

  it("runs timers in the order of time and none that was cancelled", async () => {
    const world = new SimWorld(1);
    const host = world.host("a");
    const originMs = host.clock.nowMs();
    const fired: number[] = [];
    const note = (): unknown => fired.push(host.clock.nowMs() - originMs);
    host.clock.after(30, note);
    host.clock.after(10, note);
    host.clock.after(20, note).cancel();
    host.clock.after(-5, note);
    expect(await world.run()).toBe("idle");
    expect(fired.map(Math.round)).toEqual([0, 10, 30]);
  });

  it("runs deferred callbacks in order, at the same virtual time, and after the event that deferred them", async () => {
    for (let seed = 0; seed < 20; seed++) {
      const world = new SimWorld(seed);
      const host = world.host("a");
      const order: number[] = [];
      for (let index = 0; index < 5; index++) host.clock.defer(() => order.push(index));
      expect(order).toEqual([]);
      await world.run();
      expect(order).toEqual([0, 1, 2, 3, 4]);
      expect(world.nowMs).toBe(0);
    }
  });

  it("puts events of one moment in an order that depends on the seed", async () => {
    const orders = new Set<string>();
    for (let seed = 0; seed < 20; seed++) {
      const world = new SimWorld(seed);
      const order: string[] = [];
      for (const name of ["a", "b", "c"]) world.schedule(1, () => order.push(name));
      await world.run();
      orders.add(order.join(""));
    }
    expect(orders.size).toBeGreaterThan(3);
  });

  it("stops at each of its limits", async () => {
    const world = new SimWorld(1);
    let count = 0;
    const tick = (): void => {
      count++;
      world.schedule(1, tick);
    };
    tick();
    expect(await world.run({ steps: 4 })).toBe("steps");
    expect(count).toBe(5);
    expect(await world.run({ until: () => count === 8 })).toBe("until");
    expect(count).toBe(8);
    expect(await world.run({ forMs: 10.5 })).toBe("time");
    expect(count).toBe(18);
    expect(world.nowMs).toBe(17.5);
  });

  it("fails the run with seed, replay line and trace when a check breaks", async () => {
    const world = new SimWorld(42, { replay: "run this" });
    let broken = false;
    world.addCheck("nothing is broken", () => {
      if (broken) throw new Error("it is broken");
    });
    world.schedule(5, () => {
      world.trace("it breaks", 17);
      broken = true;
    });
    const failure = await world.run().catch((error: unknown) => error);
    expect(String(failure)).toMatch(/check "nothing is broken": Error: it is broken/);
    expect(String(failure)).toMatch(/seed 42, step 1, 5\.000 ms/);
    expect(String(failure)).toMatch(/replay: run this/);
    expect(String(failure)).toMatch(/5\.000 ms it breaks 17/);
  });

  it("fails the run when an event throws or a rejection has no handler", async () => {
    const throwing = new SimWorld(1);
    throwing.schedule(1, () => {
      throw new Error("thrown in an event");
    });
    await expect(throwing.run()).rejects.toThrow("thrown in an event");
    const rejecting = new SimWorld(1);
    rejecting.schedule(1, () => void Promise.reject(new Error("nobody cares")));
    await expect(rejecting.run()).rejects.toThrow("nobody cares");
  });

  it("fails when a condition is not reached in time", async () => {
    const world = new SimWorld(1);
    world.schedule(5, () => undefined);
    await expect(world.runUntil("the impossible", () => false)).rejects.toThrow(/the impossible/);
  });
});

describe("SimHost", () => {
  it("takes its timers with it when it dies, and starts anew", async () => {
    const world = new SimWorld(1);
    const host = world.host("a");
    const ticks: string[] = [];
    recordTicks(host, ticks, "first life", 10);
    const deaths: string[] = [];
    host.onDeath((kind) => deaths.push(kind));
    host.crash("process");
    expect(host.alive).toBe(false);
    const { bootId } = host;
    host.restart();
    host.clock.after(10, () => ticks.push("second life"));
    await world.run();
    expect(ticks).toEqual(["second life"]);
    expect(deaths).toEqual(["process"]);
    expect(host.bootId).toBe(bootId);
  });

  it("has another boot and another monotonic clock after a loss of power", () => {
    const world = new SimWorld(1);
    const host = world.host("a");
    const [bootId, nowMs] = [host.bootId, host.clock.nowMs()];
    host.crash("power");
    expect(host.isOff).toBe(true);
    host.restart();
    expect(host.bootId).not.toBe(bootId);
    expect(host.clock.nowMs()).not.toBe(nowMs);
  });

  it("does nothing while frozen, and everything that came due when it thaws", async () => {
    const world = new SimWorld(1);
    const host = world.host("a");
    const originMs = host.clock.nowMs();
    const fired: number[] = [];
    host.clock.after(10, () => fired.push(host.clock.nowMs() - originMs));
    const cancelled = host.clock.after(20, () => fired.push(-1));
    host.freeze(true);
    await world.run({ forMs: 50 });
    expect(fired).toEqual([]);
    host.freeze(false);
    cancelled.cancel();
    await world.run();
    expect(fired.map(Math.round)).toEqual([50]);
  });

  it("lets timers be late, never early", async () => {
    const world = new SimWorld(1);
    const host = world.host("a", { timerSlackMs: 5 });
    const originMs = host.clock.nowMs();
    const late: number[] = [];
    for (let index = 0; index < 50; index++) {
      host.clock.after(10, () => late.push(host.clock.nowMs() - originMs - 10));
    }
    await world.run();
    expect(Math.min(...late)).toBeGreaterThanOrEqual(-1e-6);
    expect(Math.max(...late)).toBeGreaterThan(2);
    expect(Math.max(...late)).toBeLessThan(5.001);
  });
});
