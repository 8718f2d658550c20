import { resolve } from "node:path";
import { describe, expect, it } from "vitest";
import { vmStateSocketOf } from "../../../cli/agent-flags.ts";
import { ControlClient } from "../../../shared/control/api-client.ts";

describe("the socket that a VM migrates into", () => {
  it("is named for a QEMU with another working directory", () => {
    const agent = new ControlClient({ kind: "socket", path: "run/web/control.sock" });
    expect(vmStateSocketOf(agent)).toBe(resolve("run/web/vmstate.sock"));
  });
});
