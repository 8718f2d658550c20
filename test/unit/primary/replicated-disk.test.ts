import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../proto/errors.ts";
import { GuestGate } from "../../../primary/guest-gate.ts";
import { ReplicatedDisk, type Forwarding, type SyncContent } from "../../../primary/replicated-disk.ts";
import type { Pending } from "../../../shared/block/block-device.ts";
import { WRITE_AHEAD_BYTES } from "../../../proto/limits.ts";
import { deferred } from "../../support/deferred.ts";
import { MemoryDevice } from "../../support/memory-device.ts";
import { turn } from "../../support/memory-storage.ts";

const SIZE = 64 * 1024;
const NO_FLAGS = { fua: false } as const;

class Recorder implements Forwarding {
  readonly forwarded: string[] = [];
  readonly failures: string[] = [];
  acknowledgement: Pending;
  marking: Pending;
  space: Pending;

  mark(): Pending {
    return this.marking;
  }

  forward(kind: string, offset: number, length: number, payload: Buffer | undefined): Pending {
    this.forwarded.push(`${kind} ${offset}+${length}${payload === undefined ? "" : ` ${payload.toString()}`}`);
    return this.acknowledgement;
  }

  room(): Pending {
    return this.space;
  }

  flush(): Pending {
    this.forwarded.push("flush");
    return undefined;
  }

  failed(offset: number, length: number): void {
    this.failures.push(`${offset}+${length}`);
  }

  refused(during: "read" | "flush", offset: number, length: number): void {
    this.failures.push(`${during} ${offset}+${length}`);
  }
}

function bench(): { child: MemoryDevice; gate: GuestGate; forwarding: Recorder; disk: ReplicatedDisk } {
  const child = new MemoryDevice(SIZE);
  const gate = new GuestGate();
  const forwarding = new Recorder();
  return { child, gate, forwarding, disk: new ReplicatedDisk("vda", child, child, gate, forwarding) };
}

async function isDone(pending: Pending): Promise<boolean> {
  let done = pending === undefined;
  void pending?.then(() => {
    done = true;
  });
  await turn();
  return done;
}

describe("a replicated disk", () => {
  it("gives every change to the child and to the stream", () => {
    const { child, forwarding, disk } = bench();
    expect(disk.write(Buffer.from("abc"), 10, NO_FLAGS)).toBeUndefined();
    expect(disk.zero(0, 5, { fua: false, mayUnmap: false })).toBeUndefined();
    expect(disk.zero(5, 5, { fua: false, mayUnmap: true })).toBeUndefined();
    expect(forwarding.forwarded).toEqual(["write 10+3 abc", "zero 0+5", "discard 5+5"]);
    expect(child.bytes.toString("latin1", 10, 13)).toBe("abc");
  });

  it("lets the guest wait for the acknowledgement and for room, and nobody else", async () => {
    for (const waitsFor of ["acknowledgement", "space"] as const) {
      const { forwarding, disk } = bench();
      const gate = deferred();
      forwarding[waitsFor] = gate.promise;
      const first = disk.write(Buffer.from("a"), 0, NO_FLAGS);
      forwarding[waitsFor] = undefined;
      expect(disk.write(Buffer.from("b"), 0, NO_FLAGS)).toBeUndefined();
      expect(await isDone(first)).toBe(false);
      gate.resolve();
      expect(await isDone(first)).toBe(true);
    }
  });

  it("keeps overlapping changes in one order everywhere, while the child is slow", async () => {
    const { child, forwarding, disk } = bench();
    const slow = deferred();
    child.gate = (operation) => (operation.kind === "write" && operation.offset === 0 ? slow.promise : undefined);
    const first = disk.write(Buffer.from("first"), 0, NO_FLAGS);
    const second = disk.write(Buffer.from("second"), 3, NO_FLAGS);
    const apart = disk.write(Buffer.from("apart"), 100, NO_FLAGS);
    expect(apart).toBeUndefined();
    expect(await isDone(second)).toBe(false);
    slow.resolve();
    await Promise.all([first, second]);
    expect(forwarding.forwarded).toEqual(["write 0+5 first", "write 100+5 apart", "write 3+6 second"]);
    expect(child.bytes.toString("latin1", 0, 9)).toBe("firsecond");
  });

  it("holds the range of a write whose payload is still arriving", async () => {
    const { forwarding, disk } = bench();
    const open = await disk.openWrite(0, 8, NO_FLAGS);
    await open.push(Buffer.from("1234"));
    const other = disk.write(Buffer.from("x"), 7, NO_FLAGS);
    await open.push(Buffer.from("5678"));
    expect(await isDone(other)).toBe(false);
    await open.end();
    await other;
    expect(forwarding.forwarded).toEqual(["write 0+4 1234", "write 4+4 5678", "write 7+1 x"]);
  });

  it("gives the range back when the payload never arrives", async () => {
    const { disk } = bench();
    const open = await disk.openWrite(0, 8, NO_FLAGS);
    await open.push(Buffer.from("1234"));
    open.abandon();
    expect(disk.write(Buffer.from("x"), 0, NO_FLAGS)).toBeUndefined();
  });

  it.each(["at once", "later"])(
    "reports a child that fails %s, tells the guest, and gives the range back",
    async (when) => {
      const { child, forwarding, disk } = bench();
      const failure = new Error("bad sector");
      child.gate = () => {
        if (when === "at once") throw failure;
        return Promise.reject(failure);
      };
      const attempts = [
        () => disk.write(Buffer.from("abc"), 0, NO_FLAGS),
        () => disk.zero(0, 3, { fua: false, mayUnmap: true }),
      ];
      for (const attempt of attempts) await expect((async () => attempt())()).rejects.toBe(failure);
      expect(forwarding.failures).toEqual(["0+3", "0+3"]);
      child.gate = undefined;
      expect(disk.write(Buffer.from("x"), 0, NO_FLAGS)).toBeUndefined();
    },
  );

  it("flushes what the acknowledgement policy covers, and on force-unit-access too", async () => {
    const { child, forwarding, disk } = bench();
    child.operations = [];
    await disk.flush();
    const open = await disk.openWrite(0, 1, { fua: true });
    await open.push(Buffer.from("x"));
    await open.end();
    expect(forwarding.forwarded).toEqual(["flush", "write 0+1 x", "flush"]);
    expect(child.operations.filter(({ kind }) => kind === "flush")).toHaveLength(2);
  });
});

