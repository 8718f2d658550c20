import { crc32 } from "node:zlib";
import {
  tryDecodeVmStateChunkHead,
  tryDecodeVmStateHead,
  VMSTATE_CHUNK_HEAD_BYTES,
  VMSTATE_HEAD_BYTES,
} from "../../proto/vmstate-format.ts";
import type { StorageFile } from "../host/storage.ts";

export interface VmStateScan {
  readonly epoch: number;
  readonly chunks: number;
  readonly bytes: number;
  /** Bytes behind the last chunk that is sound. */
  readonly tornBytes: number;
}

/** What the file of a VM state holds, all of it read and checked; undefined when it is none. */
export function tryScanVmState(file: StorageFile): VmStateScan | undefined {
  const fileBytes = file.sizeBytes();
  const epoch = tryDecodeVmStateHead(readAt(file, 0, VMSTATE_HEAD_BYTES));
  if (epoch === undefined) return undefined;
  let chunks = 0;
  let bytes = 0;
  let at = VMSTATE_HEAD_BYTES;
  while (at + VMSTATE_CHUNK_HEAD_BYTES <= fileBytes) {
    const chunk = tryDecodeVmStateChunkHead(readAt(file, at, VMSTATE_CHUNK_HEAD_BYTES));
    const end = at + VMSTATE_CHUNK_HEAD_BYTES + (chunk?.length ?? 0);
    if (chunk === undefined || end > fileBytes) break;
    if (crc32(readAt(file, at + VMSTATE_CHUNK_HEAD_BYTES, chunk.length)) !== chunk.crc) break;
    chunks += 1;
    bytes += chunk.length;
    at = end;
  }
  return { epoch, chunks, bytes, tornBytes: fileBytes - at };
}

function readAt(file: StorageFile, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(Math.max(0, Math.min(length, file.sizeBytes() - offset)));
  file.readNow(bytes, offset);
  return bytes;
}
