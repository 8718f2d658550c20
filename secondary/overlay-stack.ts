import assert from "node:assert/strict";
import { STATUS_CLUSTERS_MAX } from "../proto/limits.ts";
import { allSettled, failingLater } from "../shared/block/all-settled.ts";
import type { Extent, Pending } from "../shared/block/block-device.ts";
import type { ClusterBitmap } from "../shared/block/cluster-bitmap.ts";
import {
  clusterEndOffset,
  endClusterOf,
  firstClusterOf,
  type ClusterGeometry,
} from "../shared/block/cluster-geometry.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";
import type { ActiveDisk } from "./active-disk.ts";
import type { EpochOverlay, EpochView, OverlaySource, ReadBelow } from "./epoch-overlay.ts";

type Source = "base" | "active" | OverlaySource;

/**
 * Reads one disk of the secondary through its overlays: active over hidden (oldest generation first), or, in mode
 * `mc`, over the committed part of the block buffer, over base.
 *
 * The base may be overwritten while a read of it waits for the device: only after its originals were saved, so the
 * read looks at the hidden disk again when it comes back. Generations stay readable until the view gate has let
 * every reader out.
 */
export class OverlayStack<Hidden extends EpochView = EpochOverlay> {
  readonly geometry: ClusterGeometry;
  base: DiskImage;
  readonly hidden: Hidden;
  /** After a promotion: clusters whose overlays have been merged into the base, and say nothing about them any more. */
  merged: ClusterBitmap | undefined;
  active: ActiveDisk;

  constructor(geometry: ClusterGeometry, base: DiskImage, hidden: Hidden, active: ActiveDisk) {
    this.geometry = geometry;
    this.base = base;
    this.hidden = hidden;
    this.active = active;
  }

  /** Whether the overlays decide what the cluster reads as. */
  covers(cluster: number): boolean {
    if (this.merged?.has(cluster) === true) return false;
    return this.active.has(cluster) || this.hidden.find(cluster) !== undefined;
  }