describe("a replicated disk whose guests are refused", () => {
  const refusal = new ColobusError("handed-over", "this side is not Primary any more");

  it("leaves the child alone where a change has waited for its mark", async () => {
    const { child, gate, forwarding, disk } = bench();
    const mark = deferred();
    forwarding.marking = mark.promise;
    const writing = disk.write(Buffer.from("late"), 0, NO_FLAGS);
    gate.refuse(refusal);
    mark.resolve();
    await expect(writing).rejects.toThrow(refusal);
    expect(child.bytes.subarray(0, 4)).toEqual(Buffer.alloc(4));
    expect(forwarding.forwarded).toEqual([]);
    expect(disk.isBusy(0, SIZE)).toBe(false);
  });

  it("leaves the child alone where the payload is still arriving", async () => {
    const { child, gate, forwarding, disk } = bench();
    const open = await disk.openWrite(0, 8, NO_FLAGS);
    void open.push(Buffer.from("soon"));
    gate.refuse(refusal);
    expect(() => open.push(Buffer.from("late"))).toThrow(refusal);
    open.abandon();
    expect(child.bytes.subarray(0, 8)).toEqual(Buffer.from("soon\0\0\0\0"));
    expect(forwarding.forwarded).toEqual(["write 0+4 soon"]);
    expect(disk.isBusy(0, SIZE)).toBe(false);
  });

  it("waits for what the child has under way, whether that fails or not", async () => {
    const { child, gate, disk } = bench();
    const writes = [deferred(), deferred()];
    child.write = () => writes.shift()?.promise;
    const [one, other] = [...writes];
    const results = Promise.allSettled([
      disk.write(Buffer.from("a"), 0, NO_FLAGS),
      disk.write(Buffer.from("b"), 1, NO_FLAGS),
    ]);
    gate.refuse(refusal);
    const quiet = disk.quiet();
    one?.resolve();
    expect(await isDone(quiet)).toBe(false);
    other?.reject(new Error("no"));
    await quiet;
    expect((await results).map(({ status }) => status)).toEqual(["fulfilled", "rejected"]);
  });
});

