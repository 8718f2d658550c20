import { crc32 } from "node:zlib";
import { describe, expect, it } from "vitest";
import {
  JOURNAL_FRAME_MAX_ENTRIES,
  JOURNAL_HEADER_BYTES,
  type JournalEntry,
} from "../../../../proto/cluster-journal-format.ts";
import { CLUSTER_JOURNAL_VERSION } from "../../../../proto/versions.ts";
import { ClusterJournal, scanClusterJournal } from "../../../../shared/journal/cluster-journal.ts";
import { MemoryStorage, turn } from "../../../support/memory-storage.ts";
import { seededStorage } from "../../../support/overlay-bench.ts";
import { present } from "../../../support/present.ts";

const PATH = "/journal";
const EXPECTED = { kind: "active", diskSizeBytes: 1 << 20, clusterBytes: 4096, epoch: 3 } as const;
const ID = Buffer.alloc(16, 0x5a);

function held(firstCluster: number): JournalEntry {
  return { firstCluster, clusterCount: 1, mask: 0xffff_ffff, operation: "held" };
}

function create(storage: MemoryStorage): ClusterJournal {
  return ClusterJournal.create(storage, PATH, { ...EXPECTED, id: ID });
}

/** First clusters of the entries that an open finds; undefined where there is no journal to be opened. */
function opened(
  storage: MemoryStorage,
  options: { onlySynced?: boolean } = {},
): { journal: ClusterJournal; found: number[] } {
  const found: number[] = [];
  const journal = present(
    ClusterJournal.open(storage, PATH, EXPECTED, (entry) => found.push(entry.firstCluster), options),
  );
  return { journal, found };
}

function foundBy(storage: MemoryStorage, options: { onlySynced?: boolean } = {}): number[] {
  const { journal, found } = opened(storage, options);
  journal.close();
  return found;
}

