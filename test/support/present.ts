import assert from "node:assert/strict";

/** `value`, which the test knows to be there. */
export function present<T>(value: T | undefined): T {
  assert(value !== undefined, "the test counts on a value that is not there");
  return value;
}
