import { describe, expect, it } from "vitest";
import { STATUS_CLUSTERS_MAX } from "../../../proto/limits.ts";
import { ActiveDisk } from "../../../secondary/active-disk.ts";
import type { Generation } from "../../../secondary/generation.ts";
import type { EpochView } from "../../../secondary/epoch-overlay.ts";
import { OverlayStack } from "../../../secondary/overlay-stack.ts";
import type { Extent, Pending, WriteFlags, ZeroFlags } from "../../../shared/block/block-device.ts";
import { ClusterBitmap, intersectsRange } from "../../../shared/block/cluster-bitmap.ts";
import type { DiskImage } from "../../../shared/block/disk-image.ts";
import { MemoryDevice } from "../../support/memory-device.ts";
import { CLUSTER_BYTES, overlaysOn, pattern, seededStorage } from "../../support/overlay-bench.ts";

const SIZE = 8 * CLUSTER_BYTES;
const hole = (clusters: number): Extent => ({ length: clusters * CLUSTER_BYTES, hole: true, zero: true });
const data = (clusters: number): Extent => ({ length: clusters * CLUSTER_BYTES, hole: false, zero: false });

/** A base whose extents another process has to be asked for. */
class AskedBase implements DiskImage {
  readonly asksForExtents = true;
  readonly hasLostWrites = false;
  readonly sizeBytes = SIZE;
  readonly #device = new MemoryDevice(SIZE);
  /** Called between the question and the answer. */
  meanwhile: () => void = () => undefined;

  async extents(offset: number, length: number, maxExtents: number): Promise<Extent[]> {
    const found = this.#device.extents(offset, length, maxExtents);
    await Promise.resolve();
    this.meanwhile();
    return found;
  }

  read(target: Uint8Array, offset: number): Pending {
    return this.#device.read(target, offset);
  }

  write(source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    return this.#device.write(source, offset, flags);
  }

  zero(offset: number, length: number, flags: ZeroFlags): Pending {
    return this.#device.zero(offset, length, flags);
  }

  async flush(): Promise<void> {
    await this.#device.flush();
  }

  prefetch(): void {
    // It caches nothing.
  }

  rewritten(): void {
    // It loses nothing.
  }

  syncOwn(): Promise<void> {
    return this.flush();
  }

  changeMark(): string {
    return "";
  }

  close(): void {
    // Nothing is open.
  }
}

class Held implements EpochView {
  version = 0;
  /** How many clusters were looked at. */
  looks = 0;
  readonly clusters = new ClusterBitmap();

  find(cluster: number): Generation | undefined {
    this.looks += 1;
    return this.clusters.has(cluster) ? ({} as Generation) : undefined;
  }

  intersects(first: number, end: number): boolean {
    return intersectsRange(this.clusters, first, end);
  }

  union(): ClusterBitmap {
    return this.clusters.clone();
  }

  hold(cluster: number): void {
    this.clusters.add(cluster);
    this.version += 1;
  }
}

async function bench(): Promise<{ base: AskedBase; held: Held; stack: OverlayStack<Held> }> {
  const context = overlaysOn(seededStorage(1), SIZE);
  const base = new AskedBase();
  const held = new Held();
  await base.write(pattern(2 * CLUSTER_BYTES, 1), 4 * CLUSTER_BYTES, { fua: false });
  return { base, held, stack: new OverlayStack(context.geometry, base, held, new ActiveDisk(context, 1)) };
}

describe("extents of a view whose base has to be asked", () => {
  it("are the base's, but for what the overlays decide", async () => {
    const { held, stack } = await bench();
    expect(await stack.extents(0, SIZE, 10)).toEqual([hole(4), data(2), hole(2)]);
    held.hold(1);
    held.hold(6);
    expect(await stack.extents(0, SIZE, 10)).toEqual([hole(1), data(1), hole(2), data(3), hole(1)]);
    expect(await stack.extents(CLUSTER_BYTES + 100, 4 * CLUSTER_BYTES, 10)).toEqual([
      { length: CLUSTER_BYTES - 100, hole: false, zero: false },
      hole(2),
      { length: CLUSTER_BYTES + 100, hole: false, zero: false },
    ]);
    expect(await stack.extents(0, SIZE, 2)).toEqual([hole(1), data(1)]);
  });

  it("call nothing a hole when the base may have been overwritten between question and answer", async () => {
    const { base, held, stack } = await bench();
    base.meanwhile = () => held.hold(5);
    expect(await stack.extents(0, SIZE, 10)).toEqual([data(8)]);
  });

  it("call nothing a hole that was merged between question and answer", async () => {
    const { base, held, stack } = await bench();
    held.hold(0);
    stack.merged = new ClusterBitmap();
    base.meanwhile = () => void stack.merged?.add(0);
    expect(await stack.extents(0, SIZE, 10)).toEqual([data(8)]);
  });
});

describe("extents of a view of a large disk", () => {
  const LARGE = 2 ** 20;
  const LARGE_BYTES = LARGE * CLUSTER_BYTES;

  function large(base: Partial<DiskImage>): { held: Held; stack: OverlayStack<Held> } {
    const context = overlaysOn(seededStorage(1), LARGE_BYTES);
    const held = new Held();
    const image = Object.assign(new AskedBase(), { sizeBytes: LARGE_BYTES }, base);
    return { held, stack: new OverlayStack(context.geometry, image, held, new ActiveDisk(context, 1)) };
  }

  const empty = (_offset: number, length: number): Extent[] => [{ length, hole: true, zero: true }];

  it.each<[string, Partial<DiskImage>]>([
    ["at once", { asksForExtents: false, extents: empty }],
    ["later", { extents: async (offset, length) => empty(offset, length) }],
  ])("look at a bounded number of clusters for each answer (the base's come %s)", async (_, base) => {
    const { held, stack } = large(base);
    const covered = new Set([5, 6, 7, 4096, 300_000, 300_002, LARGE - 1]);
    for (const cluster of covered) held.hold(cluster);
    const holes: [number, number][] = [];
    let answers = 0;
    for (let at = 0; at < LARGE_BYTES; answers += 1) {
      held.looks = 0;
      for (const { length, zero } of await stack.extents(at, LARGE_BYTES - at, 1)) {
        const last = holes.at(-1);
        if (zero && last?.[1] === at) last[1] += length;
        else if (zero) holes.push([at, at + length]);
        at += length;
      }
      expect(held.looks).toBeLessThanOrEqual(2 * STATUS_CLUSTERS_MAX);
    }
    const expected = [...covered, LARGE].map((cluster, index) => [([-1, ...covered][index] ?? 0) + 1, cluster]);
    const inClusters = holes.map((range) => range.map((offset) => offset / CLUSTER_BYTES));
    expect(inClusters).toEqual(expected.filter(([from, to]) => from !== to));
    expect(answers).toBeLessThan(100);
  });

  it("look at none where the overlays decide nothing", async () => {
    const { held, stack } = large({ asksForExtents: false, extents: empty });
    held.hold(LARGE - 1);
    expect(await stack.extents(0, LARGE_BYTES / 2, 1)).toEqual([hole(LARGE / 2)]);
    expect(held.looks).toBe(0);
  });
});