describe("the cluster journal", () => {
  it("brings entries back in order, and goes on behind them", () => {
    const storage = new MemoryStorage();
    const first = create(storage);
    first.append([held(1), held(2)]);
    first.append([held(3)]);
    first.close();
    const second = opened(storage);
    expect(second.found).toEqual([1, 2, 3]);
    second.journal.append([held(4)]);
    second.journal.close();
    expect(foundBy(storage)).toEqual([1, 2, 3, 4]);
  });

  it.each([
    ["a later version", 8, CLUSTER_JOURNAL_VERSION + 1],
    ["a kind that this one does not know", 12, 99],
  ])("of %s is refused, and left as it is", (_, offset, value) => {
    const storage = new MemoryStorage();
    const journal = create(storage);
    journal.append([held(1)]);
    journal.close();
    const file = storage.disk.file(PATH);
    const header = Buffer.alloc(JOURNAL_HEADER_BYTES);
    file.content.read(header, 0);
    header.writeUInt32BE(value, offset);
    header.writeUInt32BE(crc32(header.subarray(0, 60)), 60);
    file.write(header, 0);
    const { sizeBytes } = file.content;
    expect(() => opened(storage)).toThrow(
      expect.objectContaining({ code: "state-corrupt", message: expect.stringContaining("later version") }) as Error,
    );
    expect(file.content.sizeBytes).toBe(sizeBytes);
    expect(storage.openPaths).toEqual([]);
  });

  it("replaces what a crash left at its path", () => {
    const storage = new MemoryStorage();
    const old = create(storage);
    old.append([held(1)]);
    old.close();
    create(storage).close();
    expect(foundBy(storage)).toEqual([]);
  });

  it("takes more entries at once than a frame has room for", () => {
    const storage = new MemoryStorage();
    const journal = create(storage);
    const clusters = Array.from({ length: 3 * JOURNAL_FRAME_MAX_ENTRIES + 1 }, (_, index) => index);
    for (let copy = 0; copy < 6; copy += 1) journal.append(clusters.map(held));
    journal.append([]);
    expect(journal.sequence).toBe(6 * 4);
    journal.close();
    // More than one read of the file's window.
    expect(foundBy(storage)).toEqual(Array.from({ length: 6 }, () => clusters).flat());
  });

  it.each(["kind", "diskSizeBytes", "clusterBytes", "epoch"] as const)("of another %s is none", (field) => {
    const storage = new MemoryStorage();
    create(storage).close();
    const expected = { ...EXPECTED, ...(field === "kind" ? { kind: "merge" as const } : { [field]: 8192 }) };
    expect(ClusterJournal.open(storage, PATH, expected, () => undefined)).toBeUndefined();
    expect(storage.openPaths).toEqual([]);
  });

  it("cut at any byte shows the entries of its whole frames, and goes on from there", () => {
    const source = new MemoryStorage();
    const journal = create(source);
    const ends = [JOURNAL_HEADER_BYTES];
    for (const [index, entries] of [[held(0)], [held(1), held(2)], [held(3)]].entries()) {
      journal.append(entries);
      if (index === 1) journal.appendSyncMark(1);
      ends.push(journal.sizeBytes);
    }
    const bytes = source.disk.readFile(PATH);
    const entriesAt = [[], [0], [0, 1, 2], [0, 1, 2, 3]];
    const cutAt = (length: number): MemoryStorage => {
      const storage = new MemoryStorage();
      storage.disk.addFile(PATH, length, bytes.subarray(0, length));
      return storage;
    };
    for (let length = 0; length < JOURNAL_HEADER_BYTES; length += 1) {
      expect(ClusterJournal.open(cutAt(length), PATH, EXPECTED, () => undefined)).toBeUndefined();
    }
    for (let length = JOURNAL_HEADER_BYTES; length <= bytes.length; length += 1) {
      const storage = cutAt(length);
      // The mark lies behind the second frame, and has no entries.
      const whole = ends.filter((end, index) => (index === 2 ? end - 16 : end) <= length).length - 1;
      const { journal: reopened, found } = opened(storage);
      expect(found).toEqual(entriesAt[whole]);
      reopened.append([held(9)]);
      reopened.close();
      expect(foundBy(storage)).toEqual([...(entriesAt[whole] ?? []), 9]);
    }
  });

  it("shows a prefix of what was written, whichever byte is flipped", () => {
    const source = new MemoryStorage();
    const journal = create(source);
    for (let cluster = 0; cluster < 4; cluster += 1) journal.append([held(cluster)]);
    const bytes = source.disk.readFile(PATH);
    for (let offset = 0; offset < bytes.length; offset += 1) {
      for (const mask of [0x01, 0x40, 0xff]) {
        const damaged = Buffer.from(bytes);
        damaged[offset] = (damaged[offset] ?? 0) ^ mask;
        const storage = new MemoryStorage();
        storage.disk.addFile(PATH, damaged.length, damaged);
        const found: number[] = [];
        const reopened = ClusterJournal.open(storage, PATH, EXPECTED, (entry) => found.push(entry.firstCluster));
        const sound = Math.max(0, Math.floor((offset - JOURNAL_HEADER_BYTES) / 32));
        expect([found, reopened !== undefined]).toEqual([[0, 1, 2, 3].slice(0, sound), offset >= JOURNAL_HEADER_BYTES]);
      }
    }
  });

  it("writes over what a failed append has left", () => {
    const storage = new MemoryStorage();
    const journal = create(storage);
    journal.append([held(1)]);
    storage.disk.faults.inject({ op: "write", kind: "journal", error: "out-of-space" });
    expect(() => journal.append([held(2), held(3), held(4)])).toThrow(
      expect.objectContaining({ code: "out-of-space" }) as Error,
    );
    journal.append([held(5)]);
    journal.close();
    expect(foundBy(storage)).toEqual([1, 5]);
  });

  it("on a disk that is full in the middle of an append goes on when there is room", () => {
    const storage = new MemoryStorage();
    const journal = create(storage);
    storage.disk.capacityBytes = 4096;
    const many = Array.from({ length: 1000 }, (_, index) => held(index));
    expect(() => journal.append(many)).toThrow(expect.objectContaining({ code: "out-of-space" }) as Error);
    storage.disk.capacityBytes = 1 << 20;
    journal.append([held(7)]);
    journal.close();
    expect(foundBy(storage)).toEqual([7]);
  });
});

