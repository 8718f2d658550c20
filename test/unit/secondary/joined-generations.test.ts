import { beforeEach, describe, expect, it } from "vitest";
import { GENERATIONS_MAX, OVERLAY_RESERVE_BYTES } from "../../../proto/limits.ts";
import { Image } from "../../../shared/block/image.ts";
import { ClusterBitmap } from "../../../shared/block/cluster-bitmap.ts";
import { ActiveDisk } from "../../../secondary/active-disk.ts";
import { HiddenDisk } from "../../../secondary/hidden-disk.ts";
import type { OverlayContext } from "../../../secondary/overlay-files.ts";
import { OverlayStack } from "../../../secondary/overlay-stack.ts";
import type { MemoryStorage } from "../../support/memory-storage.ts";
import { CLUSTER_BYTES, overlaysOn, seededStorage } from "../../support/overlay-bench.ts";

const CLUSTERS = 64;

describe("generations that withdrawn checkpoints leave", () => {
  let storage: MemoryStorage;
  let context: OverlayContext;
  let base: Image;

  beforeEach(() => {
    storage = seededStorage(1, 0.3);
    context = overlaysOn(storage, CLUSTERS * CLUSTER_BYTES, "power");
    const file = storage.open("/base", { kind: "image", create: "new" });
    file.truncate(context.geometry.sizeBytes);
    base = new Image(file, context.geometry.sizeBytes);
  });

  it("are joined until few are left, and the view stays what it was", async () => {
    const committed = Buffer.alloc(base.sizeBytes);
    for (let cluster = 0; cluster < CLUSTERS; cluster += 1) {
      committed.fill(cluster % 5 === 0 ? 0 : cluster + 1, cluster * CLUSTER_BYTES, (cluster + 1) * CLUSTER_BYTES);
    }
    await base.write(committed, 0, { fua: false });
    const hidden = HiddenDisk.recover(context, { committed: 1, newestBarrier: 1, open: 2 });
    const rounds = GENERATIONS_MAX * 2;
    for (let epoch = 2; epoch < 2 + rounds; epoch += 1) {
      const clusters = new ClusterBitmap();
      // Writes of neighbouring epochs overlap: prepared barriers make each save what it overwrites.
      for (const cluster of [epoch % CLUSTERS, (epoch + 1) % CLUSTERS])
        hidden.collectUnsaved(cluster, cluster + 1, clusters);
      await hidden.save(base, clusters);
      for (const cluster of clusters)
        await base.write(Buffer.alloc(CLUSTER_BYTES, 0xee), cluster * CLUSTER_BYTES, { fua: false });
      hidden.setNewestBarrier(epoch);
      hidden.openEpoch(epoch + 1);
    }
    hidden.setNewestBarrier(1); // every barrier is withdrawn

    expect(hidden.generations()).toHaveLength(rounds + 1);
    await hidden.join(() => [], GENERATIONS_MAX, atOnce);
    expect(hidden.generations()).toHaveLength(GENERATIONS_MAX);
    await expectView(hidden, committed);
    hidden.close();
    const recovered = HiddenDisk.recover(context, { committed: 1, newestBarrier: 1, open: 2 + rounds });
    await expectView(recovered, committed);
    recovered.close();
  });

  it("are never joined across a barrier that can still be committed", async () => {
    const hidden = HiddenDisk.recover(context, { committed: 1, newestBarrier: 1, open: 2 });
    for (const epoch of [2, 3, 4]) {
      await hidden.save(base, new ClusterBitmap([epoch]));
      hidden.setNewestBarrier(epoch);
      hidden.openEpoch(epoch + 1);
    }
    await hidden.join(() => [2, 3], 1, atOnce);
    expect(hidden.generations().map(({ epoch }) => epoch)).toEqual([2, 3, 4, 5]);
    await hidden.join(() => [2], 1, atOnce);
    expect(hidden.generations().map(({ epoch }) => epoch)).toEqual([2, 3, 5]);
    hidden.close();
  });

  it("are left alone where there is no room for a copy beside what others need", async () => {
    const hidden = HiddenDisk.recover(context, { committed: 1, newestBarrier: 1, open: 2 });
    await base.write(Buffer.alloc(base.sizeBytes, 0x11), 0, { fua: false });
    for (const epoch of [2, 3, 4]) {
      await hidden.save(base, new ClusterBitmap([epoch]));
      hidden.openEpoch(epoch + 1);
    }
    storage.disk.capacityBytes = storage.disk.usedBytes + OVERLAY_RESERVE_BYTES;
    await hidden.join(() => [], 2, atOnce);
    expect(hidden.generations().map(({ epoch }) => epoch)).toEqual([2, 3, 4, 5]);
    storage.disk.capacityBytes = Infinity;
    await hidden.join(() => [], 2, atOnce);
    expect(hidden.generations()).toHaveLength(2);
    hidden.close();
  });

  function atOnce(change: () => boolean): Promise<boolean> {
    return Promise.resolve(change());
  }

  async function expectView(hidden: HiddenDisk, committed: Buffer): Promise<void> {
    const stack = new OverlayStack(context.geometry, base, hidden, new ActiveDisk(context, 1));
    const seen = Buffer.alloc(base.sizeBytes, 0xff);
    await stack.read(seen, 0);
    expect(seen.equals(committed)).toBe(true);
  }
});
