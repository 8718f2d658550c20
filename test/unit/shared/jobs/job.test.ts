import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../../proto/errors.ts";
import { JOBS_CONCLUDED_KEPT } from "../../../../proto/limits.ts";
import { JobList } from "../../../../shared/jobs/job-list.ts";
import { Job, type JobSettings, type JobWork } from "../../../../shared/jobs/job.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { turn } from "../../../support/memory-storage.ts";

interface PieceEnd {
  readonly resolve: (bytes: number | undefined) => void;
  readonly reject: (error: unknown) => void;
}

/** Work whose every piece is ended by the test. */
class ManualWork implements JobWork {
  readonly type = "resync";
  readonly disk = null;
  readonly cancellable: boolean;
  doneBytes = 0;
  totalBytes = 1000;
  steps = 0;
  requests = 0;
  #end: PieceEnd | undefined;

  constructor(cancellable = true) {
    this.cancellable = cancellable;
  }

  get isAtWork(): boolean {
    return this.#end !== undefined;
  }

  guestRequests(): number {
    return this.requests;
  }

  progress(): { doneBytes: number; totalBytes: number } {
    return { doneBytes: this.doneBytes, totalBytes: this.totalBytes };
  }

  step(): Promise<number | undefined> {
    this.steps += 1;
    return new Promise((resolve, reject) => {
      this.#end = { resolve, reject };
    });
  }

  finish(bytes: number | undefined): void {
    this.doneBytes += bytes ?? 0;
    this.#take().resolve(bytes);
  }

  fail(error: unknown): void {
    this.#take().reject(error);
  }

  #take(): PieceEnd {
    const end = this.#end;
    if (end === undefined) throw new Error("no piece is under way");
    this.#end = undefined;
    return end;
  }
}

interface Bench {
  readonly clock: ManualClock;
  readonly work: ManualWork;
  readonly job: Job;
  readonly states: string[];
  /** Lets everything happen that can without the clock. */
  settle(): Promise<void>;
}

function bench(work = new ManualWork()): Bench {
  const clock = new ManualClock();
  const states: string[] = [];
  const job = new Job({ id: "resync-1", clock, work, speed: 0, changed: (changed) => states.push(changed.state) });
  const settle = async (): Promise<void> => {
    for (let count = 0; count < 5; count += 1) {
      await turn();
      clock.endTurn();
    }
  };
  return { clock, work, job, states, settle };
}

