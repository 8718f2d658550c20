import type { StateRecord } from "../proto/state-record.ts";
import { asColobusError, type ColobusError } from "../proto/errors.ts";
import { overlayDirectory } from "../secondary/overlay-files.ts";
import { imageUseOf, type DiskImage, type ImageSource } from "../shared/block/disk-image.ts";
import type { Storage } from "../shared/host/storage.ts";

/** What of an agent's files could not be made durable. */
export interface SyncFault {
  /** Whose image it is, or whose overlay, where guests are served over that; null: another file of the state directory. */
  readonly disk: string | null;
  readonly reason: ColobusError;
}

/**
 * Makes durable what processes with durability `process` have left: images, sound copies beside them, and everything in the state
 * directory that a record refers to. Returns what could not be: the kernel tells of it once, and readers still see what is
 * lost. Errors: those of opening an image; nothing is known to be lost then.
 */
export async function syncLeft(
  { storage, images }: { readonly storage: Storage; readonly images: ImageSource },
  record: StateRecord,
  stateDirectory: string,
): Promise<SyncFault[]> {
  const faults: SyncFault[] = [];
  const trying = async (disk: string | null, work: () => Promise<void>): Promise<void> => {
    try {
      await work();
    } catch (error) {
      faults.push({ disk, reason: asColobusError(error) });
    }
  };
  // A shared disk is flushed for each checkpoint, and looked at before it is opened.
  for (const disk of record.mode === "shared" ? [] : record.disks) {
    if (disk.sizeBytes === null) continue;
    const image = images.open({ ...disk, cleanMark: null }, imageUseOf(record));
    await using(image, async () => {
      await image.ready?.();
      await trying(disk.name, async () => image.flush());
    });
    for (const { name, image: path, sound } of disk.quorum?.children ?? []) {
      if (path === null || !sound) continue;
      await trying(null, async () => {
        const copy = images.open({
          name: `${disk.name}.${name}`,
          image: path,
          sizeBytes: disk.sizeBytes,
          cleanMark: null,
        });
        await using(copy, async () => copy.flush());
      });
    }
  }
  const of = (disk: string): string => overlayDirectory(stateDirectory, disk);
  const roots = ["disks", "copies", "bitmaps", "mirrors"].map((name) => `${stateDirectory}/${name}`);
  const ofDisks = roots.flatMap((root) => listPaths(storage, root));
  const ofPeers = ofDisks.flatMap((directory) => listPaths(storage, directory).filter(isOfPeer));
  for (const directory of [...ofPeers, ...ofDisks, `${stateDirectory}/vmstate`]) {
    const served = record.merge === null ? undefined : record.disks.find(({ name }) => directory === of(name));
    await trying(served?.name ?? null, () => syncFiles(storage, directory));
  }
  for (const directory of [...ofPeers, ...ofDisks, `${stateDirectory}/vmstate`, ...roots, stateDirectory]) {
    if (storage.exists(directory)) await trying(null, () => storage.syncDirectory(directory));
  }
  return faults;
}

async function using(image: DiskImage, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } finally {
    image.close();
  }
}

function listPaths(storage: Storage, directory: string): string[] {
  return storage.exists(directory) ? storage.list(directory).map((name) => `${directory}/${name}`) : [];
}

/** The bitmaps of further secondaries lie in a directory for each, beside the overlays. */
function isOfPeer(path: string): boolean {
  return /\/peer-\d+$/.test(path);
}

/** The overlays, bitmaps or VM states in a directory. */
async function syncFiles(storage: Storage, directory: string): Promise<void> {
  for (const path of listPaths(storage, directory)) {
    if (!/\.(?:data|journal|log|state)$/.test(path)) continue;
    const file = storage.open(path, { kind: "other", create: "never" });
    try {
      await file.sync();
    } finally {
      file.close();
    }
  }
}
