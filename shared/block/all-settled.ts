import { asColobusError } from "../../proto/errors.ts";
import type { Pending } from "./block-device.ts";

/** Done when all are, or failed with the first failure when all have settled: nothing is under way behind an error. */
export async function allSettled(work: readonly Promise<unknown>[]): Promise<void> {
  for (const outcome of await Promise.allSettled(work)) if (outcome.status === "rejected") throw outcome.reason;
}

/** A failure at once is like one that comes later, for who has others under way. */
export function failingLater(begin: () => Pending): Pending {
  try {
    return begin();
  } catch (thrown) {
    return Promise.reject(asColobusError(thrown));
  }
}
