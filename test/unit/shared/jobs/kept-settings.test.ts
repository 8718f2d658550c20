import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../../proto/errors.ts";
import type { OperatorSettings } from "../../../../proto/state-record.ts";
import { KeptSettings, setByOperator } from "../../../../shared/jobs/kept-settings.ts";

const RUNNING = { isPaused: false };
const PAUSED = { isPaused: true };

function bench() {
  const written: OperatorSettings[] = [];
  const told: string[] = [];
  const faults: ColobusError[] = [];
  const kept = new KeptSettings<OperatorSettings>({
    recorded: RUNNING,
    write: (settings) => {
      written.push(settings);
      const fault = faults.shift();
      return fault === undefined ? Promise.resolve() : Promise.reject(fault);
    },
    failed: ({ code }) => told.push(code),
  });
  return { kept, written, told, faults };
}

describe("kept settings", () => {
  it("are written when they are others than before", async () => {
    const { kept, written } = bench();
    await kept.keep({ ...RUNNING });
    await Promise.all([kept.keep(PAUSED), kept.keep({ ...PAUSED })]);
    await kept.keep(RUNNING);
    expect(written).toEqual([PAUSED, RUNNING]);
  });

  it("that could not be written are written when they are asked for again", async () => {
    const { kept, written, told, faults } = bench();
    faults.push(new ColobusError("io-error", "the disk is broken"));
    await expect(kept.keep(PAUSED)).rejects.toMatchObject({ code: "io-error" });
    await kept.keep(PAUSED);
    expect([written, told]).toEqual([[PAUSED, PAUSED], ["io-error"]]);
  });

  it("of an operator are not what a fault has paused, nor the usual speed", () => {
    const error = new ColobusError("io-error", "a fault");
    expect(setByOperator({ speed: "dynamic", isPaused: true, error }, "dynamic")).toEqual({ isPaused: false });
    expect(setByOperator({ speed: 0, isPaused: true, error: undefined }, "dynamic")).toEqual({
      speed: 0,
      isPaused: true,
    });
  });
});
