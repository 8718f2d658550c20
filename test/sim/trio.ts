import type { AgentConfig } from "../../cli/agent-config.ts";
import type { AckPolicy, CongestionPolicy, Durability, PeerLossPolicy } from "../../proto/words.ts";
import { imagePath, MARK_PATH, PairMember, urlOf, type PairDisk, type PairObserver } from "./pair.ts";
import type { SimArbiter } from "./sim-arbiter.ts";
import type { SimDisk, StorageProfile } from "./sim-disk.ts";
import type { SimWorld } from "./world.ts";

export interface TrioOptions {
  /** In mode `shared` all hosts reach the images of host `a`, and the mark beside them. */
  readonly mode: "colo" | "mc" | "mirror" | "shared";
  readonly disks: readonly PairDisk[];
  readonly durability: Durability;
  readonly ack: AckPolicy;
  readonly windowBytes: number;
  readonly onCongestion: CongestionPolicy;
  /** `continue` unless it is said. */
  readonly onPeerLoss?: PeerLossPolicy;
  readonly clusterBytes?: number;
  readonly retain?: number;
  /** Mode `shared`: the hosts whose agents have no place for the mark. */
  readonly unmarked?: readonly string[];
  /** Mode `shared`: a lock on one host keeps nobody off on another one. */
  readonly locksApart?: boolean;
  readonly storage?: Partial<StorageProfile>;
  /** 5 s unless it is said. */
  readonly peerTimeoutMs?: number;
  readonly checkpointEveryMs?: number;
  /** Who decides which side serves; the secondaries take over by themselves then. */
  readonly arbiter?: { readonly service: SimArbiter; readonly ttlMs: number };
}

/** Three hosts whose agents may each have two secondaries: `a` begins as the primary, and dials the others. */
export function makeTrio(
  world: SimWorld,
  options: TrioOptions,
  contents: readonly Buffer[],
  observer: PairObserver,
): readonly PairMember[] {
  let owner: SimDisk | undefined;
  return ["a", "b", "c"].map((name) => {
    const member = makeTrioMember(world, name, options, { contents, observer, owner });
    owner ??= member.host.disk;
    return member;
  });
}

/** One of them, or another secondary: only `a` has the contents, and dials. In mode `shared` the images are the `owner`'s. */
export function makeTrioMember(
  world: SimWorld,
  name: string,
  options: TrioOptions,
  {
    contents = [],
    observer,
    owner,
  }: {
    readonly contents?: readonly Buffer[];
    readonly observer: PairObserver;
    readonly owner?: SimDisk | undefined;
  },
): PairMember {
  const isShared = options.mode === "shared";
  const host = world.host(name, { storage: options.storage ?? {} });
  host.disk.addDirectory("/images");
  if (isShared && owner === undefined) host.disk.addFile(MARK_PATH, 0);
  else if (isShared && owner !== undefined) host.disk.addShared(MARK_PATH, owner, { isPagewise: true });
  for (const [index, disk] of options.disks.entries()) {
    if (isShared && owner !== undefined) {
      host.disk.addShared(imagePath(disk), owner, { locksApart: options.locksApart === true });
      continue;
    }
    host.disk.addFile(imagePath(disk), disk.sizeBytes);
    const inode = host.disk.file(imagePath(disk));
    host.disk.change(inode, () =>
      inode.write(name === "a" ? (contents[index] ?? Buffer.alloc(0)) : Buffer.alloc(1), 0),
    );
    inode.makeDurable(inode.position);
  }
  const { mode, durability, ack, windowBytes, onCongestion } = options;
  const config: AgentConfig = {
    role: name === "a" ? "Primary" : "Secondary",
    vm: "vm",
    mode,
    stateDirectory: "/state",
    disks: options.disks.map((disk) => ({ name: disk.name, image: imagePath(disk) })),
    peers: name === "a" ? [urlOf("b"), urlOf("c")] : [],
    secondaries: 2,
    ack,
    durability,
    peerTimeoutMs: options.peerTimeoutMs ?? 5_000,
    onPeerLoss: options.onPeerLoss ?? "continue",
    ...(isShared && options.unmarked?.includes(name) !== true ? { sharedMark: MARK_PATH } : {}),
    onCongestion,
    resyncSpeed: "dynamic",
    windowBytes,
    clusterBytes: options.clusterBytes ?? 4096,
    extentBytes: 2 * (options.clusterBytes ?? 4096),
    settleEveryMs: 300,
    secondaryExport: "read-only",
    retain: options.retain ?? 0,
    createImages: false,
    assumeInSync: false,
    adoptImages: false,
    ...(options.checkpointEveryMs === undefined ? {} : { checkpointEveryMs: options.checkpointEveryMs }),
    ...(options.arbiter === undefined ? {} : { failover: "automatic", arbiterTtlMs: options.arbiter.ttlMs }),
  };
  return new PairMember(world, host, config, observer, undefined, options.arbiter?.service);
}
