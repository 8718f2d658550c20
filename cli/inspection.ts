import { basename } from "node:path";
import type { JournalEntry } from "../proto/cluster-journal-format.ts";
import { ColobusError } from "../proto/errors.ts";
import { STATE_SLOT_BYTES } from "../proto/limits.ts";
import {
  decodeSharedMark,
  SHARED_MARK_BYTES,
  SHARED_MARK_FILE_BYTES,
  type DecodedSharedMark,
  type SharedMarkRecord,
} from "../proto/shared-mark-format.ts";
import { decodeStateSlot, type StateSlot } from "../proto/state-record.ts";
import { applyJournalEntry, ClusterBitmap } from "../shared/block/cluster-bitmap.ts";
import { NodeStorage } from "../shared/host/node-storage.ts";
import type { StorageFile } from "../shared/host/storage.ts";
import { scanClusterJournal } from "../shared/journal/cluster-journal.ts";
import { tryScanVmState, type VmStateScan } from "../shared/journal/vm-state-scan.ts";
import { scanBufferLog } from "../secondary/buffer-log.ts";
import { formatBytes } from "./quantities.ts";

/** What a file of a state directory holds. */
type Inspection =
  | (VmStateScan & { readonly kind: "vmstate"; readonly path: string })
  | { readonly kind: "mark"; readonly path: string; readonly found: DecodedSharedMark }
  | { readonly kind: "state"; readonly path: string; readonly slots: readonly StateSlot[] }
  | {
      readonly kind: "journal";
      readonly path: string;
      readonly journal: string;
      readonly epoch: number;
      readonly diskSizeBytes: number;
      readonly clusterBytes: number;
      readonly frames: number;
      readonly entries: number;
      readonly heldClusters: number;
      readonly soundBytes: number;
      readonly fileBytes: number;
    }
  | {
      readonly kind: "buffer-log";
      readonly path: string;
      readonly epoch: number;
      readonly ordinal: number;
      readonly diskSizeBytes: number;
      readonly records: number;
      readonly writtenBytes: number;
      readonly zeroedBytes: number;
      readonly soundBytes: number;
      readonly fileBytes: number;
    };

/** Errors: `state-corrupt` when the file is of no known format; those of opening it. */
export function inspectFile(path: string): Inspection {
  const file = new NodeStorage().open(path, { kind: "other", create: "never", readOnly: true });
  try {
    if (file.sizeBytes() === SHARED_MARK_FILE_BYTES) return inspectMark(path, file);
    const vmState = path.endsWith(".state") ? tryScanVmState(file) : undefined;
    if (vmState !== undefined) return { kind: "vmstate", path, ...vmState };
    if (path.endsWith(".log")) return inspectBufferLog(path, file);
    return path.endsWith(".journal") ? inspectJournal(path, file) : inspectState(path, file);
  } finally {
    file.close();
  }
}

function inspectMark(path: string, file: StorageFile): Inspection {
  const bytes = Buffer.alloc(SHARED_MARK_BYTES);
  file.readNow(bytes, 0);
  const found = decodeSharedMark(bytes);
  return found.kind === "unreadable" && path.endsWith(".journal")
    ? inspectJournal(path, file)
    : { kind: "mark", path, found };
}

function inspectState(path: string, file: StorageFile): Inspection {
  if (file.sizeBytes() < 2 * STATE_SLOT_BYTES) throw unknownFormat(path);
  const slots = [0, 1].map((index) => {
    const bytes = Buffer.alloc(STATE_SLOT_BYTES);
    file.readNow(bytes, index * STATE_SLOT_BYTES);
    return decodeStateSlot(bytes);
  });
  if (slots.every((slot) => slot.kind === "torn")) throw unknownFormat(path);
  return { kind: "state", path, slots };
}

function inspectJournal(path: string, file: StorageFile): Inspection {
  let entries = 0;
  const held = new ClusterBitmap();
  const scanned = scanClusterJournal(file, (entry: JournalEntry) => {
    entries += 1;
    applyJournalEntry(held, entry);
  });
  if (scanned === undefined) throw unknownFormat(path);
  const { header, tailBytes, frames } = scanned;
  return {
    kind: "journal",
    path,
    journal: header.kind,
    epoch: header.epoch,
    diskSizeBytes: header.diskSizeBytes,
    clusterBytes: header.clusterBytes,
    frames,
    entries,
    heldClusters: held.size,
    soundBytes: tailBytes,
    fileBytes: file.sizeBytes(),
  };
}

