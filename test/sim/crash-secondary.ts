import type { Durability } from "../../proto/words.ts";
import { CLUSTER_BYTES, GUEST_DISKS, GUEST_OPERATIONS, performGuest } from "./crash-guest.ts";
import type { CrashScene, CrashStage } from "./crash-scene.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import type { SimHost } from "./sim-host.ts";
import type { CrashKind } from "./simulated-crash.ts";
import type { SimWorld } from "./world.ts";

const OPERATIONS = [...GUEST_OPERATIONS, "checkpoint", "commit", "withdraw", "view-write", "view-flush"] as const;
type Operation = (typeof OPERATIONS)[number];

const PEER_TIMEOUT_MS = 1_000;

/** The secondary dies. It must show the checkpoint that it owes, and become equal to its primary again. */
export const secondaryStage: CrashStage<Operation> = {
  name: "secondary",
  operations: OPERATIONS,
  set: (seed, durability) => new SecondaryScene(seed, durability, "colo"),
};

/** The same of a secondary that buffers. */
export const bufferStage: CrashStage<Operation> = {
  name: "buffer",
  operations: OPERATIONS,
  set: (seed, durability) => new SecondaryScene(seed, durability, "mc"),
};

class SecondaryScene implements CrashScene<Operation> {
  readonly #scripted: ScriptedPair;

  constructor(seed: number, durability: Durability, mode: "colo" | "mc") {
    const options = { mode, disks: GUEST_DISKS, clusterBytes: CLUSTER_BYTES, peerTimeoutMs: PEER_TIMEOUT_MS };
    this.#scripted = new ScriptedPair(seed, durability, options);
  }

  get world(): SimWorld {
    return this.#scripted.world;
  }

  get host(): SimHost {
    return this.#scripted.pair.secondary.host;
  }

  start(): Promise<void> {
    return this.#scripted.start();
  }

  died(kind: CrashKind): void {
    this.#scripted.model.secondaryDied(kind);
  }

  /** Its view is what it owes, and the sync begins. */
  async goOn(): Promise<void> {
    if (!(await this.#scripted.pair.secondary.start())) return;
    await this.#scripted.lookAtView();
    await this.#scripted.wait("synced");
  }

  async recover(): Promise<void> {
    await this.#scripted.restartSecondary();
    await this.#scripted.checkPrepared();
    await this.#scripted.checkRecovery();
  }

  checkEnd(): Promise<void> {
    return this.#scripted.checkEnd();
  }

  describePromises(): string {
    const { pair, model } = this.#scripted;
    const status = pair.primary.agent?.status();
    return JSON.stringify([model.describePromises(), status?.peers[0]?.lagBytes, status?.disks]);
  }

  async perform(operation: Operation): Promise<void> {
    const scripted = this.#scripted;
    switch (operation) {
      case "write":
      case "part":
      case "zero":
      case "trim":
        await performGuest(scripted, operation);
        break;
      case "checkpoint":
        await scripted.checkpoint();
        break;
      case "commit":
      case "withdraw": {
        const epoch = await scripted.prepare();
        // The guest goes on, over what the checkpoint holds: both epochs have an original of the cluster then.
        await scripted.guestWrite(0, CLUSTER_BYTES + 2048, 1024, "bytes");
        if (epoch !== undefined) await scripted.decide(operation === "commit" ? "commit" : "discard", epoch);
        break;
      }
      case "view-write":
        await scripted.viewWrite(0, CLUSTER_BYTES + 100, 300);
        await scripted.viewWrite(1, 2 * CLUSTER_BYTES, CLUSTER_BYTES);
        break;
      case "view-flush":
        await Promise.all([0, 1].map((disk) => scripted.flushView(disk)));
        break;
    }
  }
}
