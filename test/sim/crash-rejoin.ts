import assert from "node:assert/strict";
import type { Durability } from "../../proto/words.ts";
import type { CrashScene, CrashStage } from "./crash-scene.ts";
import { imagePath } from "./pair.ts";
import { RoleSwap, statusOf } from "./role-swap.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import type { SimHost } from "./sim-host.ts";
import type { SimWorld } from "./world.ts";

const OPERATIONS = ["rejoin", "write", "trim", "checkpoint", "drop", "part"] as const;
type Operation = (typeof OPERATIONS)[number];

const CLUSTER_BYTES = 4096;
const DISKS = [
  { name: "vda", sizeBytes: 5 * CLUSTER_BYTES + 1536 },
  { name: "vdb", sizeBytes: 4 * CLUSTER_BYTES },
];
const PEER_TIMEOUT_MS = 500;

/**
 * The former primary of a pair whose secondary was promoted dies: before, in and after its rejoin. As long as nothing
 * newer is committed, it shows its own last state; it never serves a guest again; and it becomes equal to the promoted
 * side.
 */
export const rejoinStage: CrashStage<Operation> = {
  name: "rejoin",
  operations: OPERATIONS,
  set: (seed, durability) => new RejoinScene(seed, durability),
};

class RejoinScene implements CrashScene<Operation> {
  readonly #scripted: ScriptedPair;
  readonly #swap: RoleSwap;
  /** What the former primary's guest had last. */
  #last: readonly Buffer[] = [];

  constructor(seed: number, durability: Durability) {
    this.#scripted = new ScriptedPair(seed, durability, {
      disks: DISKS,
      clusterBytes: CLUSTER_BYTES,
      peerTimeoutMs: PEER_TIMEOUT_MS,
    });
    this.#swap = new RoleSwap(this.#scripted, this.host);
  }

  get world(): SimWorld {
    return this.#scripted.world;
  }

  get host(): SimHost {
    return this.#scripted.pair.primary.host;
  }

  async start(): Promise<void> {
    const scripted = this.#scripted;
    await scripted.start();
    await scripted.do("a failover", async () => {
      await scripted.guestWrite(0, 512, 2 * CLUSTER_BYTES, "bytes");
      await scripted.guestWrite(1, CLUSTER_BYTES, 700, "bytes");
      await this.#swap.part(async () => {
        // Only this side knows of these: they are told to the guest while the session seems to be there.
        await scripted.guestWrite(0, 4 * CLUSTER_BYTES + 512, 1024, "bytes");
        await scripted.guestWrite(1, 3 * CLUSTER_BYTES, 512, "bytes");
        for (const disk of DISKS.keys()) await scripted.guestFlush(disk);
      });
      this.#last = this.#images();
      assert(await this.#swap.promote(false));
      await this.#swap.merged();
      await this.#write(0, 3 * CLUSTER_BYTES, 1024);
    });
  }

  died(): void {
    // The guest's disks are the other side's.
  }

  async goOn(): Promise<void> {
    if (await this.#scripted.pair.primary.start()) await this.#swap.rejoin();
  }

  async recover(): Promise<void> {
    const { pair } = this.#scripted;
    this.host.restart();
    assert(await this.#scripted.do("the start", () => pair.primary.start()));
    await this.#scripted.do("its own last state", () => this.#checkOwn());
    await this.#scripted.do("the rejoin", () => this.#swap.checkTogether());
  }

  async checkEnd(): Promise<void> {
    await this.#scripted.do("the end", () => this.#swap.checkTogether());
  }

  describePromises(): string {
    const { pair, model } = this.#scripted;
    const status = pair.secondary.agent?.status();
    return JSON.stringify([model.describePromises(), status?.peers[0]?.lagBytes, status?.disks, this.#swap.isParted]);
  }

  async perform(operation: Operation): Promise<void> {
    switch (operation) {
      case "rejoin":
        await this.#swap.rejoin();
        break;
      case "write":
        await this.#write(0, CLUSTER_BYTES + 512, CLUSTER_BYTES);
        await this.#write(1, 512, 1024);
        break;
      case "trim":
        await this.#scripted.guestWrite(0, 512, 3 * CLUSTER_BYTES, "discard", { by: this.#scripted.pair.secondary });
        break;
      case "checkpoint":
        if (this.#isRejoined && !this.#swap.isParted) await this.#swap.checkpoint();
        break;
      case "drop":
        await this.#write(1, 2 * CLUSTER_BYTES, 512);
        this.world.network.cut("a", "b");
        if (this.#isRejoined && !this.#swap.isParted) await this.#swap.rejoin();
        break;
      case "part":
        this.#swap.setParted(true);
        await this.#write(1, 3 * CLUSTER_BYTES - 256, 512);
        break;
    }
  }

  get #isRejoined(): boolean {
    return statusOf(this.#scripted.pair.primary)?.role === "Secondary";
  }

  async #write(disk: number, offset: number, length: number): Promise<void> {
    await this.#scripted.guestWrite(disk, offset, length, "bytes", { by: this.#scripted.pair.secondary });
  }

  /** Whatever has arrived of the promoted side's content since: its own last state can be read until a commit. */
  async #checkOwn(): Promise<void> {
    const { primary } = this.#scripted.pair;
    const status = statusOf(primary);
    if (status?.role === "Primary") {
      assert(this.#images().every((image, index) => image.equals(this.#last[index] ?? Buffer.alloc(0))));
      assert.notEqual(status.protection.reason, null, "a former primary serves its guests again");
      return;
    }
    if (status?.disks[0]?.state !== "Outdated") return;
    for (const [index, disk] of DISKS.entries()) {
      const content = Buffer.alloc(disk.sizeBytes);
      await primary.device(disk)?.read(content, 0);
      assert(this.#last[index]?.equals(content), `${disk.name} does not show the former primary's last state`);
    }
  }

  #images(): Buffer[] {
    return DISKS.map((disk) => this.host.disk.readFile(imagePath(disk)));
  }
}
