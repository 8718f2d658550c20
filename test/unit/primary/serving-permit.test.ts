import { describe, expect, it } from "vitest";
import type { ArbiterEntry } from "../../../proto/arbiter-record.ts";
import { ColobusError } from "../../../proto/errors.ts";
import { Beats } from "../../../primary/beats.ts";
import { PermittedDisk } from "../../../primary/permitted-disk.ts";
import { ServingPermit } from "../../../primary/serving-permit.ts";
import type { BlockDevice, Pending } from "../../../shared/block/block-device.ts";
import { OwnLease } from "../../../shared/arbiter/own-lease.ts";
import { COMMAND } from "../../../proto/nbd-protocol.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { MemoryArbiter } from "../../support/memory-arbiter.ts";
import { MemoryDevice } from "../../support/memory-device.ts";
import { decodeAnswers, negotiation, request, type Answer } from "../../support/nbd-client.ts";
import { NbdHarness, TestDirectory, TestExport } from "../../support/nbd-harness.ts";

const TTL_MS = 10_000;
const MARGIN_MS = 1_000;
const ENTRY: ArbiterEntry = { vm: "vm", lineage: "first", holder: "a", committed: 0, outdated: [], ttlMs: TTL_MS };
const silent = (): void => undefined;

/** A clock whose wall can be off. */
class TwoClocks extends ManualClock {
  wallOffsetMs = 0;

  override wallMs(): number {
    return super.wallMs() + this.wallOffsetMs;
  }
}

function setUp() {
  const clock = new TwoClocks();
  const arbiter = new MemoryArbiter("a");
  const log = { info: silent, debug: silent, warn: silent, error: silent };
  const lease = new OwnLease({ arbiter, agentId: "a", ttlMs: TTL_MS, clock, log, emit: silent });
  let isStoodDown = false;
  let mayTakeOver = ["b"];
  const permit = new ServingPermit({
    clock,
    lease,
    isStoodDown: () => isStoodDown,
    mayTakeOver: () => mayTakeOver,
    waiting: silent,
  });
  const beats = new Beats(clock);
  return {
    clock,
    arbiter,
    lease,
    permit,
    beat: (): number => beats.beat(),
    heard: (at: number, promiseMs: number, peer = "b"): void => {
      const sent = beats.answered(at);
      if (sent !== undefined) permit.promised(peer, sent, promiseMs);
    },
    letTakeOver: (...peers: string[]): void => {
      mayTakeOver = peers;
    },
    standDown: (): void => {
      isStoodDown = true;
    },
  };
}

async function held() {
  const parts = setUp();
  await parts.lease.claim(parts.arbiter.state, ENTRY);
  return parts;
}

