import { expect, it } from "vitest";
import { readBootId } from "../../../../shared/host/boot-id.ts";

it("the boot id is one id, without a line end, for as long as the machine is up", () => {
  const id = readBootId();
  expect(id).toMatch(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
  expect(readBootId()).toBe(id);
});
