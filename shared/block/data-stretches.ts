import type { Child, Extent } from "./block-device.ts";

/** Extents that are asked for at a time. */
const EXTENTS_AT_A_TIME = 1024;

export interface Stretch {
  readonly offset: number;
  readonly length: number;
}

/** The parts of a range that may hold anything but zeroes, in order. */
export function dataStretches(
  device: Pick<Child, "extents">,
  offset: number,
  length: number,
): readonly Stretch[] | Promise<readonly Stretch[]> {
  return collect(device, offset, offset + length, []);
}

function collect(
  device: Pick<Child, "extents">,
  from: number,
  end: number,
  found: Stretch[],
): Stretch[] | Promise<Stretch[]> {
  let at = from;
  while (at < end) {
    const extents = device.extents(at, end - at, EXTENTS_AT_A_TIME);
    if (extents instanceof Promise) {
      const start = at;
      return extents.then((later) => collect(device, addData(later, start, end, found), end, found));
    }
    at = addData(extents, at, end, found);
  }
  return found;
}

/** Adds the extents that are not zero to `found`; returns where they end. */
function addData(extents: readonly Extent[], from: number, end: number, found: Stretch[]): number {
  let at = from;
  for (const extent of extents) {
    const length = Math.min(extent.length, end - at);
    if (!extent.zero && length > 0) found.push({ offset: at, length });
    at += length;
  }
  return at;
}