describe("the permit to serve", () => {
  it("is there for the time of the lease less a margin, and not a moment longer", async () => {
    const { clock, permit } = await held();
    clock.advance(TTL_MS - MARGIN_MS - 1);
    expect(permit.isValid).toBe(true);
    clock.advance(1);
    expect(permit.isValid).toBe(false);
  });

  it.each(["claim", "renew"] as const)("counts from before the %s was sent, not from its answer", async (call) => {
    const { clock, arbiter, lease, permit } = setUp();
    if (call === "renew") {
      await lease.claim(arbiter.state, ENTRY);
      clock.advance(TTL_MS);
    }
    let answer: () => void = silent;
    arbiter.answering = new Promise((resolve) => {
      answer = resolve;
    });
    const done = call === "claim" ? lease.claim(arbiter.state, ENTRY) : lease.renew();
    await Promise.resolve();
    clock.advance(3_000);
    answer();
    await done;
    clock.advance(TTL_MS - MARGIN_MS - 3_000 - 1);
    expect(permit.isValid).toBe(true);
    clock.advance(1);
    expect(permit.isValid).toBe(false);
  });

  it("ends by the wall clock too, for a host that was suspended", async () => {
    const { clock, permit } = await held();
    clock.wallOffsetMs = TTL_MS;
    expect(permit.isValid).toBe(false);
  });

  it("is there by the secondary's promise alone, from before the ping that was answered", () => {
    const { clock, permit, beat, heard } = setUp();
    const at = beat();
    clock.advance(2_000);
    heard(at, TTL_MS);
    clock.advance(TTL_MS - MARGIN_MS - 2_000 - 1);
    expect(permit.isValid).toBe(true);
    clock.advance(1);
    expect(permit.isValid).toBe(false);
  });

  it("takes no answer to what it has not asked, and none twice", () => {
    const { clock, permit, beat, heard } = setUp();
    heard(123, TTL_MS);
    expect(permit.isValid).toBe(false);
    const at = beat();
    heard(at, TTL_MS);
    clock.advance(TTL_MS);
    heard(at, TTL_MS);
    expect(permit.isValid).toBe(false);
  });

  it("relies on no promise for longer than its own lease would last", () => {
    const { clock, permit, beat, heard } = setUp();
    heard(beat(), 10 * TTL_MS);
    clock.advance(TTL_MS);
    expect(permit.isValid).toBe(false);
  });

  it("needs the promise of each peer that could take over, and of none that could not", () => {
    const { clock, permit, beat, heard, letTakeOver } = setUp();
    letTakeOver("b", "c");
    heard(beat(), TTL_MS, "b");
    expect(permit.isValid).toBe(false);
    clock.advance(2_000);
    heard(beat(), TTL_MS, "c");
    expect(permit.isValid).toBe(true);
    clock.advance(TTL_MS - MARGIN_MS - 2_000);
    expect(permit.isPromisedBy("b")).toBe(false);
    expect(permit.isPromisedBy("c")).toBe(true);
    expect(permit.isValid).toBe(false);
    letTakeOver("c");
    expect(permit.isValid).toBe(true);
  });

  it("needs a promise even where nobody could take over", () => {
    const { permit, beat, heard, letTakeOver } = setUp();
    letTakeOver();
    expect(permit.isValid).toBe(false);
    heard(beat(), TTL_MS);
    expect(permit.isValid).toBe(true);
  });

  it("is laid down with the role, whatever the grounds", async () => {
    const { permit, standDown } = await held();
    standDown();
    expect(permit.isValid).toBe(false);
  });
});

/** A disk whose requests end when the test says so. */
function slowDisk(): { disk: BlockDevice; finish: () => void; begun: string[] } {
  const begun: string[] = [];
  let finish: () => void = silent;
  const under = (what: string): Pending => {
    begun.push(what);
    return new Promise((resolve) => {
      finish = resolve;
    });
  };
  const disk: BlockDevice = {
    sizeBytes: 4096,
    read: () => under("read"),
    write: () => under("write"),
    openWrite: () => ({ push: () => undefined, end: () => under("open write"), abandon: silent }),
    zero: () => under("zero"),
    flush: () => under("flush"),
    prefetch: silent,
    extents: async () => {
      await under("extents");
      return [];
    },
  };
  return { disk, finish: () => finish(), begun };
}

const REQUESTS: Readonly<Record<string, (disk: BlockDevice) => unknown>> = {
  "read": (disk) => disk.read(Buffer.alloc(1), 0),
  "write": (disk) => disk.write(Buffer.alloc(1), 0, { fua: false }),
  "open write": async (disk) => {
    const write = await disk.openWrite(0, 1, { fua: false });
    await write.end();
  },
  "zero": (disk) => disk.zero(0, 1, { fua: false, mayUnmap: true }),
  "flush": (disk) => disk.flush(),
  "extents": (disk) => disk.extents(0, 1, 1),
};

async function turns(): Promise<void> {
  for (let count = 0; count < 20; count += 1) await Promise.resolve();
}

