import type { DiskImage } from "../../shared/block/disk-image.ts";
import { MemoryDevice } from "./memory-device.ts";

/** A disk in memory that an agent opens as an image. It never loses what was written. */
export class MemoryImage extends MemoryDevice implements DiskImage {
  readonly hasLostWrites = false;
  isClosed = false;

  override flush(): Promise<void> {
    return super.flush() ?? Promise.resolve();
  }

  rewritten(): void {
    // Nothing is lost here.
  }

  syncOwn(): Promise<void> {
    return this.flush();
  }

  changeMark(): string {
    return "";
  }

  close(): void {
    this.isClosed = true;
  }
}