describe("a cluster journal after a loss of power", () => {
  it("shows only what a sync mark covers", () => {
    const storage = new MemoryStorage();
    const journal = create(storage);
    journal.append([held(1)]);
    journal.append([held(2)]);
    journal.append([held(3)]);
    journal.appendSyncMark(2);
    journal.append([held(4)]);
    journal.close();
    expect(foundBy(storage)).toEqual([1, 2, 3, 4]);
    expect(foundBy(storage, { onlySynced: true })).toEqual([1, 2]);
  });

  it("shows what a later mark covers together with what earlier ones did", () => {
    const storage = new MemoryStorage();
    const journal = create(storage);
    journal.append([held(1)]);
    journal.appendSyncMark(1);
    journal.append([held(2)]);
    journal.appendSyncMark(journal.sequence);
    journal.close();
    expect(foundBy(storage, { onlySynced: true })).toEqual([1, 2]);
  });

  it("never shows again what it left out, not even when the next start follows a mere crash", () => {
    const storage = new MemoryStorage();
    const journal = create(storage);
    journal.append([held(1)]);
    journal.appendSyncMark(1);
    journal.append([held(2)]);
    journal.close();
    const after = opened(storage, { onlySynced: true });
    expect(after.found).toEqual([1]);
    after.journal.append([held(3)]);
    after.journal.appendSyncMark(after.journal.sequence);
    after.journal.close();
    expect(foundBy(storage)).toEqual([1, 3]);
    expect(foundBy(storage, { onlySynced: true })).toEqual([1, 3]);
  });

  it("needs no note of what it left out when nothing was", () => {
    const storage = new MemoryStorage();
    const journal = create(storage);
    journal.append([held(1)]);
    journal.appendSyncMark(1);
    const { sizeBytes } = journal;
    journal.close();
    const { journal: after } = opened(storage, { onlySynced: true });
    expect(after.sizeBytes).toBe(sizeBytes);
  });
});

describe("a cluster journal whose syncs overlap", () => {
  it("has after a loss of power what each that succeeded stood for, when two others fail", async () => {
    for (let seed = 1; seed <= 40; seed += 1) {
      const storage = seededStorage(seed);
      storage.disk.addFile(PATH, 0);
      const journal = create(storage);
      await journal.sync();
      const ends: (() => void)[] = [];
      const untilEnded = (): Promise<void> =>
        new Promise((resolve) => {
          ends.push(resolve);
        });
      storage.hold = (op) => (op === "sync" ? untilEnded() : undefined);
      /** Lets the sync that has waited longest end. */
      const endOne = async (error?: "io-error"): Promise<void> => {
        if (error !== undefined) storage.disk.faults.inject({ op: "sync", error });
        ends.shift()?.();
        for (let count = 0; count < 3; count += 1) await turn();
      };
      journal.append([held(1)]);
      const first = journal.sync();
      journal.append([held(2)]);
      const second = journal.sync();
      first.catch(() => undefined);
      second.catch(() => undefined);
      await endOne("io-error");
      await expect(first).rejects.toMatchObject({ code: "io-error" });
      const third = journal.sync();
      third.catch(() => undefined);
      await endOne();
      await endOne("io-error");
      await expect(third).rejects.toMatchObject({ code: "io-error" });
      const last = journal.sync();
      while (ends.length > 0) await endOne();
      await last;
      journal.close();
      storage.crash("power");
      expect(foundBy(storage), `seed ${seed}`).toEqual([1, 2]);
    }
  });
});

describe("inspect's view of a journal", () => {
  it("counts frames and shows entries, and knows what is no journal", () => {
    const storage = new MemoryStorage();
    const journal = create(storage);
    journal.append([held(1)]);
    journal.append([held(2)]);
    journal.close();
    const file = storage.open(PATH, { kind: "journal", create: "never" });
    const seen: number[] = [];
    expect(scanClusterJournal(file, (entry) => seen.push(entry.firstCluster))).toMatchObject({
      header: { ...EXPECTED, id: ID },
      frames: 2,
    });
    expect(seen).toEqual([1, 2]);
    storage.disk.addFile("/other", 5);
    expect(
      scanClusterJournal(storage.open("/other", { kind: "other", create: "never" }), () => undefined),
    ).toBeUndefined();
  });
});
