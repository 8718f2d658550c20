import assert from "node:assert/strict";
import type { Durability } from "../../proto/words.ts";
import { checkDirty, readRemains, type Remains } from "./crash-remains.ts";
import type { CrashScene, CrashStage } from "./crash-scene.ts";
import { imagePath } from "./pair.ts";
import { RoleSwap, statusOf } from "./role-swap.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import type { SimHost } from "./sim-host.ts";
import type { CrashKind } from "./simulated-crash.ts";
import type { SimWorld } from "./world.ts";

const OPERATIONS = [
  "write",
  "trim",
  "view-write",
  "flush",
  "checkpoint",
  "promote",
  "promote-bare",
  "promote-busy",
  "rollback",
  "rejoin",
] as const;
type Operation = (typeof OPERATIONS)[number];

const CLUSTER_BYTES = 4096;
const DISKS = [
  { name: "vda", sizeBytes: 7 * CLUSTER_BYTES + 1536 },
  { name: "vdb", sizeBytes: 4 * CLUSTER_BYTES },
];
const PEER_TIMEOUT_MS = 500;
const APPLIED_MS = 100;
/** A merge of these disks takes about as long. */
const IN_MERGE_ROUNDS = 4;

/**
 * The secondary dies: before, in and after its promotion, in the merge, and while the former primary rejoins. It must
 * show the committed checkpoint, and every earlier one that its record retains; or, promoted, that checkpoint and what
 * was written since, as far as it was flushed. Every cluster that may differ from the former primary's copy is dirty.
 */
export const failoverStage: CrashStage<Operation> = {
  name: "failover",
  operations: OPERATIONS,
  set: (seed, durability) => new FailoverScene(seed, durability, "colo"),
};

/** The same of a secondary that buffers. */
export const bufferFailoverStage: CrashStage<Operation> = {
  name: "buffer-failover",
  operations: OPERATIONS,
  set: (seed, durability) => new FailoverScene(seed, durability, "mc"),
};

class FailoverScene implements CrashScene<Operation> {
  readonly #scripted: ScriptedPair;
  readonly #swap: RoleSwap;
  /** A promotion was asked for, with or without the active disk. */
  #asked: { readonly discardActive: boolean } | undefined;