describe("a long write to a child that takes its time", () => {
  async function opened() {
    const made = bench();
    const pieces = [deferred(), deferred()];
    let writes = 0;
    made.child.gate = ({ kind }) => (kind === "write" ? pieces[writes++]?.promise : undefined);
    const open = await made.disk.openWrite(0, 2, { fua: true });
    return { ...made, open, pieces };
  }

  it("says that it is behind with its pieces, which another child is not", async () => {
    const { open, pieces } = await opened();
    expect(open.isBehind?.()).toBe(false);
    expect(open.push(Buffer.from("a"))).toBeUndefined();
    expect(open.isBehind?.()).toBe(true);
    pieces[0]?.resolve();
    open.abandon();
    const prompt = await bench().disk.openWrite(0, 2, NO_FLAGS);
    expect(prompt.push(Buffer.from("a"))).toBeUndefined();
    expect(prompt.isBehind?.()).toBe(false);
    prompt.abandon();
  });

  it("tells the child that what it is given is lent", async () => {
    const { child, disk } = bench();
    const lent: unknown[] = [];
    child.write = (_, __, { isLent }) => void lent.push(isLent);
    for (const isLent of [true, false]) {
      const flags = { fua: false, isLent };
      await disk.write(Buffer.from("ab"), 0, flags);
      const open = await disk.openWrite(0, 1, flags);
      await open.push(Buffer.from("a"));
      await open.end();
    }
    expect(lent).toEqual([true, true, false, false]);
  });

  it("has several pieces under way, and is done, flushed and released when all of them are written", async () => {
    const { child, disk, open, pieces } = await opened();
    child.operations = [];
    expect(open.push(Buffer.from("a"))).toBeUndefined();
    expect(open.push(Buffer.from("b"))).toBeUndefined();
    const ended = open.end();
    pieces[1]?.resolve();
    expect(await isDone(ended)).toBe(false);
    expect(disk.isBusy(0, 2)).toBe(true);
    expect(child.operations.some(({ kind }) => kind === "flush")).toBe(false);
    pieces[0]?.resolve();
    await ended;
    expect(disk.isBusy(0, 2)).toBe(false);
    expect(child.operations.at(-1)?.kind).toBe("flush");
  });

  it.each(["end", "abandon"] as const)(
    "keeps its range after a failure, and %s, while a piece is under way",
    async (how) => {
      const { disk, open, pieces, forwarding } = await opened();
      void open.push(Buffer.from("a"));
      void open.push(Buffer.from("b"));
      const ended = how === "end" ? open.end() : undefined;
      if (how === "abandon") open.abandon();
      ended?.catch(() => undefined); // awaited below
      pieces[0]?.reject(new Error("broken"));
      await turn();
      expect(disk.isBusy(0, 2)).toBe(true);
      pieces[1]?.resolve();
      if (how === "end") await expect(ended).rejects.toThrow("broken");
      await turn();
      expect(disk.isBusy(0, 2)).toBe(false);
      expect(forwarding.failures).toEqual(["0+1"]);
    },
  );

  it("takes no further piece while too much is under way", async () => {
    const child = new MemoryDevice(2 * WRITE_AHEAD_BYTES);
    const slow = deferred();
    child.gate = ({ kind }) => (kind === "write" ? slow.promise : undefined);
    const disk = new ReplicatedDisk("vda", child, child, new GuestGate(), new Recorder());
    const open = await disk.openWrite(0, 2 * WRITE_AHEAD_BYTES, NO_FLAGS);
    expect(open.push(Buffer.alloc(WRITE_AHEAD_BYTES))).toBeUndefined();
    const pushed = open.push(Buffer.alloc(1));
    expect(await isDone(pushed)).toBe(false);
    slow.resolve();
    expect(await isDone(pushed)).toBe(true);
  });
});