describe.each(Object.entries(REQUESTS))("a guest's %s", (name, ask) => {
  const reason = new ColobusError("lease-refused", "another one serves");

  function asked(disk: BlockDevice): { outcome: string } {
    const seen = { outcome: "waits" };
    Promise.resolve(ask(disk)).then(
      () => (seen.outcome = "done"),
      (error: unknown) => (seen.outcome = error instanceof ColobusError ? error.code : "threw"),
    );
    return seen;
  }

  it("that was begun under the permit waits when it is done outside, until the permit is renewed", async () => {
    const { clock, arbiter, lease, permit } = await held();
    const { disk, finish } = slowDisk();
    const seen = asked(new PermittedDisk(disk, permit));
    await turns();
    clock.advance(TTL_MS);
    finish();
    await turns();
    expect(seen.outcome).toBe("waits");
    await lease.claim(arbiter.state, ENTRY);
    permit.changed();
    await turns();
    expect(seen.outcome).toBe("done");
  });

  it("that was begun under the permit fails when another one serves meanwhile", async () => {
    const { clock, permit } = await held();
    const { disk, finish } = slowDisk();
    const seen = asked(new PermittedDisk(disk, permit));
    await turns();
    clock.advance(TTL_MS);
    finish();
    await turns();
    permit.refuse(reason);
    await turns();
    expect(seen.outcome).toBe("lease-refused");
  });

  it("that comes outside the permit touches nothing before it is renewed", async () => {
    const { arbiter, lease, permit } = setUp();
    const { disk, begun, finish } = slowDisk();
    const seen = asked(new PermittedDisk(disk, permit));
    await turns();
    expect(begun).toEqual([]);
    await lease.claim(arbiter.state, ENTRY);
    permit.changed();
    await turns();
    expect(begun).toEqual([name]);
    finish();
    await turns();
    expect(seen.outcome).toBe("done");
  });
});

describe("a guest's read of many blocks, of which some are zero", () => {
  const LENGTH = 128 * 1024;
  const DATA_BYTES = 32 * 1024;
  const EIO = 5;

  /** An NBD client that reads them, of a disk that answers at once. */
  function guest(permit: Pick<ServingPermit, "admit" | "isValid">) {
    const disk = new MemoryDevice(LENGTH);
    void disk.write(Buffer.alloc(DATA_BYTES, 7), 0, { fua: false });
    const harness = new NbdHarness(new TestDirectory(new TestExport("vda", new PermittedDisk(disk, permit))));
    harness.send(negotiation("vda", { structured: true, allocation: true }));
    harness.takeOutput();
    return {
      harness,
      read: (): void => harness.send(request({ type: COMMAND.READ, cookie: 1, offset: 0, length: LENGTH })),
      answers: async (): Promise<Answer[]> => {
        await harness.settle();
        return decodeAnswers(harness.takeOutput(), () => LENGTH);
      },
    };
  }

  it("waits outside the permit, and is answered when that is renewed", async () => {
    const { arbiter, lease, permit } = setUp();
    const { harness, read, answers } = guest(permit);
    read();
    expect(await answers()).toEqual([]);
    await lease.claim(arbiter.state, ENTRY);
    permit.changed();
    const [answer] = await answers();
    expect(answer?.error).toBe(0);
    expect(answer?.data.subarray(0, DATA_BYTES).equals(Buffer.alloc(DATA_BYTES, 7))).toBe(true);
    expect(answer?.data.subarray(DATA_BYTES).equals(Buffer.alloc(LENGTH - DATA_BYTES))).toBe(true);
    expect(harness.log.errors).toEqual([]);
  });

  it.each(["before it", "while it waits"])(
    "fails when another one serves, found out %s, and nothing else does",
    async (when) => {
      const { permit } = setUp();
      const { harness, read, answers } = guest(permit);
      const refuse = (): void => permit.refuse(new ColobusError("lease-refused", "another one serves"));
      if (when === "before it") refuse();
      read();
      if (when !== "before it") refuse();
      expect(await answers()).toMatchObject([{ error: EIO, message: "another one serves" }]);
      expect(harness.log.errors).toEqual([]);
    },
  );

  it("is taken as data when the permit lapses between two looks at it", async () => {
    const { arbiter, lease, permit } = setUp();
    const { read, answers } = guest({
      isValid: true, // at the first look
      admit: () => permit.admit(),
    });
    read();
    expect(await answers()).toEqual([]);
    await lease.claim(arbiter.state, ENTRY);
    permit.changed();
    expect(await answers()).toMatchObject([{ error: 0 }]);
  });
});
