import { truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import type { StateRecord } from "../../../../proto/state-record.ts";
import { FileImages } from "../../../../shared/block/file-images.ts";
import type { Image } from "../../../../shared/block/image.ts";
import { NodeStorage } from "../../../../shared/host/node-storage.ts";
import { canMakeBlockDevices, scratchBlockDevice, scratchDirectory } from "../../../support/scratch.ts";
import { SilentLog } from "../../../support/silent-log.ts";

const MIB = 1024 * 1024;
const PLAIN = { fua: false, mayUnmap: true } as const;

function recorded(image: string, sizeBytes: number | null): StateRecord["disks"][number] {
  return { name: "vda", image, sizeBytes, cleanMark: null };
}

function opened(images: FileImages, ...disk: Parameters<FileImages["open"]>): Image {
  const image = images.open(...disk);
  onTestFinished(() => image.close());
  return image;
}

function sizeChanged(message: string): unknown {
  return expect.objectContaining({ code: "image-changed", message: expect.stringContaining(message) });
}

describe.runIf(canMakeBlockDevices())("a recorded disk on a block device", () => {
  it.each(["own", "shared", "foreign"] as const)("has the first part of one that is longer: %s", (use) => {
    const device = scratchBlockDevice(4 * MIB);
    const log = new SilentLog();
    const images = new FileImages(new NodeStorage(), log);
    expect(opened(images, recorded(device, 3 * MIB), use).sizeBytes).toBe(3 * MIB);
    expect(log.lines).toMatchObject([
      { level: "info", fields: { disk: "vda", image: device, deviceBytes: 4 * MIB, diskBytes: 3 * MIB } },
    ]);
  });

  it("has what lies behind its end left alone, and grows into it", async () => {
    const device = scratchBlockDevice(4 * MIB);
    const images = new FileImages(new NodeStorage());
    const whole = images.open(recorded(device, 4 * MIB));
    await whole.write(Buffer.alloc(4 * MIB, 7), 0, PLAIN);
    await whole.flush();
    whole.close();
    const image = opened(images, recorded(device, 2 * MIB));
    expect(image.extents(0, 2 * MIB, 8)).toEqual([{ length: 2 * MIB, hole: false, zero: false }]);
    await image.zero(0, 2 * MIB, PLAIN);
    await image.grow(3 * MIB);
    expect(image.sizeBytes).toBe(3 * MIB);
    const content = Buffer.alloc(3 * MIB);
    await image.read(content, 0);
    expect(content.equals(Buffer.alloc(3 * MIB, 7).fill(0, 0, 2 * MIB))).toBe(true);
    await expect(image.grow(5 * MIB)).rejects.toMatchObject({ action: expect.stringContaining("lvextend") });
    expect(image.sizeBytes).toBe(3 * MIB);
  });

  it("is told of once, and not where it has the whole device", () => {
    const device = scratchBlockDevice(4 * MIB);
    const log = new SilentLog();
    const images = new FileImages(new NodeStorage(), log);
    images.open(recorded(device, 4 * MIB)).close();
    expect(log.lines).toEqual([]);
    images.open(recorded(device, 3 * MIB)).close();
    images.open(recorded(device, 3 * MIB)).close();
    expect(log.lines).toHaveLength(1);
  });

  it("has all of it where no size is recorded yet", async () => {
    const device = scratchBlockDevice(4 * MIB);
    const images = new FileImages(new NodeStorage());
    expect(await images.measure(device)).toBe(4 * MIB);
    expect(opened(images, recorded(device, null)).sizeBytes).toBe(4 * MIB);
  });

  it("is as long as a disk that it is chosen for, where it is longer", async () => {
    const device = scratchBlockDevice(4 * MIB);
    const images = new FileImages(new NodeStorage());
    expect(await images.measureFor(device, 3 * MIB)).toBe(3 * MIB);
    expect(await images.measureFor(device, 5 * MIB)).toBe(4 * MIB);
  });

  it("refuses one that is shorter, and lets go of it", () => {
    const device = scratchBlockDevice(4 * MIB);
    const images = new FileImages(new NodeStorage());
    expect(() => images.open(recorded(device, 5 * MIB))).toThrow(sizeChanged(`${4 * MIB} bytes`));
    opened(images, recorded(device, 4 * MIB));
  });
});

describe("a recorded disk in a file", () => {
  it("has the file's size, whichever disk that is chosen for", async () => {
    const path = join(scratchDirectory(), "vda.img");
    writeFileSync(path, Buffer.alloc(4096));
    expect(await new FileImages(new NodeStorage()).measureFor(path, 1024)).toBe(4096);
  });

  it.each([-512, 512])("refuses one whose size has changed by %i bytes", (bytes) => {
    const path = join(scratchDirectory(), "vda.img");
    writeFileSync(path, Buffer.alloc(4096));
    truncateSync(path, 4096 + bytes);
    const images = new FileImages(new NodeStorage());
    expect(() => images.open(recorded(path, 4096))).toThrow(sizeChanged(`${4096 + bytes} bytes`));
  });
});
