import assert from "node:assert/strict";
import type { Durability } from "../../proto/words.ts";
import { checkDirty, judgePromotion, readRecord, readRemains } from "./crash-remains.ts";
import type { CrashScene, CrashStage } from "./crash-scene.ts";
import { imagePath } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import type { SimHost } from "./sim-host.ts";
import type { CrashKind } from "./simulated-crash.ts";
import type { SimWorld } from "./world.ts";

const OPERATIONS = [
  "fresh",
  "marked",
  "overwrite",
  "trim",
  "flush",
  "fua",
  "checkpoint",
  "lose",
  "reconnect",
  "settle",
  "stop",
] as const;
type Operation = (typeof OPERATIONS)[number];

const CLUSTER_BYTES = 4096;
const EXTENT_BYTES = 2 * CLUSTER_BYTES;
const DISKS = [
  { name: "vda", sizeBytes: 8 * CLUSTER_BYTES + 1536 },
  { name: "vdb", sizeBytes: 5 * CLUSTER_BYTES },
];
const PEER_TIMEOUT_MS = 1_000;
/** An extent is idle after 6 to 12 of these: longer than a pause between operations. */
const SETTLE_EVERY_MS = 60;
const SETTLED_MS = 900;
/** What was sent before the network failed has been applied by then. */
const APPLIED_MS = 100;
const DRAIN_MS = 2_000;

/**
 * The primary dies. What it finds on its disk must name every cluster in which its image differs from the secondary's,
 * hold what its guest was told to be durable, and know a lineage of its own if the guest was told of a write that the
 * secondary has never had. Then the two must become equal.
 */
export const primaryStage: CrashStage<Operation> = {
  name: "primary",
  operations: OPERATIONS,
  set: (seed, durability) => new PrimaryScene(seed, durability, "colo"),
};

/** The same of a pair without epochs. */
export const mirrorPrimaryStage: CrashStage<Operation> = {
  name: "mirror-primary",
  operations: OPERATIONS.filter((operation) => operation !== "checkpoint"),
  set: (seed, durability) => new PrimaryScene(seed, durability, "mirror"),
};

class PrimaryScene implements CrashScene<Operation> {
  readonly #scripted: ScriptedPair;
  #isLost = false;
  /** A write was acknowledged without the secondary, which knew this lineage then. */
  #aloneFrom: string | null | undefined;
  #fresh = 0;
  #marked = 0;

