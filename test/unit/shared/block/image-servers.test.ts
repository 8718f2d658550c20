import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../../proto/errors.ts";
import { DISK_RETRY_MS } from "../../../../proto/limits.ts";
import type { DiskImage, ImageSource } from "../../../../shared/block/disk-image.ts";
import { FileImages } from "../../../../shared/block/file-images.ts";
import { ImageServers } from "../../../../shared/block/image-servers.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { MemoryStorage } from "../../../support/memory-storage.ts";

const DISK = { name: "vda", image: "/images/vda.img", sizeBytes: 65_536, cleanMark: null };
const GONE = new ColobusError("io-error", "its server has died", "Start it.");

type Watcher = (reason: ColobusError | undefined) => void;

function watched() {
  const storage = new MemoryStorage();
  storage.disk.addFile(DISK.image, DISK.sizeBytes);
  const files = new FileImages(storage);
  const watchers: Watcher[] = [];
  const clock = new ManualClock();
  const told: string[] = [];
  const servers = new ImageServers({ clock, emit: (type, data) => told.push(`${type} ${String(data.disk)}`) });
  const served: ImageSource = Object.assign(Object.create(files) as ImageSource, {
    open: (): DiskImage =>
      Object.assign(files.open(DISK), { watchServer: (watcher: Watcher) => void watchers.push(watcher) }),
  });
  const open = (): { image: DiskImage; changed: Watcher } => {
    const image = servers.watching(served).open(DISK);
    const changed = watchers.at(-1);
    if (changed === undefined) throw new Error("it is not watched");
    return { image, changed };
  };
  return { servers, clock, told, open };
}

describe("the servers of images", () => {
  it("are told of when they are lost, and when they are back", () => {
    const { servers, told, open } = watched();
    const { changed } = open();
    expect(servers.describeProtection()).toBeUndefined();
    changed(GONE);
    changed(GONE);
    expect(servers.describeProtection()).toEqual({
      state: "NotProtected",
      reason: "image-away",
      nextAction: "its server has died: Start it.",
    });
    changed(undefined);
    expect(servers.describeProtection()).toBeUndefined();
    expect(told).toEqual(["image-away vda", "image-back vda"]);
  });

  it("that come and go are told of once in a while", () => {
    const { servers, clock, told, open } = watched();
    const { changed } = open();
    for (let round = 0; round < 100; round += 1) {
      changed(GONE);
      changed(undefined);
    }
    expect(told).toHaveLength(2);
    changed(GONE);
    clock.advance(DISK_RETRY_MS - 1);
    expect(servers.fault).toBeUndefined();
    clock.advance(1);
    expect(servers.fault).toBe(GONE);
    expect(told).toHaveLength(3);
  });

  it("that were away count as there when the image is opened anew, until they are lost again", () => {
    const { servers, told, open } = watched();
    const first = open();
    first.changed(GONE);
    first.image.close();
    open();
    expect(servers.fault).toBeUndefined();
    expect(told.at(-1)).toBe("image-back vda");
  });
});
