import type { Extent } from "../shared/block/block-device.ts";

/**
 * What several copies of the same range say of it together: a hole, or zero, only where all say so. Each answer covers at
 * least the first byte; what it does not cover is not known to be either. Adjacent extents differ.
 */
export function combineExtents(answers: readonly (readonly Extent[])[], length: number, maxExtents: number): Extent[] {
  const [first = [], ...others] = answers;
  let combined = covering(first, length);
  for (const other of others) combined = intersect(combined, covering(other, length));
  if (combined.length === 0) return [{ length, hole: false, zero: false }];
  return combined.slice(0, maxExtents);
}

function covering(extents: readonly Extent[], length: number): Extent[] {
  const covered = extents.reduce((sum, extent) => sum + extent.length, 0);
  return covered < length ? [...extents, { length: length - covered, hole: false, zero: false }] : [...extents];
}

function intersect(one: readonly Extent[], other: readonly Extent[]): Extent[] {
  const result: Extent[] = [];
  let [i, j] = [0, 0];
  let [left, right] = [one[0]?.length ?? 0, other[0]?.length ?? 0];
  for (let a = one[i], b = other[j]; a !== undefined && b !== undefined; a = one[i], b = other[j]) {
    const step = Math.min(left, right);
    const extent = { length: step, hole: a.hole && b.hole, zero: a.zero && b.zero };
    const last = result.at(-1);
    if (last !== undefined && last.hole === extent.hole && last.zero === extent.zero) {
      result[result.length - 1] = { ...last, length: last.length + step };
    } else result.push(extent);
    left -= step;
    right -= step;
    if (left === 0) left = one[(i += 1)]?.length ?? 0;
    if (right === 0) right = other[(j += 1)]?.length ?? 0;
  }
  return result;
}