  constructor(seed: number, durability: Durability, mode: "colo" | "mirror") {
    this.#scripted = new ScriptedPair(seed, durability, {
      mode,
      ...(mode === "mirror" ? { access: "read-only" } : {}),
      disks: DISKS,
      clusterBytes: CLUSTER_BYTES,
      peerTimeoutMs: PEER_TIMEOUT_MS,
      ack: seed % 3 === 0 ? "applied" : "async",
      settleEveryMs: SETTLE_EVERY_MS,
      dirtyFileMinBytes: 1,
    });
  }

  get world(): SimWorld {
    return this.#scripted.world;
  }

  get host(): SimHost {
    return this.#scripted.pair.primary.host;
  }

  /** One extent is marked, all others are settled, and the dirty bitmap's next growth has it written anew. */
  async start(): Promise<void> {
    const scripted = this.#scripted;
    await scripted.start();
    await scripted.do("the first writes", async () => {
      for (let round = 0; round < 4; round += 1) {
        await this.#write(0, 0, 1024);
        await this.#write(1, 0, 1024);
        await this.#sleep(SETTLED_MS);
      }
      await this.#write(0, 512, 3 * 1024);
      await this.#sleep(50);
    });
  }

  died(kind: CrashKind): void {
    this.#scripted.model.guestDied(kind);
  }

  /** It starts alone, and its guest goes on writing where it can. */
  async goOn(): Promise<void> {
    const { primary } = this.#scripted.pair;
    this.#part(true);
    this.#scripted.model.recoverGuest(primary);
    if (!(await primary.start())) return;
    await this.#writeAlone();
    await this.#write(1, EXTENT_BYTES, 1024);
    await this.#sleep(SETTLED_MS);
  }

  async recover(): Promise<void> {
    const scripted = this.#scripted;
    const { pair, model } = scripted;
    const { primary, secondary } = pair;
    this.#part(true);
    model.recoverGuest(primary);
    const remains = readRemains(this.world, primary.host);
    assert.notEqual(remains.dirty, undefined, "the primary does not know any more what the secondary lacks");
    const own = imagesOf(primary.host);
    checkDirty(remains, own, imagesOf(secondary.host), "when the primary has died");
    await this.world.run({ forMs: APPLIED_MS });
    checkDirty(remains, own, imagesOf(secondary.host), "when everything sent was applied");
    this.#checkLineage(remains.record);
    this.#part(false);
    primary.host.restart();
    assert(await scripted.do("the start of the primary", () => primary.start()));
    await scripted.checkPrepared();
    await scripted.checkRecovery();
  }

  async checkEnd(): Promise<void> {
    this.#part(false);
    await this.#scripted.do("the sync", () => this.#scripted.wait("synced"));
    await this.#scripted.checkEnd();
  }

  describePromises(): string {
    const { pair, model } = this.#scripted;
    const secondary = pair.secondary.agent?.status().peers[0]?.lagBytes;
    const guest = model.guest.map((disk) => disk.describeDoubt());
    return JSON.stringify([guest, this.#aloneFrom, secondary, pair.primary.agent?.status().disks]);
  }

  async perform(operation: Operation): Promise<void> {
    const scripted = this.#scripted;
    switch (operation) {
      case "fresh": {
        const extents = [1, 3, 2, 4];
        const extent = extents[this.#fresh % extents.length] ?? 1;
        this.#fresh += 1;
        await this.#write(0, extent * EXTENT_BYTES + 1024, extent === 4 ? 512 : 3000);
        break;
      }
      case "marked":
        await this.#write(0, CLUSTER_BYTES + 600 + 700 * this.#marked, 1500);
        this.#marked += 1;
        break;
      case "overwrite":
        await Promise.all([this.#write(0, 1024, 1024), this.#write(1, 512, 1024)]);
        break;
      case "trim":
        await scripted.guestWrite(1, CLUSTER_BYTES + 512, 2 * CLUSTER_BYTES, "discard").then(({ kind }) => {
          if (kind === "done") this.#acknowledged();
        });
        break;
      case "flush":
        await Promise.all([0, 1].map((disk) => scripted.guestFlush(disk)));
        break;
      case "fua":
        await this.#write(0, 2048, 1024, true);
        await this.#write(1, 2 * EXTENT_BYTES, 700, true);
        break;
      case "checkpoint":
        if (!this.#isLost) await scripted.checkpoint();
        break;
      case "lose":
        this.#part(true);
        // Some of this is on its way when the loss is found out.
        await this.#write(0, CLUSTER_BYTES + 512, 512);
        await this.#until(() => !this.#isConnected);
        await this.#writeAlone();
        break;
      case "reconnect":
        if (!this.#isLost) {
          await this.#write(0, 1024, 1024);
          this.world.network.cut("a", "b");
          await this.#until(() => !this.#isConnected);
        }
        this.#part(false);
        await scripted.wait("synced");
        break;
      case "settle":
        await this.#sleep(SETTLED_MS);
        break;
      case "stop": {
        const { primary } = scripted.pair;
        await primary.stop(DRAIN_MS);
        this.host.crash("process");
        scripted.model.guestDied("process");
        this.host.restart();
        await primary.start();
        if (!this.#isLost) await scripted.wait("synced");
        else if (this.#reason === "held") await primary.agent?.startAlone({ force: false });
        break;
      }
    }
  }

  async #writeAlone(): Promise<void> {
    if (this.#reason === "held") await this.#scripted.pair.primary.agent?.startAlone({ force: false });
    await this.#write(0, CLUSTER_BYTES, 512);
  }

  async #write(disk: number, offset: number, length: number, fua = false): Promise<void> {
    const { kind } = await this.#scripted.guestWrite(disk, offset, length, "bytes", { fua });
    if (kind === "done") this.#acknowledged();
  }

  /** A guest has just been told that its write is done. */
  #acknowledged(): void {
    const { primary, secondary } = this.#scripted.pair;
    // It may have died in the very step in which the guest was told.
    const connection = primary.agent?.status().peers[0]?.connection ?? "Connected";
    if (connection !== "Connected") this.#aloneFrom = readRecord(secondary.host).lineage;
  }

  #checkLineage(record: ReturnType<typeof readRecord>): void {
    const secondary = readRecord(this.#scripted.pair.secondary.host);
    const { kind } = judgePromotion(record, secondary);
    if (this.#aloneFrom === undefined) {
      // A lineage may be minted, and the write that waited for it not be acknowledged yet.
      if (record.lineage === secondary.lineage)
        assert.equal(kind, "outdated", "the two have diverged without a reason");
      return;
    }
    assert.notEqual(record.lineage, this.#aloneFrom, "a write was acknowledged alone, and no lineage is minted");
    // Once the secondary has heard of the lineage, its promotion gives up what came with it.
    const knows = [secondary.lineage, ...secondary.history.heard].includes(record.lineage ?? "");
    if (!knows) assert.equal(kind, "split-brain", "what was acknowledged alone would be given up unasked");
  }

  get #isConnected(): boolean {
    return this.#scripted.pair.primary.agent?.status().peers[0]?.connection === "Connected";
  }

  get #reason(): string | null | undefined {
    return this.#scripted.pair.primary.agent?.status().protection.reason;
  }

  #part(on: boolean): void {
    this.#isLost = on;
    this.world.network.partition("a", "b", on);
  }

  async #until(condition: () => boolean): Promise<void> {
    while (!condition()) await this.#sleep(20);
  }

  #sleep(ms: number): Promise<void> {
    return this.world.sleep(ms, this.host.process);
  }
}

function imagesOf(host: SimHost): Buffer[] {
  return DISKS.map((disk) => host.disk.readFile(imagePath(disk)));
}
