import { describe, expect, it } from "vitest";
import { ColobusError, type ErrorCode } from "../../../proto/errors.ts";
import type { RecordedQuorum } from "../../../proto/state-record.ts";
import { changesOf } from "../../../primary/disk-forwarding.ts";

/** A disk with these rules, and how often a secondary was asked, which gives it or does not. */
function diskWith(quorum: Partial<RecordedQuorum> | undefined, gives = true) {
  const asked: number[] = [];
  const readBy: string[] = [];
  const read = (_: number, __: Uint8Array, offset: number): Promise<string | undefined> => {
    asked.push(offset);
    return Promise.resolve(gives ? "b" : undefined);
  };
  const forwarding = changesOf(0, {
    name: "vda",
    state: { record: { disks: [{ name: "vda", quorum }] } } as never,
    secondaries: () => ({ reads: { read } }) as never,
    health: { failed: () => undefined, readBy: (_, agentId) => readBy.push(agentId) },
    bitmaps: { mark: () => undefined },
    checkpoints: { countWrite: () => undefined },
  });
  const elsewhere = (error: unknown): Promise<boolean> | undefined =>
    forwarding.readElsewhere?.(Buffer.alloc(8), 512, error);
  return { asked, readBy, elsewhere };
}

const fault = (code: ErrorCode): ColobusError => new ColobusError(code, "no");
const FIFO = { readPattern: "fifo", blkverify: false } as const;

describe("a read that the copies here have failed", () => {
  it.each([undefined, FIFO])("goes on to a secondary, with rules %o", async (quorum) => {
    const disk = diskWith(quorum);
    expect(await disk.elsewhere(fault("io-error"))).toBe(true);
    expect(disk).toMatchObject({ asked: [512], readBy: ["b"] });
    const without = diskWith(quorum, false);
    expect(await without.elsewhere(fault("io-error"))).toBe(false);
    expect(without).toMatchObject({ asked: [512], readBy: [] });
  });

  it.each([
    { ...FIFO, readPattern: "quorum" },
    { ...FIFO, blkverify: true },
  ] as const)("is what the copies' comparison came to, with rules %o", (quorum) => {
    const disk = diskWith(quorum);
    expect(disk.elsewhere(fault("quorum-failure"))).toBeUndefined();
    expect(disk.elsewhere(fault("io-error"))).toBeUndefined();
    expect(disk.asked).toEqual([]);
  });

  it.each([fault("shutting-down"), fault("usage"), new TypeError("a bug")])("says so itself: %s", (error) => {
    const disk = diskWith(undefined);
    expect(disk.elsewhere(error)).toBeUndefined();
    expect(disk.asked).toEqual([]);
  });
});
