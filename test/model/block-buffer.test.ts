import * as fc from "fast-check";
import { expect, it } from "vitest";
import { openImage } from "../../shared/block/image.ts";
import { NodeClock } from "../../shared/host/node-clock.ts";
import { BlockBuffer, type BufferHost } from "../../secondary/block-buffer.ts";
import type { BufferedChange } from "../../secondary/buffer-log.ts";
import { BufferMemory } from "../../secondary/buffer-memory.ts";
import type { EpochView } from "../../secondary/epoch-overlay.ts";
import type { OverlayContext } from "../../secondary/overlay-files.ts";
import type { DiskImage } from "../../shared/block/disk-image.ts";
import { turn, type MemoryStorage } from "../support/memory-storage.ts";
import { CLUSTER_BYTES, overlaysOn, pattern, seededStorage } from "../support/overlay-bench.ts";

const SIZE = 6 * CLUSTER_BYTES + 1536;
const IMAGE = "/images/vda.img";

const STEPS = ["sync", "barrier", "commit", "withdraw", "hold", "let-go", "join", "turn", "crash", "power"] as const;
type Step =
  | { readonly do: BufferedChange["kind"]; readonly offset: number; readonly length: number }
  | { readonly do: (typeof STEPS)[number]; readonly pick: number };

const change: fc.Arbitrary<Step> = fc
  .record({
    do: fc.constantFrom("write" as const, "write" as const, "zero" as const, "discard" as const),
    unit: fc.constantFrom(1, 7, 512, CLUSTER_BYTES),
    at: fc.nat({ max: SIZE }),
    count: fc.integer({ min: 1, max: 12 }),
  })
  .map(({ do: what, unit, at, count }) => {
    const offset = Math.min(SIZE - 1, Math.floor(at / unit) * unit);
    return { do: what, offset, length: Math.min(SIZE - offset, count * unit) };
  });
const other: fc.Arbitrary<Step> = fc.record({ do: fc.constantFrom(...STEPS), pick: fc.nat() });
const step = fc.oneof({ weight: 5, arbitrary: change }, { weight: 4, arbitrary: other });

/** A block buffer beside what it has to show: the plain content of each checkpoint, and of everything that has come. */
class Checked {
  readonly #storage: MemoryStorage;
  readonly #context: OverlayContext;
  readonly #memory: BufferMemory;
  #base: DiskImage;
  #buffer: BlockBuffer;
  #committed = 1;
  #open = 2;
  #prepared: number[] = [];
  #held: number | undefined;
  readonly #checkpoints = new Map<number, Buffer>();
  #latest: Buffer;
  /** What the disk held before each change that no sync has covered. */
  #unsynced: Buffer[] = [];

  constructor(seed: number, durability: "power" | "process", memoryBytes: number) {
    this.#storage = seededStorage(seed, 0.3);
    this.#context = overlaysOn(this.#storage, SIZE, durability);
    this.#latest = pattern(SIZE, seed);
    this.#storage.disk.addDirectory("/images");
    this.#storage.disk.addFile(IMAGE, SIZE, this.#latest);
    this.#checkpoints.set(1, Buffer.from(this.#latest));
    this.#memory = new BufferMemory({ bytes: memoryBytes, fragments: 1000 }, () => undefined);
    this.#base = openImage(this.#storage, IMAGE);
    this.#buffer = this.#recover();
  }

