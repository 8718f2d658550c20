import { crc32 } from "node:zlib";
import { Packr } from "msgpackr";
import { describe, expect, it } from "vitest";
import { STATE_SLOT_BYTES } from "../../../../proto/limits.ts";
import { encodeStateSlot } from "../../../../proto/state-record.ts";
import { StateFile } from "../../../../shared/journal/state-file.ts";
import { MemoryStorage } from "../../../support/memory-storage.ts";
import { stateRecord } from "../../../support/state-records.ts";
import { present } from "../../../support/present.ts";

const DIRECTORY = "/state";
const PATH = `${DIRECTORY}/state`;

function newStorage(): MemoryStorage {
  const storage = new MemoryStorage();
  storage.disk.addDirectory(DIRECTORY);
  return storage;
}

async function created(storage: MemoryStorage, epoch = 0): Promise<StateFile> {
  return StateFile.create(storage, DIRECTORY, stateRecord({ epochReserved: epoch }));
}

async function setEpoch(state: StateFile, epoch: number): Promise<void> {
  await state.update((record) => ({ ...record, epochReserved: epoch }));
}

function reopened(storage: MemoryStorage, kind: "process" | "power" = "process"): number | undefined {
  storage.crash(kind);
  return StateFile.open(storage, DIRECTORY)?.record.epochReserved;
}

/** A slot whose header was changed, with the checksum that it has then. */
function sealed(slot: Buffer): Buffer {
  slot.writeUInt32BE(crc32(slot.subarray(0, 28)), 28);
  return slot;
}

function corruptSlot(storage: MemoryStorage, index: number): void {
  storage.disk.corrupt(PATH, index * STATE_SLOT_BYTES + 70);
}