describe("a job", () => {
  it("does one piece after the other, and is concluded when there is none", async () => {
    const { work, job, states, settle } = bench();
    job.start();
    for (let piece = 0; piece < 3; piece += 1) {
      expect(work.steps).toBe(piece + 1);
      work.finish(100);
      await settle();
    }
    work.finish(undefined);
    await job.finished();
    expect(states).toEqual(["running", "concluded"]);
    expect(job.describe()).toMatchObject({
      state: "concluded",
      progress: { doneBytes: 300, totalBytes: 1000 },
      error: null,
    });
    expect(job.describe().endedAt).not.toBeNull();
  });

  it("lets the event loop turn between pieces, however fast they are", async () => {
    const { clock, job } = bench();
    let pieces = 0;
    const busy: JobWork = {
      type: "merge",
      disk: null,
      cancellable: false,
      guestRequests: () => 0,
      progress: () => ({ doneBytes: 0, totalBytes: 0 }),
      step: () => Promise.resolve((pieces += 1) < 10_000 ? 1 : undefined),
    };
    const other = new Job({ id: "merge-1", clock, work: busy, speed: 0, changed: () => undefined });
    other.start();
    await turn();
    expect(pieces).toBe(1);
    clock.endTurn();
    await turn();
    expect(pieces).toBeGreaterThan(1);
    expect(pieces).toBeLessThan(100);
    other.conclude();
    expect(job.state).toBe("created");
  });

  it("is paused between pieces, and goes on where it was", async () => {
    const { work, job, settle } = bench();
    job.start();
    job.apply("pause");
    work.finish(1);
    await settle();
    expect(work.isAtWork).toBe(false);
    expect(job.state).toBe("paused");
    expect(() => job.apply("pause")).toThrow(expect.objectContaining({ code: "job-state" }) as Error);
    job.apply("resume");
    await settle();
    expect(work.steps).toBe(2);
  });

  it("goes on when it is paused and resumed within one piece", async () => {
    const { work, job, settle } = bench();
    job.start();
    job.apply("pause");
    job.apply("resume");
    work.finish(1);
    await settle();
    expect(work.steps).toBe(2);
    expect(job.state).toBe("running");
  });

  it("is paused with the error of a piece that fails, and tries that piece again when resumed", async () => {
    const { work, job, settle } = bench();
    job.start();
    work.fail(new ColobusError("io-error", "a bad sector", "replace it"));
    await settle();
    expect(job.describe()).toMatchObject({
      state: "paused",
      error: { code: "io-error", action: "replace it" },
      endedAt: null,
    });
    job.apply("resume");
    await settle();
    expect(job.describe()).toMatchObject({ state: "running", error: null });
    work.finish(undefined);
    await job.finished();
  });

  it("ends after the piece that is under way when it is cancelled, paused or not", async () => {
    for (const paused of [false, true]) {
      const { work, job, settle } = bench();
      job.start();
      if (paused) {
        job.apply("pause");
        work.finish(1);
        await settle();
      }
      job.apply("cancel");
      expect(job.state).toBe("concluded");
      if (!paused) work.finish(1);
      await job.finished();
      expect(work.steps).toBe(1);
      expect(() => job.apply("cancel")).toThrow(/concluded/);
    }
  });

  it("that cannot be cancelled says so", () => {
    const { job, work } = bench(new ManualWork(false));
    job.start();
    expect(() => job.apply("cancel")).toThrow(
      expect.objectContaining({
        code: "job-state",
        action: expect.stringMatching(/ends by itself/) as string,
      }) as Error,
    );
    job.conclude();
    work.finish(1);
  });

  it("keeps the error with which it was ended, not that of the piece that ends later", async () => {
    const { work, job, states } = bench();
    job.start();
    job.conclude(new ColobusError("connection-lost", "gone"));
    work.fail(new Error("late"));
    await job.finished();
    expect(job.error).toMatchObject({ code: "connection-lost" });
    job.conclude(new ColobusError("internal", "twice"));
    expect(job.error).toMatchObject({ code: "connection-lost" });
    expect(states).toEqual(["running", "concluded"]);
  });

  it("takes its pieces no faster than its speed limit", async () => {
    const { clock, work, job, settle } = bench();
    job.setSpeed(1000);
    job.start();
    work.finish(500);
    await settle();
    expect(work.steps).toBe(1);
    clock.advance(499);
    await settle();
    expect(work.steps).toBe(1);
    clock.advance(1);
    await settle();
    expect(work.steps).toBe(2);
    work.finish(1_000_000);
    await settle();
    job.setSpeed(0); // lifted: no need to sit out the rest
    await settle();
    expect(work.steps).toBe(3);
  });

  it("can be paused while it waits for its speed limit", async () => {
    const { clock, work, job, settle } = bench();
    job.setSpeed(1000);
    job.start();
    work.finish(500);
    await settle();
    job.apply("pause");
    clock.advance(10_000);
    await settle();
    expect(work.steps).toBe(1);
    job.apply("resume");
    await settle();
    expect(work.steps).toBe(2);
  });

  it("that is ended during a piece does not wait for its speed limit behind it", async () => {
    const { clock, work, job, settle } = bench();
    job.setSpeed(1);
    job.start();
    job.conclude(new ColobusError("shutting-down", "stop"));
    work.finish(1_000_000);
    let finished = false;
    void job.finished().then(() => {
      finished = true;
    });
    await settle();
    expect(finished).toBe(true);
    expect(clock.pendingTimers).toBe(0);
  });

  it("that is ended while it waits for its speed limit leaves no timer behind", async () => {
    const { clock, work, job, settle } = bench();
    job.setSpeed(1);
    job.start();
    work.finish(1_000_000);
    await settle();
    job.conclude();
    await job.finished();
    expect(clock.pendingTimers).toBe(0);
  });

  it("yields to guests: it rests for three times as long as a piece took, and not at all while they are idle", async () => {
    const { clock, work, job, settle } = bench();
    job.setSpeed("dynamic");
    job.start();
    clock.advance(10);
    work.finish(500);
    await settle();
    expect(work.steps).toBe(2);
    work.requests += 1;
    clock.advance(10);
    work.finish(500);
    await settle();
    clock.advance(29);
    await settle();
    expect(work.steps).toBe(2);
    clock.advance(1);
    await settle();
    expect(work.steps).toBe(3);
    clock.advance(10);
    work.finish(500);
    await settle();
    expect(work.steps).toBe(4);
    expect(job.describe().speedLimit).toBe("dynamic");
  });

  it("sees the requests that came while it rested", async () => {
    const { clock, work, job, settle } = bench();
    job.setSpeed("dynamic");
    job.start();
    for (let piece = 1; piece <= 3; piece += 1) {
      work.requests += 1;
      clock.advance(10);
      work.finish(500);
      await settle();
      expect(work.steps).toBe(piece);
      clock.advance(30);
      await settle();
      expect(work.steps).toBe(piece + 1);
    }
  });

  it("keeps its speed although its timers fire late", async () => {
    const { clock, work, job, settle } = bench();
    job.setSpeed(1_000_000); // 10 ms for a piece
    job.start();
    for (let piece = 1; piece <= 10; piece += 1) {
      work.finish(10_000);
      await settle();
      while (work.steps === piece) {
        clock.advance(4);
        await settle();
      }
    }
    expect(clock.nowMs()).toBeLessThanOrEqual(10 * 10 + 4);
    expect(clock.nowMs()).toBeGreaterThanOrEqual(10 * 10 - 1);
  });

  it("that is held from its beginning waits for resume", async () => {
    const { work, job, settle, states } = bench();
    job.start(true);
    await settle();
    expect([work.steps, job.isHeld]).toEqual([0, true]);
    job.apply("resume");
    await settle();
    expect([work.steps, job.isHeld]).toEqual([1, false]);
    work.fail(new Error("a fault"));
    await settle();
    expect(job.isHeld).toBe(false);
    expect(states).toEqual(["paused", "running", "paused"]);
  });

  it("that an operator has paused stays so when the piece that was under way fails, however often that is tried again", async () => {
    class RetriedWork extends ManualWork {
      readonly retryMs = 5000;
    }
    const { clock, work, job, settle } = bench(new RetriedWork());
    job.start();
    job.apply("pause");
    work.fail(new Error("a fault"));
    await settle();
    clock.advance(10_000);
    await settle();
    expect([job.isHeld, work.steps]).toEqual([true, 1]);
    job.apply("resume");
    await settle();
    expect(work.steps).toBe(2);
  });

  it("has what it is set to written down at each change, and not how it ends", async () => {
    const kept: JobSettings[] = [];
    let isFailing = false;
    class KeptWork extends ManualWork {
      keep(settings: JobSettings): Promise<void> {
        kept.push(settings);
        return isFailing ? Promise.reject(new ColobusError("io-error", "the disk is broken")) : Promise.resolve();
      }
    }
    const { work, job, settle } = bench(new KeptWork());
    const fault = new ColobusError("io-error", "a fault");
    job.start(true, fault);
    expect(job.describe()).toMatchObject({ state: "paused", error: { message: "a fault" } });
    job.apply("resume");
    job.setSpeed(100);
    await settle();
    work.fail(fault);
    await settle();
    job.apply("resume");
    await settle();
    isFailing = true;
    job.apply("pause");
    await expect(job.kept()).rejects.toMatchObject({ code: "io-error" });
    job.conclude(new ColobusError("shutting-down", "the agent is being stopped"), null);
    expect(kept).toEqual([
      { speed: 0, isPaused: true, error: fault },
      { speed: 0, isPaused: false, error: undefined },
      { speed: 100, isPaused: false, error: undefined },
      { speed: 100, isPaused: true, error: fault },
      { speed: 100, isPaused: false, error: undefined },
      { speed: 100, isPaused: true, error: undefined },
    ]);
  });

  it("shows its rate and the time that is left", async () => {
    const { clock, work, job, settle } = bench();
    job.start();
    for (let piece = 0; piece < 5; piece += 1) {
      clock.advance(1000);
      work.finish(100);
      await settle();
    }
    expect(job.describe()).toMatchObject({ bytesPerSecond: 100, etaMs: 5000 });
  });
});

