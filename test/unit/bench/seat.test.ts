import { describe, expect, it, onTestFinished, vi } from "vitest";
import type { Contestant } from "../../bench/contestant.ts";
import { namedWithLoss, Seat, stopAll } from "../../bench/seat.ts";

class FakeContestant implements Contestant {
  readonly directory = "";
  readonly name = "fake";
  readonly uris = [];
  readonly processes = new Map<string, number>();
  isStopped = false;

  idle(): Promise<void> {
    return Promise.resolve();
  }

  stop(): Promise<void> {
    this.isStopped = true;
    return Promise.resolve();
  }
}

/** A seat, all who have sat in it, and what was said aloud. */
function seated(start = () => Promise.resolve(new FakeContestant())) {
  const said: string[] = [];
  const stderr = vi.spyOn(process.stderr, "write").mockImplementation((text) => said.push(String(text)) > 0);
  onTestFinished(() => stderr.mockRestore());
  const started: FakeContestant[] = [];
  const seat = new Seat("fake", async () => {
    const contestant = await start();
    started.push(contestant);
    return contestant;
  });
  return { seat, started, said };
}

const failing = (): Promise<never> => Promise.reject(new Error("it hangs"));

describe("a contestant", () => {
  it("is started once, and measured by the same processes in all rounds", async () => {
    const { seat, started, said } = seated();
    for (const round of [1, 2, 3]) expect(await seat.measure("load", () => Promise.resolve(round))).toBe(round);
    expect(started.length).toBe(1);
    expect(said).toEqual([]);
  });

  it("that fails loses that round alone, aloud, and is started anew", async () => {
    const { seat, started, said } = seated();
    expect(await seat.measure("load, round 1", failing)).toBeUndefined();
    expect(started.map(({ isStopped }) => isStopped)).toEqual([true]);
    expect(said).toEqual(["bench: fake: load, round 1: this round is lost: it hangs\n"]);
    expect(await seat.measure("load, round 2", (contestant) => Promise.resolve(contestant === started[1]))).toBe(true);
    await stopAll([seat]);
    expect(started.map(({ isStopped }) => isStopped)).toEqual([true, true]);
  });

  it("that fails says of itself what may tell why", async () => {
    const { seat, said } = seated(() =>
      Promise.resolve(Object.assign(new FakeContestant(), { explain: () => Promise.resolve("0 MiB are free") })),
    );
    expect(await seat.measure("load", failing)).toBeUndefined();
    expect(said).toEqual(["bench: fake: load: this round is lost: it hangs. 0 MiB are free\n"]);
  });

  it("that does not start, or does not end, ends nothing but its round", async () => {
    let starts = 0;
    const { seat, said } = seated(() => {
      starts += 1;
      if (starts === 1) return failing();
      const contestant = new FakeContestant();
      contestant.stop = failing;
      return Promise.resolve(contestant);
    });
    expect(await seat.measure("load", () => Promise.resolve(1))).toBeUndefined();
    expect(await seat.measure("load", failing)).toBeUndefined();
    expect(await seat.measure("load", () => Promise.resolve(3))).toBe(3);
    expect(said.length).toBe(3);
  });

  it("is named with what is missing of it", () => {
    expect(namedWithLoss("fake", 3, 3)).toBe("fake");
    expect(namedWithLoss("fake", 2, 3)).toBe("fake (2 of 3 rounds)");
  });
});
