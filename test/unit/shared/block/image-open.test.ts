import { linkSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { createImage, openImage, openSharedImage } from "../../../../shared/block/image.ts";
import { NodeStorage } from "../../../../shared/host/node-storage.ts";
import { MemoryStorage } from "../../../support/memory-storage.ts";
import { scratchDirectory } from "../../../support/scratch.ts";

const storage = new NodeStorage();

function scratchPath(): string {
  return join(scratchDirectory(), "vda.img");
}

describe("opening an image", () => {
  it("takes the file's size for the disk's, and the lock until the close", () => {
    const path = scratchPath();
    writeFileSync(path, Buffer.alloc(3 * 512));
    const image = openImage(storage, path);
    expect(image.sizeBytes).toBe(1536);
    expect(image.path).toBe(path);
    expect(() => openImage(storage, path)).toThrow(expect.objectContaining({ code: "image-busy" }));
    image.close();
    openImage(storage, path, { readOnly: true }).close();
  });

  it("locks one that two hosts use with the first request, until it is let go", async () => {
    const path = scratchPath();
    writeFileSync(path, Buffer.alloc(4096));
    const other = openImage(storage, path);
    const image = openSharedImage(storage, path);
    await image.flush();
    expect(() => image.write(Buffer.alloc(512, 1), 0, { fua: false })).toThrow(
      expect.objectContaining({ code: "image-busy" }),
    );
    expect(() => image.ready()).toThrow(expect.objectContaining({ code: "image-busy" }));
    other.close();
    await image.write(Buffer.alloc(512, 1), 0, { fua: false });
    expect(() => openImage(storage, path)).toThrow(expect.objectContaining({ code: "image-busy" }));
    await image.letGo();
    openImage(storage, path).close();
    await image.read(Buffer.alloc(512), 0);
    expect(() => openImage(storage, path)).toThrow(expect.objectContaining({ code: "image-busy" }));
    image.close();
    expect(readFileSync(path).subarray(0, 512)).toEqual(Buffer.alloc(512, 1));
  });

  it("names both ways to make an image that is missing", () => {
    const path = scratchPath();
    expect(() => openImage(storage, path)).toThrow(
      expect.objectContaining({
        code: "image-missing",
        message: expect.stringContaining(path),
        action: expect.stringMatching(new RegExp(`truncate -s SIZE ${path}.*--create`)),
      }),
    );
  });

  it.each([0, 1, 511, 513, 1000])("refuses an image of %i bytes", (size) => {
    const path = scratchPath();
    writeFileSync(path, Buffer.alloc(size));
    expect(() => openImage(storage, path)).toThrow(
      expect.objectContaining({ code: "image-format", message: expect.stringContaining(`${size} bytes`) }),
    );
    // The refused file is not left locked.
    truncateSync(path, 512);
    openImage(storage, path).close();
  });

  it("refuses a qcow2 image, names the ways to use it, and does not touch it", () => {
    const path = scratchPath();
    const content = Buffer.alloc(64 * 1024);
    content.write("QFI\xfb", "latin1");
    writeFileSync(path, content);
    expect(() => openImage(storage, path)).toThrow(
      expect.objectContaining({
        code: "image-format",
        action: expect.stringMatching(/qcow2:.*raw:/),
      }),
    );
    expect(readFileSync(path).equals(content)).toBe(true);
  });
});

describe("creating an image", () => {
  it("makes a sparse one of the size that only its owner can read", async () => {
    const path = scratchPath();
    await createImage(storage, path, 2 ** 40);
    const stat = statSync(path);
    expect(stat.size).toBe(2 ** 40);
    expect(stat.blocks).toBeLessThan(1024);
    expect(stat.mode & 0o777).toBe(0o600);
    const image = openImage(storage, path);
    expect(image.extents(0, 2 ** 40, 10)).toEqual([{ length: 2 ** 40, hole: true, zero: true }]);
    image.close();
  });

  it("never replaces an existing file", async () => {
    const path = scratchPath();
    writeFileSync(path, "precious");
    await expect(createImage(storage, path, 512)).rejects.toMatchObject({ code: "io-error" });
    expect(readFileSync(path, "utf8")).toBe("precious");
  });

  it("takes over what an interrupted creation left, and leaves only the image", async () => {
    const path = scratchPath();
    writeFileSync(`${path}.creating`, Buffer.alloc(4096, 1));
    await createImage(storage, path, 1024);
    expect(readFileSync(path).equals(Buffer.alloc(1024))).toBe(true);
    expect(storage.exists(`${path}.creating`)).toBe(false);
  });

  it("replaces no file that has come by the name meanwhile", async () => {
    const memory = new MemoryStorage();
    memory.makeDirectory("/images");
    let resume: (() => void) | undefined;
    memory.hold = (op) =>
      op === "sync"
        ? new Promise((resolve) => {
            resume = resolve;
          })
        : undefined;
    const creating = createImage(memory, "/images/a.img", 512);
    memory.hold = undefined;
    memory.disk.addFile("/images/a.img", 8, Buffer.from("precious"));
    resume?.();
    await expect(creating).rejects.toMatchObject({ code: "io-error" });
    expect(memory.disk.readFile("/images/a.img").toString()).toBe("precious");
  });

  it("touches no image that was moved away after a crash had left it with two names", async () => {
    const path = scratchPath();
    const moved = `${path}.moved`;
    writeFileSync(moved, "precious");
    linkSync(moved, `${path}.creating`);
    await createImage(storage, path, 512);
    expect(readFileSync(moved, "utf8")).toBe("precious");
  });

  it("refuses a size that no disk has before it makes anything", async () => {
    const path = scratchPath();
    await expect(createImage(storage, path, 1000)).rejects.toMatchObject({ code: "image-format" });
    expect(storage.exists(path)).toBe(false);
  });
});
