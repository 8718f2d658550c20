/** Images of formats that an agent makes with qemu-img. */
import { linkSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { AgentImages } from "../../cli/agent-images.ts";
import { createFormatImage } from "../../shared/host/create-format-image.ts";
import { NodeClock } from "../../shared/host/node-clock.ts";
import { NodeRandom } from "../../shared/host/node-random.ts";
import { NodeStorage } from "../../shared/host/node-storage.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { SilentLog } from "../support/silent-log.ts";

const SIZE = 1024 * 1024;
const storage = new NodeStorage();

describe.runIf(requirePeers("qemu-img"))("an image of a format that is made", () => {
  it.each([
    ["qcow2", "qcow2"],
    ["qcow2", "raw"],
    ["raw", "qcow2"],
  ])("is made once where two ask for it at once: %s and %s", async (...formats) => {
    const root = scratchDirectory();
    const path = join(root, "disk.img");
    const [clock, random] = [new NodeClock(), new NodeRandom()];
    const images = new AgentImages({ storage, clock, random, log: new SilentLog(), runDirectory: root });
    const made = await Promise.all(
      formats.map(async (format) => {
        await images.create(`${format}:${path}`, SIZE);
        return statSync(path).ino;
      }),
    );
    expect(new Set(made).size).toBe(1);
    expect(storage.list(root)).toEqual(["disk.img"]);
  });

  it("replaces no file that has come by the name meanwhile", async () => {
    const path = join(scratchDirectory(), "disk.img");
    const creating = createFormatImage(storage, "qcow2", path, SIZE);
    writeFileSync(path, "precious");
    await expect(creating).rejects.toMatchObject({ code: "io-error" });
    expect(readFileSync(path, "utf8")).toBe("precious");
  });

  it("is not made in one that was moved away after a crash had left it with two names", async () => {
    const path = join(scratchDirectory(), "disk.img");
    const moved = `${path}.moved`;
    writeFileSync(moved, "precious");
    linkSync(moved, `${path}.creating`);
    await createFormatImage(storage, "qcow2", path, SIZE);
    expect(readFileSync(moved, "utf8")).toBe("precious");
  });
});
