/** Status answers as agents in well-known situations give them. */
import { describePlaces } from "../../cli/host-losses.ts";
import type { BitmapStatus } from "../../proto/control-api.ts";
import type { DiskStatus, JobStatus, PeerStatus, Status } from "../../proto/status.ts";
import { stateRecord } from "./state-records.ts";

const GIB = 1024 ** 3;
const MIB = 1024 ** 2;

/** The example with where its copies are, as an agent on the host `alpha` tells it. */
function placed(status: Omit<Status, "copies" | "hosts">): Status {
  return { ...status, ...describePlaces(status, { here: "alpha", onPeerLoss: "continue", record: stateRecord() }) };
}

const disk: DiskStatus = {
  name: "vda",
  sizeBytes: 10 * GIB,
  state: "UpToDate",
  dirtyBytes: 0,
  hiddenBytes: 0,
  activeBytes: 0,
  bufferBytes: 0,
  image: "/srv/vda.raw",
  generations: [],
  children: [{ name: "local", kind: "image", path: "/srv/vda.raw", state: "sound" }],
};

const peer: PeerStatus = {
  url: "ws://127.0.0.1:7800",
  address: "127.0.0.1:7800",
  connection: "Connected",
  replication: "Established",
  lagBytes: 12_288,
  agentId: "b2",
  agentVersion: "0.1.0",
  lastContactMs: 40,
  lastError: null,
  host: "beta",
  committed: 42,
  mayTakeOver: null,
  disks: [
    { name: "vda", image: "/srv/vda.raw", dirtyBytes: 0 },
    { name: "vdb", image: "/srv/vdb.raw", dirtyBytes: 0 },
  ],
};

export function runningSync(): JobStatus {
  return {
    id: "full-sync-1",
    type: "full-sync",
    state: "running",
    disk: "vda",
    progress: { doneBytes: 4 * GIB, totalBytes: 10 * GIB },
    bytesPerSecond: 200 * MIB,
    etaMs: 30_720,
    speedLimit: 0,
    startedAt: "2026-01-01T00:00:00.000Z",
    endedAt: null,
    target: null,
    outcome: null,
    error: null,
  };
}

function concludedSync(): JobStatus {
  return {
    ...runningSync(),
    state: "concluded",
    progress: { doneBytes: 10 * GIB, totalBytes: 10 * GIB },
    etaMs: null,
    endedAt: "2026-01-01T00:01:00.000Z",
    outcome: "completed",
  };
}

export function protectedPrimary(): Status {
  return placed({
    role: "Primary",
    vm: "web",
    mode: "colo",
    agentId: "a1",
    agentVersion: "0.1.0",
    pid: 4711,
    lineage: "5f2c",
    durability: "power",
    ack: "async",
    clusterBytes: 16_384,
    epoch: { open: 43, prepared: [], committed: 42, retained: [] },
    peers: [peer],
    disks: [disk, { ...disk, name: "vdb", sizeBytes: 512 * MIB, image: "/srv/vdb.raw" }],
    jobs: [concludedSync()],
    exports: [{ name: "vda", uri: "nbd+unix:///vda?socket=/run/colobus/web/nbd.sock", readOnly: false, clients: 1 }],
    protection: { state: "Protected", reason: null, nextAction: "" },
    failover: { kind: "manual", arbiter: null },
    recoverable: {
      epoch: 42,
      ageMs: 1234,
      lastContactMs: null,
      wouldLose: { writes: 3, bytes: 12_288, atLeast: false },
    },
    vmstate: null,
    eventLoopDelay: { overMs: 55_000, p50Ms: 0.2, p99Ms: 1.5, p999Ms: 8, maxMs: 12, stalls: 0 },
  });
}