  async do(action: Step, seed: number): Promise<void> {
    switch (action.do) {
      case "write":
      case "zero":
      case "discard":
        await this.#change(action, seed);
        break;
      case "sync":
        await this.#sync();
        break;
      case "barrier":
        await this.#sync();
        this.#checkpoints.set(this.#open, Buffer.from(this.#latest));
        this.#prepared.push(this.#open);
        this.#open += 1;
        this.#buffer.openEpoch(this.#open);
        break;
      case "commit": {
        const epoch = this.#prepared[action.pick % this.#prepared.length];
        if (epoch === undefined) break;
        this.#committed = epoch;
        this.#prepared = this.#prepared.filter((prepared) => prepared > epoch);
        this.#buffer.keepThrough(epoch);
        this.#buffer.release(this.#floor);
        break;
      }
      case "withdraw":
        if (this.#prepared.length > 0) this.#prepared.splice(action.pick % this.#prepared.length, 1);
        break;
      case "hold":
        this.#held ??= this.#committed;
        break;
      case "let-go":
        this.#held = undefined;
        this.#buffer.release(this.#floor);
        break;
      case "join":
        await this.#buffer.join(
          () => [this.#floor, this.#committed, ...this.#prepared],
          action.pick % 3,
          (replace) => Promise.resolve(replace()),
        );
        break;
      case "turn":
        for (let left = action.pick % 20; left > 0; left -= 1) await turn();
        break;
      case "crash":
      case "power":
        await this.#die(action.do === "power" && this.#context.durability === "power");
        break;
    }
  }

  async check(): Promise<void> {
    await this.#expect(this.#buffer, this.#checkpoints.get(this.#committed), "the view");
    if (this.#held !== undefined) {
      await this.#expect(this.#buffer.asOf(this.#held), this.#checkpoints.get(this.#held), "the held view");
    }
    expect((await this.#readLatest()).equals(this.#latest), "everything").toBe(true);
  }

  /** In the end the base has everything that is committed, and no storage is left of it. */
  async finish(): Promise<void> {
    this.#held = undefined;
    await this.#buffer.release(this.#committed)();
    const base = Buffer.alloc(SIZE);
    await this.#base.read(base, 0);
    expect(this.#checkpoints.get(this.#committed)?.equals(base), "the base").toBe(true);
    expect(this.#buffer.keptBytes).toBe(0);
    await this.#buffer.end();
  }

  get #floor(): number {
    return this.#held ?? this.#committed;
  }

  async #change(action: Extract<Step, { offset: number }>, seed: number): Promise<void> {
    const { do: kind, offset, length } = action;
    const payload = kind === "write" ? pattern(length, seed) : Buffer.alloc(0);
    this.#unsynced.push(Buffer.from(this.#latest));
    await this.#buffer.append([{ kind, offset, length, payload }]);
    if (kind === "write") payload.copy(this.#latest, offset);
    else this.#latest.fill(0, offset, offset + length);
  }

  async #sync(): Promise<void> {
    await this.#buffer.sync();
    this.#unsynced = [];
  }

  async #die(losesPower: boolean): Promise<void> {
    await this.#buffer.end();
    this.#storage.crash(losesPower ? "power" : "process");
    this.#held = undefined;
    this.#base = openImage(this.#storage, IMAGE);
    this.#buffer = this.#recover();
    this.#buffer.release(this.#committed);
    await this.#buffer.makeDurable();
    if (losesPower) {
      const found = await this.#readLatest();
      const possible = [...this.#unsynced, this.#latest].some((content) => content.equals(found));
      expect(possible, "what was not synced is lost from some change on").toBe(true);
      this.#latest = found;
    }
    if (this.#context.durability === "power") this.#unsynced = [];
  }

  #recover(): BlockBuffer {
    const host: BufferHost = {
      memory: this.#memory,
      clock: new NodeClock(),
      failed: (reason) => {
        throw reason;
      },
      applied: () => undefined,
    };
    return BlockBuffer.recover(this.#context, this.#base, { committed: this.#committed, open: this.#open }, host);
  }

  async #readLatest(): Promise<Buffer> {
    const found = Buffer.alloc(SIZE);
    await this.#buffer.readLatest(found, 0);
    return found;
  }

  async #expect(view: EpochView, content: Buffer | undefined, what: string): Promise<void> {
    const found = Buffer.alloc(SIZE);
    const readBase = (target: Uint8Array, offset: number) => this.#base.read(target, offset);
    for (let cluster = 0; cluster * CLUSTER_BYTES < SIZE; cluster += 1) {
      const piece = found.subarray(cluster * CLUSTER_BYTES, (cluster + 1) * CLUSTER_BYTES);
      const source = view.find(cluster);
      expect(source !== undefined).toBe(view.intersects(cluster, cluster + 1));
      await (source === undefined
        ? readBase(piece, cluster * CLUSTER_BYTES)
        : source.read(piece, cluster * CLUSTER_BYTES, readBase));
    }
    expect(content?.equals(found), what).toBe(true);
  }
}

it.each([
  ["process", 0],
  ["power", 0],
  ["power", 1024 * 1024],
] as const)(
  "shows every checkpoint and loses no change, durability %s and %i bytes of memory",
  async (durability, memory) => {
    await fc.assert(
      fc.asyncProperty(fc.nat(), fc.array(step, { maxLength: 40, size: "max" }), async (seed, steps) => {
        const checked = new Checked(seed, durability, memory);
        for (const [index, action] of steps.entries()) {
          await checked.do(action, seed * 1000 + index);
          await checked.check();
        }
        await checked.finish();
      }),
      { numRuns: 100 },
    );
  },
);