describe("a replicated disk that is read for a sync", () => {
  async function readForSync(
    disk: ReplicatedDisk,
    offset: number,
    length: number,
  ): Promise<{ content: SyncContent | undefined; covered: number }> {
    let content: SyncContent | undefined;
    const covered = await disk.readForSync(
      offset,
      length,
      () => Buffer.alloc(8192),
      4096,
      (read) => {
        content = read;
      },
    );
    return { content, covered };
  }

  it("gives data in pieces, zeroes as a length, and holes as far as they go in whole clusters", async () => {
    const { disk } = bench();
    await disk.write(Buffer.alloc(16_384, 1), 32_768, NO_FLAGS);
    await disk.write(Buffer.alloc(4096), 0, NO_FLAGS);
    expect(await readForSync(disk, 0, SIZE)).toEqual({ content: 8192, covered: 8192 });
    expect(await readForSync(disk, 8192, SIZE - 8192)).toEqual({ content: 24_576, covered: 24_576 });
    expect(await readForSync(disk, 32_768, 32_768)).toEqual({ content: Buffer.alloc(8192, 1), covered: 8192 });
    expect(await readForSync(disk, 49_152, 16_384)).toEqual({ content: 16_384, covered: 16_384 });
  });

  it("sees no write half, and lets none come between reading and sending", async () => {
    const { child, forwarding, disk } = bench();
    await disk.write(Buffer.alloc(4096, 1), 0, NO_FLAGS);
    const slow = deferred();
    child.gate = (operation) => (operation.kind === "read" ? slow.promise : undefined);
    const order: string[] = [];
    const reading = disk.readForSync(
      0,
      4096,
      () => Buffer.alloc(4096),
      4096,
      () => void order.push("sent"),
    );
    await turn();
    const writing = disk.write(Buffer.from("new"), 0, NO_FLAGS);
    void writing?.then(() => order.push("written"));
    await turn();
    expect(forwarding.forwarded).toHaveLength(1);
    slow.resolve();
    await reading;
    await writing;
    expect(order).toEqual(["sent", "written"]);
  });

  it("gives the range back when it cannot be read, or what was read cannot be sent", async () => {
    const { child, disk } = bench();
    await disk.write(Buffer.alloc(4096, 1), 0, NO_FLAGS);
    child.gate = (operation) => (operation.kind === "read" ? Promise.reject(new Error("bad sector")) : undefined);
    await expect(readForSync(disk, 0, 4096)).rejects.toThrow("bad sector");
    child.gate = undefined;
    const unsendable = (): never => {
      throw new Error("no session");
    };
    await expect(disk.readForSync(0, 4096, () => Buffer.alloc(4096), 4096, unsendable)).rejects.toThrow("no session");
    expect(disk.write(Buffer.from("x"), 0, NO_FLAGS)).toBeUndefined();
  });

  it("makes overlapping changes in the order in which they came, also where guests were held meanwhile", async () => {
    const { gate, forwarding, disk } = bench();
    const [early, late] = [deferred(), deferred()];
    forwarding.marking = early.promise;
    const first = disk.write(Buffer.from("first"), 0, NO_FLAGS);
    const second = disk.write(Buffer.from("second"), 4, NO_FLAGS);
    forwarding.marking = late.promise;
    const apart = disk.write(Buffer.from("apart"), 12, NO_FLAGS);
    // It waits for both, the one that is done with its mark while guests are held, and the one that is not.
    const third = disk.write(Buffer.from("third"), 8, NO_FLAGS);
    forwarding.marking = undefined;
    gate.hold();
    early.resolve();
    await turn();
    gate.open();
    await turn();
    late.resolve();
    await Promise.all([first, second, apart, third]);
    const order = forwarding.forwarded.map((each) => each.split(" ")[2]);
    expect(order.indexOf("third")).toBe(3);
    expect(order.filter((each) => each !== "apart")).toEqual(["first", "second", "third"]);
  });

  it("is drained while guests are held when what has passed is done, whoever waits", async () => {
    const { child, gate, forwarding, disk } = bench();
    const [slow, marking] = [deferred(), deferred()];
    child.gate = (operation) => (operation.kind === "write" && operation.offset === 0 ? slow.promise : undefined);
    const passed = disk.write(Buffer.from("first"), 0, NO_FLAGS);
    forwarding.marking = marking.promise;
    const second = disk.write(Buffer.from("second"), 3, NO_FLAGS);
    const apart = disk.write(Buffer.from("apart"), 100, NO_FLAGS);
    forwarding.marking = undefined;
    gate.hold();
    const drained = disk.drained();
    marking.resolve();
    expect(await isDone(drained)).toBe(false);
    slow.resolve();
    expect(await isDone(drained)).toBe(true);
    await passed;
    expect(forwarding.forwarded).toEqual(["write 0+5 first"]);
    gate.open();
    await Promise.all([second, apart]);
  });

  it("leaves the child alone while guests are held, and says nothing of what is allocated", () => {
    const { gate, disk } = bench();
    expect(disk.extents(0, SIZE, 1)).toEqual([{ length: SIZE, hole: true, zero: true }]);
    gate.hold();
    expect(disk.extents(0, SIZE, 1)).toEqual([{ length: SIZE, hole: false, zero: false }]);
  });

  it("is idle when no read is under way, and tries nothing again until guests go on", async () => {
    const { child, gate, disk } = bench();
    const slow = deferred();
    const asked: string[] = [];
    child.gate = ({ kind }) => {
      asked.push(kind);
      return kind === "read" ? slow.promise : undefined;
    };
    const reading = disk.read(Buffer.alloc(512), 0);
    const trying = disk.tryAgain(4096, 512, true);
    await turn();
    gate.hold();
    const idle = disk.idle();
    expect(await isDone(idle)).toBe(false);
    slow.resolve();
    expect(await isDone(idle)).toBe(true);
    await reading;
    expect(await trying).toBe(false);
    expect(await disk.tryAgain(0, 512, false)).toBe(false);
    expect(asked).toEqual(["read", "read"]);
    gate.open();
    expect(await disk.tryAgain(0, 512, true)).toBe(true);
    expect(asked).toEqual(["read", "read", "read", "write"]);
  });
});