  constructor(seed: number, durability: Durability, mode: "colo" | "mc") {
    this.#scripted = new ScriptedPair(seed, durability, {
      mode,
      disks: DISKS,
      clusterBytes: CLUSTER_BYTES,
      peerTimeoutMs: PEER_TIMEOUT_MS,
      retain: 1,
    });
    this.#swap = new RoleSwap(this.#scripted, this.host);
  }

  get world(): SimWorld {
    return this.#scripted.world;
  }

  get host(): SimHost {
    return this.#scripted.pair.secondary.host;
  }

  /** Two checkpoints, originals that lead back to the second one, and writes of the secondary's VM, with gaps between them. */
  async start(): Promise<void> {
    const scripted = this.#scripted;
    await scripted.start();
    await scripted.do("two epochs", async () => {
      await scripted.guestWrite(0, 0, 5 * CLUSTER_BYTES, "bytes");
      await scripted.guestWrite(1, CLUSTER_BYTES + 512, CLUSTER_BYTES, "bytes");
      assert(await scripted.checkpoint());
      await scripted.guestWrite(0, 700, 1024, "bytes");
      await scripted.guestWrite(0, 2 * CLUSTER_BYTES + 512, CLUSTER_BYTES, "bytes");
      await scripted.guestWrite(1, CLUSTER_BYTES, 512, "zero");
      await scripted.viewWrite(0, 2 * CLUSTER_BYTES + 100, 1000);
      await scripted.viewWrite(0, 5 * CLUSTER_BYTES + 100, 300);
    });
  }

  died(kind: CrashKind): void {
    const { model } = this.#scripted;
    if (this.#swap.isPromoted) model.guestDied(kind);
    else model.secondaryDied(kind);
  }

  async goOn(): Promise<void> {
    const { secondary } = this.#scripted.pair;
    if (!(await secondary.start())) return;
    if (!(await this.#resume())) {
      await this.#scripted.lookAtView();
      return;
    }
    await this.#writeInMerge();
    await this.#swap.merged();
  }

  async recover(): Promise<void> {
    const scripted = this.#scripted;
    const { secondary } = scripted.pair;
    const remains = readRemains(this.world, this.host);
    const peers = [this.#imagesOfPeer()];
    await this.world.run({ forMs: APPLIED_MS });
    peers.push(this.#imagesOfPeer());
    this.host.restart();
    assert(await scripted.do("the start", () => secondary.start()));
    if (this.#asked === undefined) {
      await scripted.do("the view", () => scripted.lookAtView());
      await scripted.do("the retained checkpoints", () => this.#checkRetained());
      await scripted.do("what a rollback leaves", () => this.#checkRolledBack(remains, peers));
      this.#swap.setParted(false);
      await scripted.undoRollback();
      await scripted.checkPrepared();
      await scripted.checkRecovery();
      return;
    }
    await scripted.do("what the promotion shows", async () => {
      await this.#checkPromoted(remains, peers);
      await this.#swap.merged();
      await this.#swap.readBack();
      await this.#swap.checkTogether();
    });
  }

  async checkEnd(): Promise<void> {
    const scripted = this.#scripted;
    if (this.#swap.isPromoted) {
      await scripted.do("the end", () => this.#swap.checkTogether());
    } else {
      this.#swap.setParted(false);
      await scripted.undoRollback();
      await scripted.checkEnd();
    }
  }

  describePromises(): string {
    const { pair, model } = this.#scripted;
    const status = pair.primary.agent?.status();
    const guest = model.guest.map((disk) => disk.describeDoubt());
    const roles = [this.#asked, this.#swap.isPromoted, this.#swap.isParted];
    return JSON.stringify([model.describePromises(), guest, roles, status?.role, status?.peers[0]?.lagBytes]);
  }

  async perform(operation: Operation): Promise<void> {
    const scripted = this.#scripted;
    const { isPromoted, isParted } = this.#swap;
    switch (operation) {
      case "write":
        if (isPromoted) await this.#writePromoted();
        else if (!isParted) await scripted.guestWrite(0, 3 * CLUSTER_BYTES + 512, CLUSTER_BYTES, "bytes");
        break;
      case "trim":
        if (isPromoted) await scripted.guestWrite(0, CLUSTER_BYTES + 512, 2 * CLUSTER_BYTES, "discard", this.#by);
        else if (!isParted) await scripted.guestWrite(1, 512, 3 * CLUSTER_BYTES, "discard");
        break;
      case "view-write":
        if (isPromoted) {
          await scripted.guestWrite(0, 5 * CLUSTER_BYTES, 1000, "bytes", { ...this.#by, fua: true });
        } else {
          await scripted.viewWrite(0, 6 * CLUSTER_BYTES + 100, 300);
          await scripted.viewWrite(1, CLUSTER_BYTES - 300, 600);
        }
        break;
      case "flush":
        await Promise.all(
          [0, 1].map((disk) =>
            isPromoted ? scripted.guestFlush(disk, scripted.pair.secondary) : scripted.flushView(disk),
          ),
        );
        break;
      case "checkpoint":
        if (isParted) break;
        if (isPromoted) await this.#swap.checkpoint();
        else await scripted.checkpoint();
        break;
      case "promote":
      case "promote-bare":
      case "promote-busy":
        await this.#swap.part();
        if (!isPromoted) {
          this.#asked = { discardActive: operation === "promote-bare" };
          await this.#swap.promote(this.#asked.discardActive);
        }
        if (operation === "promote-busy") await this.#writeInMerge();
        break;
      case "rollback":
        if (!isPromoted) await this.#rollBack();
        break;
      case "rejoin":
        if (isPromoted) await this.#swap.rejoin();
        break;
    }
  }

  get #by(): { readonly by: ScriptedPair["pair"]["secondary"] } {
    return { by: this.#scripted.pair.secondary };
  }

  /** Over what the overlays decide, and beside it. */
  async #writePromoted(): Promise<void> {
    const scripted = this.#scripted;
    await scripted.guestWrite(0, 3 * CLUSTER_BYTES - 512, 2 * CLUSTER_BYTES, "bytes", this.#by);
    await scripted.guestWrite(1, CLUSTER_BYTES + 1024, 512, "bytes", this.#by);
  }

  /** Durable writes to clusters that the merge has put into the base, while it goes on with others. */
  async #writeInMerge(): Promise<void> {
    const options = { ...this.#by, fua: true };
    for (let round = 0; round < IN_MERGE_ROUNDS; round += 1) {
      await this.#scripted.guestWrite(0, 512 * round, 512, "bytes", options);
      await this.#scripted.guestWrite(0, 3 * CLUSTER_BYTES + 512 * round, 512, "bytes", options);
    }
  }

  async #rollBack(): Promise<void> {
    const scripted = this.#scripted;
    await this.#swap.part();
    const epoch = statusOf(scripted.pair.secondary)?.epoch;
    const target = epoch?.retained[0];
    if (epoch === undefined || target === undefined) return;
    scripted.model.observeSecondary(epoch);
    await scripted.rollBack(target);
  }

  /** Started again, it is promoted already, or the operator asks again. False when no promotion was asked for. */
  async #resume(): Promise<boolean> {
    const { secondary } = this.#scripted.pair;
    if (this.#asked === undefined) return false;
    const status = statusOf(secondary);
    if (status?.role === "Secondary") {
      assert(!this.#swap.isPromoted, "the promotion was answered, and is forgotten");
      await this.#scripted.lookAtView();
      await this.#swap.promote(this.#asked.discardActive);
    } else if (!this.#swap.isPromoted && status !== undefined) {
      this.#scripted.model.observeCommitted(status.epoch.committed);
      this.#swap.takenUp(this.#asked.discardActive);
    }
    await this.#swap.readBack();
    return true;
  }

  async #checkPromoted(remains: Remains, peers: readonly Buffer[][]): Promise<void> {
    const wasPromoted = remains.record.role === "Primary";
    await this.#resume();
    const served = await this.#swap.readBack();
    // Promoted only now: what it wrote down then is what counts.
    const found = wasPromoted ? remains : readRemains(this.world, this.host);
    const isKnown = found.record.tracks === null || found.dirty !== undefined;
    assert(isKnown, "the record says whose copy differs, and the list of what differs is not there");
    for (const images of peers) checkDirty(found, served, images, "after the promotion");
  }

  /** Every cluster in which the peer's copy differs from the checkpoint that the secondary is back at is dirty. */
  async #checkRolledBack(remains: Remains, peers: readonly Buffer[][]): Promise<void> {
    const { history, tracks } = remains.record;
    if (history.rolledBackFrom === undefined) return;
    assert(tracks !== null && remains.dirty !== undefined, "what was rolled back is not marked");
    for (const images of peers) checkDirty(remains, await this.#viewed(), images, "after the rollback");
  }

  async #viewed(): Promise<Buffer[]> {
    const { pair, disks } = this.#scripted;
    return Promise.all(
      disks.map(async (disk) => {
        const content = Buffer.alloc(disk.sizeBytes);
        await pair.secondary.device(disk)?.read(content, 0);
        return content;
      }),
    );
  }

  /** Every checkpoint that the record retains can be read. */
  async #checkRetained(): Promise<void> {
    const { pair, model, disks } = this.#scripted;
    const { agent } = pair.secondary;
    for (const epoch of statusOf(pair.secondary)?.epoch.retained ?? []) {
      for (const [index, disk] of disks.entries()) {
        const opened = agent?.exports.find(`${disk.name}@${epoch}`);
        assert(agent !== undefined && opened !== undefined, `${disk.name}@${epoch} is not exported`);
        agent.exports.opened(opened);
        const content = Buffer.alloc(disk.sizeBytes);
        await opened.device.read(content, 0);
        agent.exports.closed(opened);
        assert(model.contentAt(epoch)[index]?.equals(content), `${opened.name} is not checkpoint ${epoch}`);
      }
    }
  }

  #imagesOfPeer(): Buffer[] {
    return DISKS.map((disk) => this.#scripted.pair.primary.host.disk.readFile(imagePath(disk)));
  }
}
