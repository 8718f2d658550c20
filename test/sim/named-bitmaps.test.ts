import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import type { BitmapStatus } from "../../proto/control-api.ts";
import type { Durability } from "../../proto/words.ts";
import { ScriptedPair } from "./scripted-pair.ts";
import { SeededRandom } from "./seeded-random.ts";
import type { CrashKind } from "./simulated-crash.ts";

const CLUSTER = 4096;
const SIZE = 64 * CLUSTER;
const SEEDS = 8;
const ROUNDS = 6;
const TIMEOUT_MS = 60_000;

/** A bitmap, and what a guest was told that it has written since it began. */
class Checked {
  readonly #scripted: ScriptedPair;
  readonly written = new Set<number>();

  constructor(scripted: ScriptedPair) {
    this.#scripted = scripted;
  }

  async ask(verb: "add" | "clear" | "remove"): Promise<BitmapStatus | undefined> {
    const { primary } = this.#scripted.pair;
    const { agent } = primary;
    assert(agent !== undefined);
    const request = { disk: "vda", name: "daily", timeoutMs: TIMEOUT_MS };
    const outcome = await this.#scripted.calls.make(primary, `bitmap ${verb}`, TIMEOUT_MS, () =>
      agent.bitmap(verb, request, new AbortController().signal),
    );
    if (outcome.kind === "failed") throw outcome.error;
    return outcome.kind === "done" ? outcome.value : undefined;
  }

  async write(offset: number, length: number): Promise<void> {
    const outcome = await this.#scripted.guestWrite(0, offset, length, "bytes");
    if (outcome.kind !== "done") return;
    for (let cluster = Math.floor(offset / CLUSTER); cluster * CLUSTER < offset + length; cluster += 1) {
      this.written.add(cluster);
    }
  }

  /** The dirty clusters, as a client is told. */
  dirty(): Set<number> | undefined {
    const exported = this.#scripted.pair.primary.agent?.exports.find("vda");
    const context = exported?.contexts?.find(({ name }) => name === "qemu:dirty-bitmap:daily");
    if (context === undefined) return undefined;
    const dirty = new Set<number>();
    let at = 0;
    for (const { length, flags } of context.extents(0, SIZE, 10_000)) {
      for (let cluster = at / CLUSTER; cluster < (at + length) / CLUSTER; cluster += 1) {
        if (flags === 1) dirty.add(cluster);
      }
      at += length;
    }
    assert.equal(at, SIZE);
    return dirty;
  }
}

async function restart(scripted: ScriptedPair): Promise<void> {
  const { primary } = scripted.pair;
  primary.host.disk.faults.clear();
  primary.host.restart();
  assert(await primary.start());
}

describe.each<{ durability: Durability; kind: CrashKind }>([
  { durability: "power", kind: "power" },
  { durability: "power", kind: "process" },
  { durability: "process", kind: "process" },
])(
  "a named bitmap of a primary with durability $durability that dies ($kind) at any storage call",
  ({ durability, kind }) => {
    it("never lacks a write that was answered", async () => {
      for (let seed = 1; seed <= SEEDS; seed += 1) {
        const random = new SeededRandom(seed);
        const scripted = new ScriptedPair(seed, durability, { disks: [{ name: "vda", sizeBytes: SIZE }] });
        await scripted.start();
        const checked = new Checked(scripted);
        const { primary } = scripted.pair;
        await scripted.do(`life ${seed}`, async () => {
          await checked.ask("add");
          for (let round = 0; round < ROUNDS; round += 1) {
            primary.host.disk.faults.crashAt(1 + random.below(30), kind === "power" ? "power" : "process");
            for (let count = 0; count < 8 && primary.host.alive; count += 1) {
              if (random.chance(0.2)) {
                // One that is not answered may have happened all the same.
                checked.written.clear();
                await checked.ask("clear");
              } else await checked.write(random.below(SIZE - 9000), 1 + random.below(9000));
            }
            if (primary.host.alive) primary.host.crash(kind);
            await restart(scripted);
            const dirty = checked.dirty();
            assert(dirty !== undefined, `seed ${seed}: the bitmap is gone`);
            for (const cluster of checked.written)
              assert(dirty.has(cluster), `seed ${seed}: cluster ${cluster} is missing`);
            await scripted.wait("synced");
          }
        });
      }
    });
  },
);

describe("a named bitmap", () => {
  it("is exact after a clean stop, and inconsistent once its file cannot be read or the power took what was not fsynced", async () => {
    const scripted = new ScriptedPair(3, "process", { disks: [{ name: "vda", sizeBytes: SIZE }] });
    await scripted.start();
    const checked = new Checked(scripted);
    const { primary } = scripted.pair;
    await scripted.do("writes", async () => {
      await checked.ask("add");
      await checked.write(5000, 10);
      await checked.write(40 * CLUSTER, CLUSTER + 1);
      await primary.stop(1000);
      primary.host.crash("process");
      await restart(scripted);
    });
    expect([...(checked.dirty() ?? [])]).toEqual([1, 40, 41]);
    await scripted.do("loss of power", async () => {
      await checked.write(0, 1);
      primary.host.crash("power");
      await restart(scripted);
    });
    expect(checked.dirty()).toBeUndefined();
    expect(primary.agent?.bitmaps()).toMatchObject([{ state: "inconsistent", fault: "power-lost" }]);
    await scripted.do("removal", () => checked.ask("remove"));
    expect(primary.agent?.bitmaps()).toEqual([]);
  });

  it("counts also where its beginning could not be recorded, as long as a crash may bring it back", async () => {
    const scripted = new ScriptedPair(5, "process", { disks: [{ name: "vda", sizeBytes: SIZE }] });
    await scripted.start();
    const checked = new Checked(scripted);
    const { primary } = scripted.pair;
    const { faults } = primary.host.disk;
    await scripted.do("an addition that is not recorded", async () => {
      faults.inject({ op: "sync", kind: "state", error: "io-error", times: Number.POSITIVE_INFINITY });
      faults.inject({ op: "remove", error: "io-error", times: Number.POSITIVE_INFINITY });
      await expect(checked.ask("add")).rejects.toMatchObject({ code: "io-error" });
      expect(primary.agent?.bitmaps()).toEqual([]);
      await checked.write(5000, 10);
      primary.host.crash("process");
      await restart(scripted);
    });
    expect(primary.agent?.bitmaps()).toMatchObject([{ name: "daily", state: "recording" }]);
    expect([...(checked.dirty() ?? [])]).toEqual(expect.arrayContaining([...checked.written]));
    expect(checked.written).toEqual(new Set([1]));
  });

  it("whose beginning could not be recorded leaves nothing once the state can be written", async () => {
    const scripted = new ScriptedPair(7, "process", { disks: [{ name: "vda", sizeBytes: SIZE }] });
    await scripted.start();
    const checked = new Checked(scripted);
    const { primary } = scripted.pair;
    const files = (): string[] => primary.host.disk.paths().filter((path) => path.includes("/bitmaps/"));
    await scripted.do("an addition that is not recorded", async () => {
      primary.host.disk.faults.inject({ op: "sync", kind: "state", error: "io-error" });
      await expect(checked.ask("add")).rejects.toMatchObject({ code: "io-error" });
      expect(files()).toHaveLength(1);
      await scripted.until("removal", () => files().length === 0);
      await checked.ask("add");
      await checked.write(5000, 10);
    });
    expect([...(checked.dirty() ?? [])]).toEqual([1]);
    expect(files()).toHaveLength(1);
  });
});