describe("the list of jobs", () => {
  it("finds jobs by their ids, which are never used twice", () => {
    const list = new JobList(new ManualClock(), () => undefined);
    const one = list.start(new ManualWork());
    const two = list.start(new ManualWork());
    expect(one.id).not.toBe(two.id);
    expect(list.get(two.id)).toBe(two);
    expect(() => list.get("resync-99")).toThrow(expect.objectContaining({ code: "job-unknown" }) as Error);
  });

  it("forgets the oldest concluded jobs, and never one that is not concluded", () => {
    const list = new JobList(new ManualClock(), () => undefined);
    const running = list.start(new ManualWork());
    for (let count = 0; count < JOBS_CONCLUDED_KEPT + 10; count += 1) list.start(new ManualWork()).conclude();
    const last = list.start(new ManualWork());
    expect(list.all()).toHaveLength(JOBS_CONCLUDED_KEPT + 2);
    expect(list.all()).toContain(running);
    expect(list.all()).toContain(last);
    expect(() => list.get("resync-2")).toThrow(ColobusError);
  });

  it("ends all jobs and waits for what they have under way", async () => {
    const list = new JobList(new ManualClock(), () => undefined);
    const work = new ManualWork();
    const job = list.start(work);
    let stopped = false;
    const stopping = list.stop(new ColobusError("shutting-down", "stop")).then(() => {
      stopped = true;
    });
    await turn();
    expect(job.state).toBe("concluded");
    expect(stopped).toBe(false);
    work.finish(1);
    await stopping;
  });
});
