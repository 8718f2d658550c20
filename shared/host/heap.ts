import { setFlagsFromString } from "node:v8";

/** The growth of the heap over what lives in it, at which V8 begins a full collection. */
const HEAP_GROWTH_PERCENT = 400;

/**
 * Has V8 leave received bytes to its young collections. Node reads a socket into buffers outside of the heap, which are
 * dead milliseconds later and which a young collection frees. But they count as growth of the heap, so with the little
 * that V8 allows a small heap to grow, a stream of a few hundred MB/s makes it walk everything that lives ten times a
 * second: more work than everything else that the agent does.
 */
export function spareFullCollections(): void {
  setFlagsFromString(`--heap-growing-percent=${HEAP_GROWTH_PERCENT}`);
}
