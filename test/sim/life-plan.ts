import type { AckPolicy, Durability, SecondaryExport } from "../../proto/words.ts";
import type { PairDisk, PairOptions } from "./pair.ts";
import type { SeededRandom } from "./seeded-random.ts";
import { STORAGE_PROFILE } from "./sim-disk.ts";
import { NETWORK_PROFILE, type NetworkProfile } from "./sim-network.ts";

/** Everything that may go wrong in a life. Each is over by itself, or by a restart, after a while. */
const FAULT_KINDS = [
  "secondary-killed",
  "secondary-killed-in-call",
  "secondary-loses-power",
  "secondary-loses-power-in-call",
  "secondary-stopped",
  "secondary-frozen",
  "secondary-full",
  "secondary-io-error",
  "primary-killed",
  "primary-killed-in-call",
  "primary-loses-power",
  "primary-stopped",
  "primary-frozen",
  "link-cut",
  "partition",
  "one-way-partition",
  "slow-network",
] as const;
/** What a broken relay between the two does to one message. */
const MESSAGE_FAULT_KINDS = ["message-lost", "message-repeated"] as const;
export type FaultKind = (typeof FAULT_KINDS)[number] | (typeof MESSAGE_FAULT_KINDS)[number];

/** What the two guests and the operator do. */
export const OPERATION_KINDS = [
  "write",
  "open-write",
  "rewrite",
  "zero",
  "flush",
  "read",
  "view-read",
  "view-read-all",
  "view-write",
  "view-zero",
  "view-flush",
  "kept-read",
  "checkpoint",
  "prepare",
  "commit",
  "discard",
  "status",
  "pause",
] as const;
export type OperationKind = (typeof OPERATION_KINDS)[number];

const OPERATION_WEIGHTS: Record<OperationKind, number> = {
  "write": 30,
  "open-write": 4,
  "rewrite": 4,
  "zero": 8,
  "flush": 3,
  "read": 4,
  "view-read": 10,
  "view-read-all": 3,
  "view-write": 8,
  "view-zero": 2,
  "view-flush": 2,
  "kept-read": 4,
  "checkpoint": 4,
  "prepare": 5,
  "commit": 4,
  "discard": 2,
  "status": 4,
  "pause": 4,
};

/** How a life ends. */
export type Ending = "synced" | "failover" | "failover-of-synced";

/** One life: what the pair is made of, what is done to it, and what goes wrong. All of it follows from the seed. */
export interface LifePlan {
  readonly pair: PairOptions;
  readonly network: Partial<NetworkProfile>;
  readonly operations: number;
  readonly weights: Record<OperationKind, number>;
  /** Fault number n happens before operation `at`, in ascending order. */
  readonly faults: readonly { readonly at: number; readonly kind: FaultKind }[];
  /** Writes that the guest has under way at most. */
  readonly depth: number;
  /** Writes are at most this long. */
  readonly writeMaxBytes: number;
  readonly gapMs: number;
  readonly ending: Ending;
  /** The secondary's device may refuse a call: so may then what depends on it. */
  readonly ioErrors: boolean;
  /** How much of the initial images is not zero. */
  readonly filled: number;
  /** An operator has the copies compared before these operations, ascending. */
  readonly verifies: readonly number[];
  /** Of the checkpoints, so many come with a VM state. */
  readonly vmStateShare: number;
}

const CLUSTERS = [4096, 4096, 8192, 16_384, 65_536] as const;
const WINDOWS = [16_384, 262_144, 4_194_304] as const;
const PAGE_BYTES = 4096;
const SECTOR_BYTES = 512;
/** How much longer logs are, more or less, than what they leave in the end. */
const LOG_GROWTH = 4;
const OPERATIONS_MIN = 300;
const FAULTS_MIN = 5;