describe("the state file", () => {
  it("is not there before it is made, and then holds its first record", async () => {
    const storage = newStorage();
    expect(StateFile.open(storage, DIRECTORY)).toBeUndefined();
    await created(storage, 5);
    expect(reopened(storage, "power")).toBe(5);
  });

  it("holds the last of many updates through a loss of power", async () => {
    const storage = newStorage();
    const state = await created(storage);
    for (let epoch = 1; epoch <= 9; epoch += 1) {
      await setEpoch(state, epoch);
      expect(state.record.epochReserved).toBe(epoch);
    }
    expect(reopened(storage, "power")).toBe(9);
  });

  it("gives each of several updates at once the record that the one before left", async () => {
    const storage = newStorage();
    const state = await created(storage);
    const add = (): Promise<unknown> =>
      state.update((record) => ({ ...record, epochReserved: record.epochReserved + 1 }));
    await Promise.all([add(), add(), add(), add()]);
    expect(reopened(storage, "power")).toBe(4);
  });

  it("falls back to the older record when the newest slot is torn", async () => {
    const storage = newStorage();
    const state = await created(storage, 1);
    await setEpoch(state, 2);
    await setEpoch(state, 3);
    corruptSlot(storage, 1); // sequence 3
    expect(reopened(storage)).toBe(2);
  });

  it("goes on from the older record without touching its slot", async () => {
    const storage = newStorage();
    const state = await created(storage, 1);
    await setEpoch(state, 2);
    await setEpoch(state, 3);
    corruptSlot(storage, 1);
    storage.crash("process");
    const again = present(StateFile.open(storage, DIRECTORY));
    await setEpoch(again, 9);
    corruptSlot(storage, 1);
    expect(reopened(storage)).toBe(2);
  });

  it("is refused when neither slot is sound", async () => {
    const storage = newStorage();
    const state = await created(storage, 1);
    await setEpoch(state, 2);
    corruptSlot(storage, 0);
    corruptSlot(storage, 1);
    storage.crash("process");
    expect(() => StateFile.open(storage, DIRECTORY)).toThrow(
      expect.objectContaining({ code: "state-corrupt" }) as Error,
    );
    expect(storage.openPaths).toEqual([]);
  });

  it("of a later version is refused, even beside a sound older slot", async () => {
    const storage = newStorage();
    await created(storage, 1);
    storage.crash("process");
    const newer = encodeStateSlot(2, stateRecord());
    newer.writeUInt32BE(99, 8);
    storage.disk.file(PATH).write(sealed(newer), 0);
    expect(() => StateFile.open(storage, DIRECTORY)).toThrow(/later version.*99/);
    expect(storage.openPaths).toEqual([]);
  });

  it("with a word that this release does not know is refused as well, and not taken for torn", async () => {
    const storage = newStorage();
    await created(storage, 1);
    storage.crash("process");
    const body = new Packr({ useRecords: false }).pack({ ...stateRecord(), mode: "paired" });
    const newer = encodeStateSlot(2, stateRecord());
    newer.fill(0, 64);
    body.copy(newer, 64);
    newer.writeUInt32BE(body.length, 12);
    newer.writeUInt32BE(crc32(body), 24);
    storage.disk.file(PATH).write(sealed(newer), 0);
    expect(() => StateFile.open(storage, DIRECTORY)).toThrow(
      expect.objectContaining({
        code: "state-corrupt",
        message: expect.stringMatching(/later version.*mode/),
      }) as Error,
    );
    expect(storage.openPaths).toEqual([]);
  });

  it("keeps the old record when an update cannot be written, and takes the next one", async () => {
    const storage = newStorage();
    const state = await created(storage, 1);
    await setEpoch(state, 2);
    for (const op of ["write", "sync"] as const) {
      storage.disk.faults.inject({ op, kind: "state", error: "io-error" });
      await expect(setEpoch(state, 7)).rejects.toMatchObject({ code: "io-error" });
      expect(state.record.epochReserved).toBe(2);
    }
    await setEpoch(state, 3);
    expect(reopened(storage, "power")).toBe(3);
  });

  it.each([2 ** 53, Number.POSITIVE_INFINITY, Number.NaN])(
    "takes no record that it could not read again: %d",
    async (epoch) => {
      const storage = newStorage();
      const state = await created(storage, 1);
      await expect(setEpoch(state, epoch)).rejects.toThrow("numbers");
      await setEpoch(state, 2);
      await expect(setEpoch(state, epoch)).rejects.toThrow("numbers");
      expect(reopened(storage, "power")).toBe(2);
    },
  );

  it("holds one of the two records after a failed update and a loss of power", async () => {
    const storage = newStorage();
    const state = await created(storage, 1);
    await setEpoch(state, 2);
    storage.disk.faults.inject({ op: "sync", kind: "state", error: "io-error" });
    await expect(setEpoch(state, 3)).rejects.toMatchObject({ code: "io-error" });
    expect([2, 3]).toContain(reopened(storage, "power"));
  });

  it("goes on after a change that throws", async () => {
    const storage = newStorage();
    const state = await created(storage, 1);
    const broken = state.update(() => {
      throw new Error("no");
    });
    const next = setEpoch(state, 2);
    await expect(broken).rejects.toThrow("no");
    await next;
    expect(state.record.epochReserved).toBe(2);
  });

  it("can be updated while the disk is full", async () => {
    const storage = newStorage();
    const state = await created(storage, 1);
    storage.disk.capacityBytes = 0;
    await setEpoch(state, 2);
    await setEpoch(state, 3);
    expect(reopened(storage, "power")).toBe(3);
  });

  it("is locked against a second agent, until it is closed", async () => {
    const storage = newStorage();
    const state = await created(storage);
    expect(() => StateFile.open(storage, DIRECTORY)).toThrow(expect.objectContaining({ code: "image-busy" }) as Error);
    const last = setEpoch(state, 4);
    await state.close();
    await last;
    expect(StateFile.open(storage, DIRECTORY)?.record.epochReserved).toBe(4);
  });
});

describe("a creation of the state file that was cut off", () => {
  const firstRecordBytes = encodeStateSlot(1, stateRecord());

  it.each([
    ["before anything was written", 0, 0],
    ["before the second slot was there", STATE_SLOT_BYTES + 100, 0],
    ["before the first record", 2 * STATE_SLOT_BYTES, 0],
    ["within the first record's head", 2 * STATE_SLOT_BYTES, 20],
    ["within the first record's body", 2 * STATE_SLOT_BYTES, 100],
  ])("%s counts as none, and can be repeated", async (_, sizeBytes, recordBytes) => {
    const storage = newStorage();
    storage.disk.addFile(PATH, sizeBytes);
    if (recordBytes > 0) storage.disk.file(PATH).write(firstRecordBytes.subarray(0, recordBytes), STATE_SLOT_BYTES);
    expect(StateFile.open(storage, DIRECTORY)).toBeUndefined();
    expect(storage.openPaths).toEqual([]);
    await created(storage, 3);
    expect(reopened(storage, "power")).toBe(3);
  });

  it("leaves no lock behind when it fails", async () => {
    const storage = newStorage();
    storage.disk.faults.inject({ op: "sync", kind: "state", error: "io-error" });
    await expect(created(storage)).rejects.toMatchObject({ code: "io-error" });
    expect(storage.openPaths).toEqual([]);
  });
});
