import { describe, expect, it } from "vitest";
import { RepeatedWork } from "../../../../shared/host/repeated-work.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { turn } from "../../../support/memory-storage.ts";

const EVERY_MS = 100;
const SOON_MS = 10;

/** Work that each time lasts until the test ends it. */
class Scene {
  readonly clock = new ManualClock();
  readonly failures: unknown[] = [];
  begun = 0;
  end: (() => void) | undefined;
  fail: ((error: Error) => void) | undefined;
  readonly work = new RepeatedWork({
    clock: this.clock,
    everyMs: EVERY_MS,
    work: () =>
      new Promise((resolve, reject) => {
        this.begun += 1;
        this.end = resolve;
        this.fail = reject;
      }),
    failed: (error) => this.failures.push(error),
  });
}

describe("repeated work", () => {
  it("is done each time so long after it was done last", async () => {
    const scene = new Scene();
    scene.clock.advance(EVERY_MS);
    expect(scene.begun).toBe(0);
    scene.work.start();
    scene.clock.advance(EVERY_MS - 1);
    expect(scene.begun).toBe(0);
    scene.clock.advance(1);
    expect(scene.begun).toBe(1);
    scene.clock.advance(10 * EVERY_MS);
    expect(scene.begun).toBe(1);
    scene.end?.();
    await turn();
    scene.clock.advance(EVERY_MS - 1);
    expect(scene.begun).toBe(1);
    scene.clock.advance(1);
    expect(scene.begun).toBe(2);
  });

  it("goes on after a failure, which is told", async () => {
    const scene = new Scene();
    const error = new Error("this time");
    scene.work.start();
    scene.clock.advance(EVERY_MS);
    scene.fail?.(error);
    await turn();
    expect(scene.failures).toEqual([error]);
    scene.clock.advance(EVERY_MS);
    expect(scene.begun).toBe(2);
  });

  it("comes soon where that is asked for, once", async () => {
    const scene = new Scene();
    scene.work.soon(SOON_MS); // before it is started
    scene.work.start();
    scene.clock.advance(SOON_MS);
    expect(scene.begun).toBe(1);
    scene.work.soon(SOON_MS); // while it is done
    scene.end?.();
    await turn();
    scene.clock.advance(SOON_MS);
    expect(scene.begun).toBe(2);
    scene.end?.();
    await turn();
    scene.clock.advance(EVERY_MS - 1);
    expect(scene.begun).toBe(2);
    scene.work.soon(SOON_MS); // while it is awaited
    expect(scene.clock.pendingTimers).toBe(1);
    scene.clock.advance(SOON_MS);
    expect(scene.begun).toBe(3);
  });

  it("is one chain, however often it is started", async () => {
    const scene = new Scene();
    scene.work.start();
    scene.work.start();
    expect(scene.clock.pendingTimers).toBe(1);
    scene.clock.advance(EVERY_MS);
    scene.work.start();
    scene.end?.();
    await turn();
    expect(scene.clock.pendingTimers).toBe(1);
  });

  it("never begins again once it is stopped, and the stop waits for what is being done", async () => {
    const scene = new Scene();
    scene.work.start();
    scene.clock.advance(EVERY_MS);
    let isStopped = false;
    const stopped = scene.work.stop().then(() => {
      isStopped = true;
    });
    await turn();
    expect(isStopped).toBe(false);
    scene.end?.();
    await stopped;
    scene.work.soon(SOON_MS);
    scene.work.start();
    scene.clock.advance(10 * EVERY_MS);
    expect(scene.begun).toBe(1);
    expect(scene.clock.pendingTimers).toBe(0);
  });

  it("is stopped at once while it is awaited", async () => {
    const scene = new Scene();
    scene.work.start();
    await scene.work.stop();
    expect(scene.clock.pendingTimers).toBe(0);
  });
});
