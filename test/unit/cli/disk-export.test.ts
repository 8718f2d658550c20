import { describe, expect, it } from "vitest";
import { DiskExports } from "../../../cli/disk-export.ts";
import { ColobusError } from "../../../proto/errors.ts";
import { MemoryDevice } from "../../support/memory-device.ts";
import { present } from "../../support/present.ts";

describe("the exports of an agent", () => {
  it("are found by name, and the first one by no name", () => {
    const exports = new DiskExports(() => ["vda", "vdb"]);
    expect(exports.find("")).toBeUndefined();
    exports.put("vda", "vm1", new MemoryDevice(4096), false);
    exports.put("vdb", "vm1", new MemoryDevice(8192), true);
    expect(exports.find("")).toBe(exports.find("vda"));
    expect(exports.find("vdb")).toMatchObject({ sizeBytes: 8192, readOnly: true, description: "disk vdb of VM vm1" });
    expect(exports.find("vdc")).toBeUndefined();
    expect(exports.list().map(({ name }) => name)).toEqual(["vda", "vdb"]);
  });

  it("are in the disks' order, and no other one stands for a first one that is not there yet", () => {
    const exports = new DiskExports(() => ["vda", "vdb"]);
    exports.put("vdb", "vm1", new MemoryDevice(8192), false);
    expect(exports.find("")).toBeUndefined();
    exports.put("vda", "vm1", new MemoryDevice(4096), false);
    expect(exports.find("")).toBe(exports.find("vda"));
    expect(exports.list().map(({ name }) => name)).toEqual(["vda", "vdb"]);
  });

  it("stay the same to their clients when another device is put behind them", () => {
    const exports = new DiskExports(() => ["vda", "vdb"]);
    exports.put("vda", "vm1", new MemoryDevice(4096), true);
    const opened = present(exports.find("vda"));
    exports.opened(opened);
    const next = new MemoryDevice(4096);
    exports.put("vda", "vm1", next, false);
    expect(exports.find("vda")).toBe(opened);
    expect([opened.device, opened.readOnly, exports.clientsOf("vda")]).toEqual([next, false, 1]);
    exports.closed(opened);
    expect(exports.clientsOf("vda")).toBe(0);
  });

  it("answer with a reason when nothing is behind them any more", () => {
    const exports = new DiskExports(() => ["vda", "vdb"]);
    exports.put("vda", "vm1", new MemoryDevice(4096), false);
    exports.withdrawAll(new ColobusError("handed-over", "this side is not Primary any more"));
    expect(() => exports.find("vda")?.device).toThrow(expect.objectContaining({ code: "handed-over" }) as Error);
  });
});
