import type { AckPolicy, Durability } from "../../proto/words.ts";
import { CLUSTER_BYTES, GUEST_DISKS, GUEST_OPERATIONS, performGuest } from "./crash-guest.ts";
import type { CrashScene, CrashStage } from "./crash-scene.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import type { SimHost } from "./sim-host.ts";
import type { CrashKind } from "./simulated-crash.ts";
import type { SimWorld } from "./world.ts";

const OPERATIONS = [...GUEST_OPERATIONS, "lose", "resync"] as const;
type Operation = (typeof OPERATIONS)[number];

const PEER_TIMEOUT_MS = 1_000;

/**
 * The secondary of a pair without epochs dies. A failover must return every write that the guest was told of, or, where a
 * sync was under way, what was there before; and it must become equal to its primary again.
 */
export const mirrorStage: CrashStage<Operation> = {
  name: "mirror",
  operations: OPERATIONS,
  set: (seed, durability) => new MirrorScene(seed, durability),
};

class MirrorScene implements CrashScene<Operation> {
  readonly #scripted: ScriptedPair;
  readonly #ack: AckPolicy;
  #isLost = false;
  #hasDied = false;

  constructor(seed: number, durability: Durability) {
    this.#ack = seed % 4 === 0 ? "received" : "applied";
    this.#scripted = new ScriptedPair(seed, durability, {
      mode: "mirror",
      ack: this.#ack,
      access: "read-only",
      disks: GUEST_DISKS,
      clusterBytes: CLUSTER_BYTES,
      peerTimeoutMs: PEER_TIMEOUT_MS,
    });
  }

  get world(): SimWorld {
    return this.#scripted.world;
  }

  get host(): SimHost {
    return this.#scripted.pair.secondary.host;
  }

  async start(): Promise<void> {
    await this.#scripted.start();
    await this.#scripted.checkRecovery();
  }

  died(kind: CrashKind): void {
    const { model } = this.#scripted;
    this.#hasDied = true;
    model.secondaryDied(kind);
    // Guests went on before their writes were fsynced here: it says that it has nothing to return.
    if (kind === "power" && this.#ack !== "applied") model.secondaryMayBeVoid();
  }

  /** Its view is what it owes, and the sync begins. */
  async goOn(): Promise<void> {
    this.#part(false);
    if (!(await this.#scripted.pair.secondary.start())) return;
    await this.#scripted.lookAtView();
    await this.#scripted.wait("synced");
  }

  async recover(): Promise<void> {
    this.#part(true);
    await this.#scripted.restartSecondary();
    this.#part(false);
    await this.#scripted.checkRecovery();
  }

  async checkEnd(): Promise<void> {
    this.#part(false);
    await this.#scripted.checkEnd();
  }

  describePromises(): string {
    const { pair, model } = this.#scripted;
    const status = pair.primary.agent?.status();
    return JSON.stringify([model.describePromises(), this.#isLost, status?.peers[0]?.lagBytes, status?.disks]);
  }

  async perform(operation: Operation): Promise<void> {
    const scripted = this.#scripted;
    switch (operation) {
      case "write":
      case "zero":
      case "trim":
        await performGuest(scripted, operation);
        break;
      case "part":
        await performGuest(scripted, operation);
        await scripted.guestWrite(0, CLUSTER_BYTES + 1536, 512, "bytes");
        break;
      case "lose":
        await this.#lose();
        break;
      case "resync":
        await this.#lose();
        this.#part(false);
        await scripted.wait("synced");
        // In sync again only after a death, the two are compared just then.
        if (!this.#hasDied) await scripted.guestWrite(1, 512, 1024, "bytes");
        break;
    }
  }

  /** The first write may be on its way when the loss is found out, and those behind it are never sent. */
  async #lose(): Promise<void> {
    const { primary } = this.#scripted.pair;
    this.#part(true);
    await this.#scripted.guestWrite(0, 512, CLUSTER_BYTES, "bytes");
    while (primary.agent?.status().peers[0]?.connection === "Connected") {
      await this.world.sleep(20);
    }
    await this.#scripted.guestWrite(0, CLUSTER_BYTES, 2 * CLUSTER_BYTES, "bytes");
    await this.#scripted.guestWrite(1, 2 * CLUSTER_BYTES - 512, 1024, "bytes");
  }

  #part(on: boolean): void {
    this.#isLost = on;
    this.world.network.partition("a", "b", on);
  }
}