/** A life of a pair that shares its disks: drawn like any other, but for what means nothing there. */
export function drawSharedLife(random: SeededRandom): LifePlan {
  const plan = drawLife(random);
  const marks = random.fork("mark");
  const isMarked = marks.chance(0.6);
  const onPeerLoss = isMarked && marks.chance(0.6) ? "continue" : "freeze";
  return {
    ...plan,
    // Who has just gone on alone leaves no checkpoint to fail over to.
    ending: onPeerLoss === "continue" && plan.ending === "failover" ? "failover-of-synced" : plan.ending,
    pair: {
      ...plan.pair,
      mode: "shared",
      isMarked,
      onPeerLoss,
      ack: "applied",
      onCongestion: "throttle",
      createImages: false,
      // A guest that waits for room waits for a checkpoint, which the operator takes when the guest goes on.
      overlayLimitBytes: undefined,
    },
  };
}

/** A life of a pair whose secondary buffers (mode `mc`): drawn like any other. */
export function drawBufferedLife(random: SeededRandom): LifePlan {
  const plan = drawLife(random);
  const { overlayLimitBytes } = plan.pair;
  return {
    ...plan,
    pair: {
      ...plan.pair,
      mode: "mc",
      // None, so that most is read back from the logs; or more than anything here fills.
      bufferMemoryBytes: random.fork("memory").pick([0, 0, 64 * 1024 * 1024]),
      // A log grows with each write, where an original is held once: what is mostly enough is more.
      overlayLimitBytes: overlayLimitBytes === undefined ? undefined : overlayLimitBytes * LOG_GROWTH,
    },
  };
}

/** A life of a pair without epochs (mode `mirror`): drawn like any other, but for what is about checkpoints. */
export function drawMirrorLife(random: SeededRandom): LifePlan {
  const plan = drawLife(random);
  const draws = random.fork("mirror");
  const ack = draws.pick<AckPolicy>(["applied", "applied", "applied", "received", "async"]);
  return {
    ...plan,
    pair: {
      ...plan.pair,
      mode: "mirror",
      ack,
      access: plan.pair.access === "off" ? "off" : "read-only",
      onCongestion: ack === "async" ? draws.pick(["throttle", "detach"]) : "throttle",
      checkpointEveryMs: undefined,
      retain: 0,
    },
    weights: {
      ...plan.weights,
      "view-write": 0,
      "view-zero": 0,
      "view-flush": 0,
      "kept-read": 0,
      "checkpoint": 0,
      "prepare": 0,
      "commit": 0,
      "discard": 0,
    },
    vmStateShare: 0,
  };
}

export function drawLife(random: SeededRandom): LifePlan {
  const durability = random.pick<Durability>(["power", "power", "power", "process"]);
  const access = random.pick<SecondaryExport>(["read-write", "read-write", "read-only", "read-only", "off"]);
  const ack = random.pick<AckPolicy>(["async", "async", "received", "applied"]);
  const disks = drawDisks(random);
  const operations = OPERATIONS_MIN + random.below(100);
  // Message faults have a stream of their own, so that the rest of a life is as it was.
  const faults = [
    ...drawFaults(random, operations),
    ...drawMessageFaults(random.fork("message faults"), operations),
  ].sort((left, right) => left.at - right.at);
  return {
    pair: {
      disks,
      clusterBytes: random.pick(CLUSTERS),
      durability,
      ack,
      access,
      windowBytes: random.pick(WINDOWS),
      onCongestion: ack === "async" && random.fork("congestion").chance(0.4) ? "detach" : "throttle",
      peerTimeoutMs: 2_000 + random.below(3_000),
      createImages: random.chance(0.25),
      checkpointEveryMs: random.chance(0.15) ? 100 + random.below(1_000) : undefined,
      retain: random.pick([0, 0, 1, 3]),
      overlayLimitBytes: random.chance(0.2) ? drawLimit(random, disks) : undefined,
      storage: {
        coldProbability: random.pick([0, 0.1, 0.5]),
        // A stream of its own, so that the rest of a life is as it was.
        readMs: random.fork("slow reads").pick([STORAGE_PROFILE.readMs, STORAGE_PROFILE.readMs, [0.5, 40]]),
        syncMs: [0.1, random.pick([0.5, 5, 30])],
        unwrittenIsData: random.chance(0.5),
        stallProbability: random.pick([0, STORAGE_PROFILE.stallProbability]),
      },
    },
    network: {
      latencyMs: [0.05, random.pick([0.2, 2, 20])],
      bufferBytes: random.pick([NETWORK_PROFILE.bufferBytes, 16_384]),
    },
    operations,
    weights: drawWeights(random, access),
    faults,
    ioErrors: faults.some(({ kind }) => kind === "secondary-io-error"),
    depth: random.pick([1, 4, 16]),
    writeMaxBytes: random.pick([4_096, 16_384, 65_536]),
    gapMs: random.pick([0.2, 2, 10]),
    ending: random.pick<Ending>(["synced", "failover", "failover", "failover-of-synced"]),
    filled: random.pick([0, 0.3, 1]),
    // A stream of its own, so that the rest of a life is as it was.
    verifies: drawVerifies(random.fork("verifies"), operations),
    vmStateShare: random.fork("VM states").pick([0, 0.3, 0.8]),
  };
}

