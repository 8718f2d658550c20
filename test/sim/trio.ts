import type { AgentConfig } from "../../cli/agent-config.ts";
import type { AckPolicy, CongestionPolicy, Durability } from "../../proto/words.ts";
import { imagePath, PairMember, urlOf, type PairDisk, type PairObserver } from "./pair.ts";
import type { SimWorld } from "./world.ts";

export interface TrioOptions {
  readonly mode: "colo" | "mc" | "mirror";
  readonly disks: readonly PairDisk[];
  readonly durability: Durability;
  readonly ack: AckPolicy;
  readonly windowBytes: number;
  readonly onCongestion: CongestionPolicy;
}

/** Three hosts whose agents may each have two secondaries: `a` begins as the primary, and dials the others. */
export function makeTrio(
  world: SimWorld,
  options: TrioOptions,
  contents: readonly Buffer[],
  observer: PairObserver,
): readonly PairMember[] {
  return ["a", "b", "c"].map((name) => {
    const host = world.host(name);
    host.disk.addDirectory("/images");
    for (const [index, disk] of options.disks.entries()) {
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
      peerTimeoutMs: 5_000,
      onPeerLoss: "continue",
      onCongestion,
      resyncSpeed: "dynamic",
      windowBytes,
      clusterBytes: 4096,
      extentBytes: 8192,
      settleEveryMs: 300,
      secondaryExport: "read-only",
      retain: 0,
      createImages: false,
      assumeInSync: false,
      adoptImages: false,
    };
    return new PairMember(world, host, config, observer);
  });
}
