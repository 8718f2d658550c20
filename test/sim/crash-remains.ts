import assert from "node:assert/strict";
import { decodeStateSlot, type StateRecord } from "../../proto/state-record.ts";
import type { ClusterBitmap } from "../../shared/block/cluster-bitmap.ts";
import { clusterGeometry } from "../../shared/block/cluster-geometry.ts";
import type { Log } from "../../shared/host/log.ts";
import { StateFile } from "../../shared/journal/state-file.ts";
import { PeerTracking } from "../../shared/replication/peer-tracking.ts";
import { decide, type HistoryFacts, type Verdict } from "../../shared/replication/verdict.ts";
import { promoted } from "../../shared/replication/lineage.ts";
import type { SimHost } from "./sim-host.ts";
import type { SimWorld } from "./world.ts";

/** What a side would find on its disk if it started now, read with the shipping code from a copy of the disk. */
export interface Remains {
  readonly record: StateRecord;
  /** For each disk the clusters that the peer may lack; undefined: nothing is known, and everything will be sent. */
  readonly dirty: readonly ClusterBitmap[] | undefined;
}

const STATE_DIRECTORY = "/state";
const silent = (): void => undefined;
const SILENT_LOG: Log = { info: silent, debug: silent, warn: silent, error: silent };

let looks = 0;

export function readRemains(world: SimWorld, host: SimHost): Remains {
  looks += 1;
  const { process } = world.host(`look ${looks}`, { disk: host.disk.fork("look") });
  const { storage, clock, random } = process;
  const state = StateFile.open(storage, STATE_DIRECTORY);
  assert(state !== undefined, `the state record of ${host.name} is gone`);
  const { record } = state;
  const disks = record.disks.map(({ name, sizeBytes }) => ({
    geometry: clusterGeometry(sizeBytes ?? 0, record.clusterBytes),
    directory: `${STATE_DIRECTORY}/disks/${name}`,
  }));
  const options = { storage, clock, random, log: SILENT_LOG, state, disks, emit: () => undefined };
  const tracking = PeerTracking.open({ ...options, extentBytes: record.clusterBytes, slot: 0, settleEveryMs: 1 });
  const dirty = tracking.peer === null ? undefined : disks.map((_, disk) => tracking.dirty(disk).dirtyClusters());
  return { record, dirty };
}

/** The record alone, as the running agent has it on its disk. */
export function readRecord(host: SimHost): StateRecord {
  const bytes = host.disk.readFile(`${STATE_DIRECTORY}/state`);
  const half = bytes.length / 2;
  const slots = [bytes.subarray(0, half), bytes.subarray(half)].map(decodeStateSlot);
  const newest = slots
    .filter((slot) => slot.kind === "valid")
    .reduce((one, other) => (other.sequence > one.sequence ? other : one));
  return newest.record;
}

/** Fails when a cluster differs between the two copies of a disk and is not dirty. */
export function checkDirty(
  { record, dirty }: Remains,
  own: readonly Buffer[],
  peers: readonly Buffer[],
  what: string,
): void {
  if (dirty === undefined) return;
  for (const [disk, content] of own.entries()) {
    const { clusterBytes } = record;
    for (let offset = 0; offset < content.length; offset += clusterBytes) {
      const cluster = offset / clusterBytes;
      const differs = !content
        .subarray(offset, offset + clusterBytes)
        .equals(peers[disk]?.subarray(offset, offset + clusterBytes) ?? Buffer.alloc(0));
      const { name } = record.disks[disk] ?? { name: "?" };
      assert(
        !differs || dirty[disk]?.has(cluster) === true,
        `cluster ${cluster} of ${name} differs from the peer's copy and is not dirty: ${what}`,
      );
    }
  }
}

/** What the two would find if the secondary were promoted now and the primary came back. */
export function judgePromotion(primary: StateRecord, secondary: StateRecord): Verdict {
  const lineage = "the promoted side's";
  return decide(factsOf(primary), factsOf(promoted(secondary, lineage, secondary.committed.epoch > 0)));
}

function factsOf(record: StateRecord): HistoryFacts {
  const { history, committed } = record;
  return {
    ...record,
    shared: history.shared,
    ancestors: history.ancestors,
    heard: history.heard,
    committed: committed.epoch,
    assumeInSync: false,
  };
}