/** A primary whose first sync runs: nothing can be recovered yet. */
/** One of the secondaries is not there. */
export function ofTwoSecondaries(): Status {
  const status = protectedPrimary();
  const absent = status.peers.map((peer) => ({
    ...peer,
    url: "ws://db3:7000",
    agentId: null,
    connection: "Connecting" as const,
    replication: "Off" as const,
    lastError: {
      code: "connection-lost",
      message: "no link to ws://db3:7000: connect ECONNREFUSED",
      action: "Check the peer's host and the network between the two.",
    },
  }));
  return { ...status, peers: [...status.peers, ...absent] };
}

export function syncingPrimary(): Status {
  return placed({
    ...protectedPrimary(),
    epoch: { open: 1, prepared: [], committed: 0, retained: [] },
    peers: [
      {
        ...peer,
        replication: "SyncSource",
        lagBytes: 8 * MIB,
        committed: null,
        disks: [{ name: "vda", image: "/srv/vda.raw", dirtyBytes: 6 * GIB }],
      },
    ],
    disks: [{ ...disk, dirtyBytes: 6 * GIB }],
    jobs: [runningSync()],
    protection: {
      state: "NotProtected",
      reason: "initial-sync",
      nextAction: "Wait until the first sync has ended: colobus wait synced.",
    },
    recoverable: null,
  });
}

/** A secondary whose primary is gone. */
export function lonelySecondary(): Status {
  return placed({
    ...protectedPrimary(),
    role: "Secondary",
    epoch: { open: 44, prepared: [43], committed: 42, retained: [] },
    peers: [
      {
        ...peer,
        url: null,
        address: null,
        connection: "Connecting",
        replication: "Off",
        lagBytes: 0,
        lastContactMs: 93_000,
        committed: null,
        lastError: {
          code: "peer-timeout",
          message: "The primary was silent for 5 s.",
          action: "Check the primary's host.",
        },
      },
    ],
    disks: [
      {
        ...disk,
        state: "Consistent",
        hiddenBytes: 48 * MIB,
        activeBytes: 65_536,
        children: [
          { name: "image", kind: "image", path: "/srv/vda.raw", state: "sound" },
          { name: "hidden", kind: "overlay", path: "/var/lib/colobus/vda.43", state: "broken" },
        ],
      },
    ],
    jobs: [],
    exports: [{ name: "vda", uri: "nbd+unix:///vda?socket=/run/colobus/web/nbd.sock", readOnly: true, clients: 0 }],
    protection: {
      state: "NotProtected",
      reason: "connecting",
      nextAction: "If the primary's host is dead, take over with colobus failover.",
    },
    recoverable: {
      epoch: 42,
      ageMs: 95_000,
      lastContactMs: 93_000,
      wouldLose: { writes: 17, bytes: 69_632, atLeast: true },
    },
  });
}

/** A verify of 10 GiB that has found two differences, or, of the disk `vdb`, none. */
export function differingVerify({
  disk,
  repair,
  wait,
}: {
  readonly disk?: string | undefined;
  readonly repair: boolean;
  readonly wait: boolean;
}): JobStatus {
  const differences =
    disk === "vdb" || !wait
      ? []
      : [
          { disk: "vda", offset: 65_536, length: 16_384 },
          { disk: "vda", offset: 1_048_576, length: 32_768 },
        ];
  const checkedBytes = wait ? 10 * GIB : 0;
  return {
    ...concludedSync(),
    id: "verify-3",
    type: "verify",
    disk: disk ?? null,
    state: wait ? "concluded" : "running",
    endedAt: wait ? concludedSync().endedAt : null,
    progress: { doneBytes: checkedBytes, totalBytes: 10 * GIB },
    verify: {
      differences,
      ranges: differences.length,
      differingBytes: differences.reduce((sum, { length }) => sum + length, 0),
      checkedBytes,
      repairs: repair,
    },
  };
}

export function exampleBitmap(disk: string, name: string): BitmapStatus {
  return { disk, name, state: "recording", fault: null, epoch: 43, dirtyBytes: 65_536, granularityBytes: 16_384 };
}