/** Two disks, sometimes three, seldom a whole number of pages long. */
function drawDisks(random: SeededRandom): PairDisk[] {
  return ["vda", "vdb", "vdc"].slice(0, random.chance(0.2) ? 3 : 2).map((name) => {
    const pages = 8 + Math.floor(2 ** random.within([1, 6.6]));
    return { name, sizeBytes: pages * PAGE_BYTES + random.below(PAGE_BYTES / SECTOR_BYTES) * SECTOR_BYTES };
  });
}

/** From what is mostly enough to what is mostly not; the originals of one batch to one disk can be held at least. */
function drawLimit(random: SeededRandom, disks: readonly PairDisk[]): number {
  const sizes = disks.map(({ sizeBytes }) => sizeBytes);
  const allBytes = sizes.reduce((sum, sizeBytes) => sum + sizeBytes, 0);
  return Math.ceil(Math.max(allBytes * random.within([0.3, 2]), Math.max(...sizes) + 2 * PAGE_BYTES));
}

/** Each life does some things more often, and some not at all. */
function drawWeights(random: SeededRandom, access: SecondaryExport): Record<OperationKind, number> {
  const weights = { ...OPERATION_WEIGHTS };
  for (const kind of OPERATION_KINDS) {
    const isOfView = kind.startsWith("view-") || kind === "kept-read";
    const isWriteOfView = kind === "view-write" || kind === "view-zero" || kind === "view-flush";
    if ((isOfView && access === "off") || (isWriteOfView && access !== "read-write")) weights[kind] = 0;
    else if (kind !== "write" && kind !== "checkpoint") weights[kind] *= random.pick([0, 0.5, 1, 1, 2]);
  }
  return weights;
}

/** A few kinds of faults are on in each life. */
function drawFaults(random: SeededRandom, operations: number): LifePlan["faults"] {
  const on = FAULT_KINDS.filter(() => random.chance(0.4));
  if (on.length === 0) on.push(random.pick(FAULT_KINDS));
  const count = FAULTS_MIN + random.below(random.pick([1, 4, 10]));
  return Array.from({ length: count }, () => ({ at: random.below(operations), kind: random.pick(on) }));
}

function drawVerifies(random: SeededRandom, operations: number): number[] {
  const count = random.chance(0.5) ? 1 + random.below(12) : 0;
  return Array.from({ length: count }, () => random.below(operations)).sort((left, right) => left - right);
}

function drawMessageFaults(random: SeededRandom, operations: number): LifePlan["faults"] {
  const count = random.chance(0.3) ? 1 + random.below(6) : 0;
  return Array.from({ length: count }, () => ({
    at: random.below(operations),
    kind: random.pick(MESSAGE_FAULT_KINDS),
  }));
}
