/** Images of formats that one host writes while another one reads them, each through a qemu-nbd of its own. */
import { randomBytes } from "node:crypto";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { AgentImages, SHARED_FORMATS } from "../../cli/agent-images.ts";
import type { DiskImage } from "../../shared/block/disk-image.ts";
import { NodeClock } from "../../shared/host/node-clock.ts";
import { NodeRandom } from "../../shared/host/node-random.ts";
import { NodeStorage } from "../../shared/host/node-storage.ts";
import { tool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { SilentLog } from "../support/silent-log.ts";
import { ToolProcess } from "../support/tool-process.ts";

const MIB = 1024 * 1024;
const PLAIN = { fua: false } as const;

describe.runIf(requirePeers("qemu-nbd", "qemu-img"))("an image of a format that two hosts use", () => {
  function imagesIn(root: string, name: string): AgentImages {
    const runDirectory = join(root, name);
    mkdirSync(runDirectory);
    const [storage, clock, random] = [new NodeStorage(), new NodeClock(), new NodeRandom()];
    return new AgentImages({ storage, clock, random, log: new SilentLog(), runDirectory });
  }

  async function open(images: AgentImages, image: string, use: "shared" | "foreign"): Promise<DiskImage> {
    const sizeBytes = await images.measure(image, use);
    const opened = images.open({ name: "vda", image, sizeBytes, cleanMark: null }, use);
    onTestFinished(async () => {
      opened.close();
      await opened.changeMark();
    });
    return opened;
  }

  it.each(SHARED_FORMATS)(
    "is read as the writer has flushed it, and where nothing was changed as before: %s",
    async (format) => {
      const root = scratchDirectory();
      const path = join(root, "disk.img");
      await tool("qemu-img", "create", "-q", "-f", format, path, String(32 * MIB));
      const writer = await open(imagesIn(root, "a"), `${format}:${path}`, "shared");
      const reader = await open(imagesIn(root, "b"), `${format}:${path}`, "foreign");
      const unit = writer.placementBytes ?? 0;
      expect(unit).toBeGreaterThan(0);
      const content = Buffer.concat([randomBytes(8 * MIB), Buffer.alloc(8 * MIB)]);
      const find = async (offset: number, length: number): Promise<Buffer> => {
        const found = Buffer.alloc(length);
        await reader.read(found, offset);
        return found;
      };
      expect((await find(0, 16 * MIB)).equals(Buffer.alloc(16 * MIB))).toBe(true);
      await writer.write(content.subarray(0, 8 * MIB), 0, PLAIN);
      await writer.flush();
      reader.invalidate?.();
      expect((await find(0, 16 * MIB)).equals(content)).toBe(true);
      // Every second unit changes: bytes, zeroes, and bytes where nothing was.
      const changed: number[] = [];
      for (let at = 0; at < 16 * MIB; at += 2 * unit) changed.push(at);
      for (const at of changed) {
        if (at % (6 * unit) === 0) await writer.zero(at, unit, { fua: false, mayUnmap: true });
        else await writer.write(Buffer.alloc(512, 0x77), at, PLAIN);
      }
      for (const at of changed)
        expect((await find(at + unit, unit)).equals(content.subarray(at + unit, at + 2 * unit))).toBe(true);
      await writer.flush();
      for (const at of changed)
        expect((await find(at + unit, unit)).equals(content.subarray(at + unit, at + 2 * unit))).toBe(true);
      reader.invalidate?.();
      for (const at of changed) {
        if (at % (6 * unit) === 0) content.fill(0, at, at + unit);
        else content.fill(0x77, at, at + 512);
      }
      expect((await find(0, 16 * MIB)).equals(content)).toBe(true);
    },
  );

  it.each(["vhdx:/disk", "parallels:/disk", "qed:/disk"])("is refused where that is not safe: %s", async (image) => {
    const images = imagesIn(scratchDirectory(), "a");
    await expect(images.measure(image, "foreign")).rejects.toMatchObject({ code: "not-supported" });
  });

  it("behind one server is refused where that is there for one client alone, or to be read only", async () => {
    const root = scratchDirectory();
    await tool("qemu-img", "create", "-q", "-f", "raw", join(root, "disk.img"), String(MIB));
    const refusalOf = async (...flags: string[]): Promise<unknown> => {
      const socket = join(root, `${flags.join("")}.sock`);
      const server = new ToolProcess("qemu-nbd", [
        "-f",
        "raw",
        "-t",
        `--socket=${socket}`,
        ...flags,
        join(root, "disk.img"),
      ]);
      await server.untilListening(socket);
      const refused = imagesIn(root, flags.join("")).measure(`nbd+unix:///?socket=${socket}`, "foreign");
      return refused.then(
        () => undefined,
        (error: unknown) => error,
      );
    };
    expect(await refusalOf("--shared=1")).toMatchObject({
      code: "not-supported",
      message: expect.stringContaining("multi-conn"),
    });
    expect(await refusalOf("--shared=0", "--read-only")).toMatchObject({ code: "read-only" });
  });
});