function inspectBufferLog(path: string, file: StorageFile): Inspection {
  let writtenBytes = 0;
  let zeroedBytes = 0;
  const scanned = scanBufferLog(file, ({ kind, length }) => {
    if (kind === "write") writtenBytes += length;
    else zeroedBytes += length;
  });
  if (scanned === undefined) throw unknownFormat(path);
  const { header, tailBytes, sequence } = scanned;
  return {
    kind: "buffer-log",
    path,
    epoch: header.epoch,
    ordinal: header.ordinal,
    diskSizeBytes: header.diskSizeBytes,
    records: sequence,
    writtenBytes,
    zeroedBytes,
    soundBytes: tailBytes,
    fileBytes: file.sizeBytes(),
  };
}

/** What is behind the sound part of a file that is only appended to. */
function describeTail({ fileBytes, soundBytes }: { readonly fileBytes: number; readonly soundBytes: number }): string {
  const torn = fileBytes - soundBytes;
  return torn === 0 ? "  tail     sound" : `  tail     ${torn} bytes are torn and will be cut`;
}

export function renderInspection(inspection: Inspection): string {
  if (inspection.kind === "buffer-log") {
    const { epoch, ordinal, diskSizeBytes, records, writtenBytes, zeroedBytes } = inspection;
    return [
      `${basename(inspection.path)}: log ${ordinal} of a block buffer, epoch ${epoch}`,
      `  disk     ${formatBytes(diskSizeBytes)}`,
      `  records  ${records}: ${formatBytes(writtenBytes)} written, ${formatBytes(zeroedBytes)} zeroed`,
      describeTail(inspection),
    ].join("\n");
  }
  if (inspection.kind === "journal") {
    const { journal, epoch, diskSizeBytes, clusterBytes, frames, entries, heldClusters } = inspection;
    return [
      `${basename(inspection.path)}: cluster journal of a ${journal}, epoch ${epoch}`,
      `  disk     ${formatBytes(diskSizeBytes)} in clusters of ${formatBytes(clusterBytes)}`,
      `  holds    ${heldClusters} clusters (${formatBytes(heldClusters * clusterBytes)})`,
      `  records  ${entries} in ${frames} frames`,
      describeTail(inspection),
    ].join("\n");
  }
  if (inspection.kind === "vmstate") {
    const { path, epoch, chunks, bytes, tornBytes } = inspection;
    const tail = tornBytes === 0 ? "sound" : `${tornBytes} bytes at its end are not sound`;
    return `${basename(path)}: VM state of checkpoint ${epoch}: ${formatBytes(bytes)} in ${chunks} chunks, ${tail}`;
  }
  if (inspection.kind === "mark") {
    const { found } = inspection;
    const says = found.kind === "mark" ? describeMark(found.mark) : found.kind;
    return `${basename(inspection.path)}: mark of a shared disk: ${says}`;
  }
  const lines = [`${basename(inspection.path)}: state record`];
  inspection.slots.forEach((slot, index) => {
    if (slot.kind !== "valid") lines.push(`  slot ${index}: ${slot.kind}`);
    else lines.push(`  slot ${index}: sequence ${slot.sequence}`, indent(JSON.stringify(slot.record, null, 2)));
  });
  return lines.join("\n");
}

function describeMark({ state, agentId, holders }: SharedMarkRecord): string {
  const by = `${state}, by agent ${agentId}`;
  return holders.length === 0 ? by : `${by}; the checkpoints of these agents stand: ${holders.join(", ")}`;
}

function indent(text: string): string {
  return text.replaceAll(/^/gm, "    ");
}

function unknownFormat(path: string): ColobusError {
  return new ColobusError(
    "state-corrupt",
    `${path} is neither a state record nor a journal or log that this release knows`,
    "Name the file `state`, or a `*.journal` or `buffer.*.log` file, of a state directory.",
  );
}
