import type { Pending } from "./block-device.ts";

/** Done when both are. Errors: those of the first that fails; the other goes on. */
export function both(one: Pending, other: Pending): Pending {
  if (one === undefined) return other;
  if (other === undefined) return one;
  return Promise.all([one, other]).then(() => undefined);
}