  /** Whether the overlays may decide any byte of the range: false is certain. */
  #mayCover(offset: number, length: number): boolean {
    const first = firstClusterOf(this.geometry, offset);
    const end = endClusterOf(this.geometry, offset, length);
    return this.hidden.intersects(first, end) || this.active.intersects(first, end);
  }

  /** The clusters that the overlays decide, as of now. The caller owns the bitmap. */
  coveredClusters(): ClusterBitmap {
    const clusters = this.hidden.union();
    clusters.orInPlace(this.active.clusters());
    if (this.merged !== undefined) clusters.andNotInPlace(this.merged);
    return clusters;
  }

  read(target: Uint8Array, offset: number): Pending {
    if (!this.#mayCover(offset, target.length)) return this.#readBase(target, offset);
    return this.#readPieces(target, offset, true);
  }

  /** Reads what lies below the active disk. */
  readBelow(target: Uint8Array, offset: number): Pending {
    return this.#readPieces(target, offset, false);
  }

  extents(offset: number, length: number, maxExtents: number): Extent[] | Promise<Extent[]> {
    const described = this.#described(offset, length);
    if (this.base.asksForExtents === true) return this.#askForExtents(offset, described, maxExtents);
    return this.#joinExtents(offset, described, maxExtents, (at, bytes, max) => {
      const extents = this.base.extents(at, bytes, max);
      assert(!(extents instanceof Promise), "an image that need not ask answers at once");
      return extents;
    });
  }

  /** How much of the range is described: where the overlays decide anything, each cluster has to be looked at. */
  #described(offset: number, length: number): number {
    const first = firstClusterOf(this.geometry, offset);
    let bytes = length;
    while (endClusterOf(this.geometry, offset, bytes) - first > STATUS_CLUSTERS_MAX && this.#mayCover(offset, bytes)) {
      bytes = Math.ceil(bytes / 2);
    }
    return bytes;
  }

  /**
   * Asks for the base's extents first. What is overwritten in the base meanwhile was zero, or not, in another state of the
   * disk than the answer: nothing is said of it then.
   */
  async #askForExtents(offset: number, length: number, maxExtents: number): Promise<Extent[]> {
    const { version } = this.hidden;
    const merged = this.merged?.size;
    const asked = await this.base.extents(offset, length, maxExtents);
    const covered = asked.reduce((sum, extent) => sum + extent.length, 0);
    if (this.hidden.version !== version || this.merged?.size !== merged) {
      return [{ length: Math.min(covered, length), hole: false, zero: false }];
    }
    let base = 0;
    let baseStart = offset;
    // The ranges that are asked for ascend, so each extent is passed once.
    return this.#joinExtents(offset, Math.min(covered, length), maxExtents, (at, bytes) => {
      while (baseStart + (asked[base]?.length ?? bytes) <= at) baseStart += asked[base++]?.length ?? bytes;
      const extent = asked[base];
      assert(extent !== undefined, "what was asked for covers the range");
      return [{ ...extent, length: Math.min(bytes, baseStart + extent.length - at) }];
    });
  }

  #joinExtents(
    offset: number,
    length: number,
    maxExtents: number,
    extentsOfBase: (offset: number, length: number, maxExtents: number) => readonly Extent[],
  ): Extent[] {
    const extents: Extent[] = [];
    const end = offset + length;
    const isBare = !this.#mayCover(offset, length);
    let at = offset;
    while (at < end && extents.length < maxExtents) {
      const covered = !isBare && this.covers(firstClusterOf(this.geometry, at));
      let runEnd = isBare ? end : at;
      while (runEnd < end && this.covers(firstClusterOf(this.geometry, runEnd)) === covered) {
        runEnd = Math.min(end, clusterEndOffset(this.geometry, firstClusterOf(this.geometry, runEnd) + 1));
      }
      const found = covered
        ? [{ length: runEnd - at, hole: false, zero: false }]
        : extentsOfBase(at, runEnd - at, maxExtents - extents.length);
      for (const extent of found) {
        at += extent.length;
        const last = extents.at(-1);
        if (last !== undefined && last.hole === extent.hole && last.zero === extent.zero) {
          extents[extents.length - 1] = { ...last, length: last.length + extent.length };
        } else extents.push(extent);
      }
    }
    return extents;
  }

  #readPieces(target: Uint8Array, offset: number, withActive: boolean): Pending {
    const end = offset + target.length;
    let waiting: Promise<void>[] | undefined;
    let pieceSource: Source | undefined;
    let pieceStart = offset;
    let at = offset;
    const readPiece = (pieceEnd: number): void => {
      if (pieceSource === undefined || pieceEnd === pieceStart) return;
      const piece = target.subarray(pieceStart - offset, pieceEnd - offset);
      const source = pieceSource;
      const start = pieceStart;
      const pending = failingLater(() => this.#readFrom(source, piece, start));
      if (pending !== undefined) (waiting ??= []).push(pending);
    };
    while (at < end) {
      const { source, until } = this.#sourceOf(at, end, withActive);
      if (source !== pieceSource) {
        readPiece(at);
        pieceSource = source;
        pieceStart = at;
      }
      at = until;
    }
    readPiece(end);
    return waiting === undefined ? undefined : allSettled(waiting);
  }

  #sourceOf(at: number, end: number, withActive: boolean): { source: Source; until: number } {
    const cluster = firstClusterOf(this.geometry, at);
    let until = Math.min(end, clusterEndOffset(this.geometry, cluster + 1));
    if (this.merged?.has(cluster) === true) return { source: "base", until };
    if (withActive) {
      const stretch = this.active.stretch(at, until);
      if (stretch.held) return { source: "active", until: stretch.end };
      until = stretch.end;
    }
    return { source: this.hidden.find(cluster) ?? "base", until };
  }

  #readFrom(source: Source, target: Uint8Array, offset: number): Pending {
    if (source === "base") return this.#readBase(target, offset);
    if (source === "active") return this.active.readData(target, offset);
    return source.read(target, offset, this.#readBelowSource);
  }

  readonly #readBelowSource: ReadBelow = (target, offset) => this.base.read(target, offset);

  #readBase(target: Uint8Array, offset: number): Pending {
    const { version } = this.hidden;
    const pending = this.base.read(target, offset);
    if (pending === undefined) return undefined;
    return pending.then(
      () => (this.#isSavedSince(version, target, offset) ? this.readBelow(target, offset) : undefined),
      // What a format had there may be something else by now, and no content at all.
      (error: unknown) => {
        if (!this.#isSavedSince(version, target, offset)) throw error;
        return this.readBelow(target, offset);
      },
    );
  }

  /** Whether originals of the range were saved since the hidden disk was at `version`. */
  #isSavedSince(version: number, target: Uint8Array, offset: number): boolean {
    if (this.hidden.version === version) return false;
    const first = firstClusterOf(this.geometry, offset);
    return this.hidden.intersects(first, endClusterOf(this.geometry, offset, target.length));
  }
}
