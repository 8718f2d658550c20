import { crc32 } from "node:zlib";
import { describe, expect, it } from "vitest";
import type { VmStateMark } from "../../../proto/state-record.ts";
import { encodeVmStateChunkHead, VmStateCount } from "../../../proto/vmstate-format.ts";
import type { VmStateStore } from "../../../secondary/vm-state-store.ts";
import type { MemoryStorage } from "../../support/memory-storage.ts";
import { seededStorage } from "../../support/overlay-bench.ts";
import { STATE_DIRECTORY } from "../../support/replica-bench.ts";
import { vmStatesOf } from "../../support/vm-states-of.ts";

const CHUNKS = [Buffer.from("first"), Buffer.from("second"), Buffer.from("third")];

function open(): { storage: MemoryStorage; store: VmStateStore } {
  const storage = seededStorage(1);
  storage.disk.addDirectory(STATE_DIRECTORY);
  return { storage, store: vmStatesOf(storage) };
}

function markOf(chunks: readonly Buffer[]): VmStateMark {
  const count = new VmStateCount();
  for (const chunk of chunks) count.add(encodeVmStateChunkHead(chunk.length, crc32(chunk)), chunk.length);
  return count.mark;
}

function send(store: VmStateStore, epoch: number, chunks: readonly Buffer[] = CHUNKS): VmStateMark {
  for (const [index, chunk] of chunks.entries()) store.append(epoch, index, crc32(chunk), chunk);
  return markOf(chunks);
}

async function readAll(store: VmStateStore, epoch: number, mark: VmStateMark): Promise<string> {
  const pieces: Buffer[] = [];
  for await (const piece of store.read(epoch, mark)) pieces.push(piece);
  return Buffer.concat(pieces).toString();
}

const files = (storage: MemoryStorage): string[] => storage.list(`${STATE_DIRECTORY}/vmstate`);

describe("the store of VM states", () => {
  it("has what was sealed after a loss of power, and nothing of what was not", async () => {
    const { storage, store } = open();
    store.keepOnly([4, 5]);
    const mark = send(store, 4);
    await store.seal(4, mark);
    send(store, 5);
    storage.crash("power");
    const later = vmStatesOf(storage);
    later.keepOnly([4]);
    await later.settled();
    expect(files(storage)).toEqual(["4.state"]);
    expect(await readAll(later, 4, mark)).toBe("firstsecondthird");
  });

  it("refuses a chunk that is damaged, or not the next one", () => {
    const { store } = open();
    store.keepOnly([4]);
    expect(() => store.append(4, 0, 1, Buffer.from("x"))).toThrow(/fails its checksum/);
    send(store, 4, CHUNKS.slice(0, 1));
    const chunk = Buffer.from("late");
    expect(() => store.append(4, 2, crc32(chunk), chunk)).toThrow(/chunk 2 after 1/);
  });

  it("seals nothing that is not what was sent", async () => {
    const { storage, store } = open();
    store.keepOnly([4]);
    send(store, 4, CHUNKS.slice(0, 2));
    await expect(store.seal(4, markOf(CHUNKS))).rejects.toMatchObject({ code: "protocol-error" });
    await store.settled();
    expect(files(storage)).toEqual([]);
    await expect(store.seal(4, markOf(CHUNKS))).rejects.toMatchObject({ code: "vmstate-interrupted" });
  });

  it("gives away no end of a state that is another one's", async () => {
    const { store } = open();
    store.keepOnly([4]);
    await store.seal(4, send(store, 4));
    const other = { ...markOf(CHUNKS), checksum: 1 };
    const read: string[] = [];
    const reading = (async () => {
      for await (const piece of store.read(4, other)) read.push(piece.toString());
    })();
    await expect(reading).rejects.toMatchObject({ code: "state-corrupt" });
    expect(read).toEqual(["first", "second"]);
  });

  it("keeps a file until its last reader has left", async () => {
    const { storage, store } = open();
    store.keepOnly([4]);
    const mark = send(store, 4);
    await store.seal(4, mark);
    const reading = store.read(4, mark);
    expect((await reading.next()).value?.toString()).toBe("first");
    store.keepOnly([]);
    await store.settled();
    expect(files(storage)).toEqual(["4.state"]);
    await reading.return();
    await store.settled();
    expect(files(storage)).toEqual([]);
  });
});
