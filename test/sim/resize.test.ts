import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import type { ResizeAnswer } from "../../proto/control-api.ts";
import type { Durability } from "../../proto/words.ts";
import { present } from "../support/present.ts";
import { bufferedBytes } from "./buffered-bytes.ts";
import { Calls, type Outcome } from "./calls.ts";
import {
  copyPath,
  imagePath,
  makePair,
  urlOf,
  type PairDisk,
  type PairMember,
  type PairObserver,
  type PairOptions,
} from "./pair.ts";
import { SimWorld } from "./world.ts";

/**
 * Either host dies at each of its storage calls while a disk is resized and written behind its former end. Started again,
 * the two come together, with both sizes or with one; what was acknowledged is there; and the order can be given again.
 */
type Mode = "colo" | "mc" | "mirror";

const OPTIONS: Omit<PairOptions, "durability" | "mode"> = {
  disks: [{ name: "vda", sizeBytes: 10 * 4096 + 1536 }],
  clusterBytes: 4096,
  ack: "async",
  access: "read-only",
  windowBytes: 1024 * 1024,
  peerTimeoutMs: 5_000,
  createImages: false,
  checkpointEveryMs: undefined,
  retain: 0,
  overlayLimitBytes: undefined,
};

const SEED = 1;
const SIZE = 10 * 4096 + 1536;
/** The former end lies within a cluster, and within an extent of the dirty bitmap; so does the new one. */
const LONGER = 15 * 4096 + 512;
/** What makes devices makes them in units of its own. */
const DEVICE_BYTES = LONGER + 3 * 4096;
const SURPLUS = Buffer.alloc(DEVICE_BYTES - LONGER, 0x5a);
const WRITTEN_AT = SIZE + 700;
const COMMAND = { timeoutMs: 20_000 } as const;
const CALLS_MIN = 7;
const DATA = Buffer.alloc(9000, 0xd7);

const DISK: PairDisk = { name: "vda", sizeBytes: SIZE };

interface SceneOptions {
  readonly hasCopies?: boolean;
  readonly servesImages?: boolean;
  readonly hasDevices?: boolean;
  readonly seed?: number;
}

class ResizeScene {
  readonly world: SimWorld;
  readonly primary: PairMember;
  readonly secondary: PairMember;
  readonly #calls: Calls;
  readonly #mode: Mode;
  /** The primary's disk has a copy beside its image. */
  readonly #hasCopies: boolean;
  /** All images are block devices, which somebody else makes longer before the resize. */
  readonly #hasDevices: boolean;
  /** What the committed checkpoint has. */
  #committed: Buffer = Buffer.alloc(0);
  /** The write behind the former end was acknowledged. */
  #isWritten = false;
  /** Why sessions have ended. */
  readonly losses: unknown[] = [];
  /** Dirty bitmaps that could not be kept. */
  readonly stateErrors: unknown[] = [];

  constructor(
    durability: Durability,
    mode: Mode = "colo",
    { hasCopies = false, servesImages = false, hasDevices = false, seed = SEED }: SceneOptions = {},
  ) {
    this.world = new SimWorld(seed);
    this.#calls = new Calls(this.world);
    this.#mode = mode;
    this.#hasCopies = hasCopies;
    this.#hasDevices = hasDevices;
    const content = Buffer.alloc(SIZE, 0x41);
    const pair = makePair(
      this.world,
      { ...OPTIONS, mode, durability, hasCopies, servesImages },
      { primary: [content], secondary: [Buffer.alloc(SIZE)] },
      this.#observer,
    );
    this.primary = pair.primary;
    this.secondary = pair.secondary;
    if (hasDevices) this.#makeDevices(SIZE);
  }

  #makeDevices(sizeBytes: number, content?: Buffer): void {
    for (const { host } of [this.primary, this.secondary]) host.disk.makeDevice(imagePath(DISK), sizeBytes, content);
    if (this.#hasCopies) this.primary.host.disk.makeDevice(copyPath(DISK), sizeBytes, content);
  }

  get #observer(): PairObserver {
    return {
      requested: () => undefined,
      happened: (_, { type, data }) => {
        if (type === "peer-disconnected") this.losses.push(data.code);
        if (type === "state-error") this.stateErrors.push(data);
      },
    };
  }

  do<T>(what: string, work: () => Promise<T>): Promise<T> {
    return this.world.do(what, work);
  }

  /** Both run, a checkpoint is committed, and the overlays hold what was written since. */
  begin(): Promise<void> {
    return this.do("the start", async () => {
      await this.secondary.start();
      await this.primary.start();
      await this.until("committed");
      while (!this.#areSound) await this.world.sleep(1);
      const device = this.primary.device(DISK);
      await device?.write(Buffer.alloc(9000, 0x42), SIZE - 9000, { fua: true });
      await this.checkpoint();
      await device?.write(Buffer.alloc(5000, 0x43), SIZE - 5000, { fua: true });
      if (this.#hasDevices) this.#makeDevices(DEVICE_BYTES, Buffer.concat([Buffer.alloc(LONGER - SIZE), SURPLUS]));
    });
  }

  async checkpoint(member = this.primary): Promise<void> {
    if (this.#mode === "mirror") return;
    await member.agent?.checkpoint({ prepare: false, ...COMMAND }, new AbortController().signal);
    this.#committed = await this.read(member, 0, member.device(DISK)?.sizeBytes ?? 0);
  }

  resize(member: PairMember, sizeBytes = LONGER): Promise<Outcome<ResizeAnswer>> {
    const { agent } = member;
    const request = { disk: "vda", sizeBytes, closeClients: false, ...COMMAND };
    return this.#calls.make(member, "resize", COMMAND.timeoutMs, () => {
      assert(agent !== undefined);
      return agent.resize(request, new AbortController().signal);
    });
  }

  /** The order, and what a guest does when it has the new size. */
  async order(): Promise<Outcome<ResizeAnswer>> {
    const outcome = await this.resize(this.primary);
    if (outcome.kind !== "done") return outcome;
    const device = this.primary.device(DISK);
    const written = await this.#calls.make(this.primary, "write", COMMAND.timeoutMs, () =>
      device?.write(DATA, WRITTEN_AT, { fua: true }),
    );
    this.#isWritten = written.kind === "done";
    return outcome;
  }

  async restart(member: PairMember): Promise<void> {
    member.host.disk.faults.clear();
    member.host.restart();
    assert(await member.start());
  }

  async read(member: PairMember, offset: number, length: number): Promise<Buffer> {
    const content = Buffer.alloc(length);
    await member.device(DISK)?.read(content, offset);
    return content;
  }

  /** The view is the committed checkpoint, and nothing behind the end that the disk had then. */
  async checkView(): Promise<void> {
    const sizeBytes = this.secondary.device(DISK)?.sizeBytes ?? 0;
    assert(sizeBytes === SIZE || sizeBytes === LONGER);
    const expected = Buffer.alloc(sizeBytes);
    this.#committed.copy(expected);
    assert((await this.read(this.secondary, 0, sizeBytes)).equals(expected), "the view is another one");
  }

  /** The order is given again, and everything goes on behind the former end. */
  async finish(primary = this.primary): Promise<void> {
    await this.until("synced", primary);
    const outcome = await this.resize(primary);
    assert(outcome.kind === "done", outcome.kind === "failed" ? outcome.error.message : outcome.kind);
    assert.equal(primary.device(DISK)?.sizeBytes, LONGER);
    if (this.#isWritten && primary === this.primary) {
      assert((await this.read(primary, WRITTEN_AT, DATA.length)).equals(DATA), "what was acknowledged is lost");
    }
    await primary.device(DISK)?.write(Buffer.alloc(512, 0x99), LONGER - 512, { fua: false });
    await this.until("synced", primary);
    await this.checkpoint(primary);
    await this.checkpoint(primary); // in mode mc the base has what the last but one committed
    if (this.#mode === "mc") await this.#applied();
    while (!this.#areSound) await this.world.sleep(1);
    this.checkCopies();
  }

  get #areSound(): boolean {
    const children = this.primary.agent?.status().disks[0]?.children ?? [];
    return this.primary.agent?.role !== "Primary" || children.every(({ state }) => state === "sound");
  }

  /** What is committed is in the base. */
  async #applied(): Promise<void> {
    while (bufferedBytes(this.secondary) > 0) await this.world.sleep(1);
  }

  async until(condition: "synced" | "merged" | "committed", member = this.primary): Promise<void> {
    await member.agent?.wait({ condition, ...COMMAND }, new AbortController().signal);
  }

  /** The secondary is promoted in the primary's place, which is down, and resizes; that one starts again, and rejoins. */
  async swap(): Promise<PairMember> {
    const { secondary } = this;
    const signal = new AbortController().signal;
    const request = { force: true, dryRun: false, discardActive: false, ...COMMAND };
    await secondary.agent?.failover(request, signal);
    await this.checkView();
    await this.until("merged", secondary);
    await this.restart(this.primary);
    const { agent } = this.primary;
    while (agent?.status().protection.reason !== "outdated") await this.world.sleep(1);
    await this.resize(secondary);
    await agent.rejoin({ peer: urlOf("b"), ...COMMAND }, signal);
    return secondary;
  }

  async lose(): Promise<void> {
    while (this.primary.agent?.status().peers[0]?.connection === "Connected") await this.world.sleep(1);
  }

  checkCopies(): void {
    const [a, b] = [this.primary, this.secondary].map(({ host }) => host.disk.readFile(imagePath(DISK)));
    assert.equal(a?.length, this.#hasDevices ? DEVICE_BYTES : LONGER);
    assert(b?.equals(a) === true, "the copies differ");
    if (this.#hasDevices) assert(a.subarray(LONGER).equals(SURPLUS), "what no disk has was changed");
    if (!this.#hasCopies || this.primary.agent?.role !== "Primary") return;
    assert(this.primary.host.disk.readFile(copyPath(DISK)).equals(a), "the copy beside the image differs");
  }
}

interface Case extends Pick<SceneOptions, "hasCopies" | "servesImages" | "hasDevices"> {
  readonly side: "primary" | "secondary";
  readonly durability: Durability;
  readonly what: string;
  readonly mode?: Mode;
  readonly isSwapped?: boolean;
}

/** False when the order was over before the host's `dyingCall`-th storage call. */
async function dieAt(dyingCall: number, { side, durability, mode, isSwapped, ...images }: Case): Promise<boolean> {
  const scene = new ResizeScene(durability, mode, images);
  const dying = scene[side];
  await scene.begin();
  dying.host.disk.faults.crashAt(dyingCall, durability);
  let isOver = false;
  scene.world.schedule(0, () => void scene.order().then(() => (isOver = true)));
  await scene.world.run({ until: () => !dying.host.alive || isOver, forMs: 60_000 });
  if (dying.host.alive) return false;
  await scene.do(`the life after call ${dyingCall}`, async () => {
    const primary = isSwapped === true ? await scene.swap() : scene.primary;
    if (isSwapped !== true) {
      if (side === "secondary") await scene.lose();
      await scene.restart(dying);
      await scene.checkView();
    }
    await scene.finish(primary);
  });
  return true;
}

describe("a resize, while a host dies at every storage call", () => {
  it.each<Case>([
    { what: "primary without power", side: "primary", durability: "power" },
    { what: "killed primary", side: "primary", durability: "process" },
    { what: "secondary without power", side: "secondary", durability: "power" },
    { what: "secondary with a block buffer", side: "secondary", durability: "power", mode: "mc" },
    { what: "primary with copies without power", side: "primary", durability: "power", hasCopies: true },
    { what: "killed primary with copies", side: "primary", durability: "process", hasCopies: true },
    { what: "primary of served images without power", side: "primary", durability: "power", servesImages: true },
    { what: "secondary of served images without power", side: "secondary", durability: "power", servesImages: true },
    {
      what: "primary of devices without power",
      side: "primary",
      durability: "power",
      hasDevices: true,
      hasCopies: true,
    },
    { what: "secondary of devices without power", side: "secondary", durability: "power", hasDevices: true },
    {
      what: "secondary of devices with a block buffer",
      side: "secondary",
      durability: "power",
      mode: "mc",
      hasDevices: true,
    },
    { what: "primary whose secondary takes over", side: "primary", durability: "power", isSwapped: true },
    {
      what: "primary of devices whose secondary takes over",
      side: "primary",
      durability: "power",
      isSwapped: true,
      hasDevices: true,
    },
  ])("is finished or undone, and goes on: $what", async (one) => {
    let deaths = 0;
    while (await dieAt(deaths + 1, one)) deaths += 1;
    expect(deaths).toBeGreaterThan(CALLS_MIN);
  });
});

describe("a resize", () => {
  async function begun(options: SceneOptions = {}): Promise<ResizeScene> {
    const scene = new ResizeScene("power", "colo", options);
    await scene.begin();
    return scene;
  }

  it("without a secondary is followed by that when it connects", async () => {
    const scene = await begun();
    await scene.do("it", async () => {
      scene.secondary.host.crash("process");
      await scene.lose();
      expect(await scene.order()).toMatchObject({ kind: "done", value: { formerSizeBytes: SIZE, grownPeers: 0 } });
      await scene.restart(scene.secondary);
      await scene.finish();
      expect(scene.secondary.device(DISK)?.sizeBytes).toBe(LONGER);
    });
  });

  it.each(Array.from({ length: 24 }, (_, index) => index + 1))(
    "while the two greet each other has them do it anew: seed %i",
    async (seed) => {
      const scene = await begun({ seed });
      await scene.do("it", async () => {
        scene.primary.host.crash("process");
        await scene.restart(scene.primary);
        scene.losses.length = 0;
        await scene.world.sleep((seed % 4) * 0.5);
        await scene.order();
        await scene.finish();
        expect(scene.losses).not.toContain("protocol-error");
      });
    },
  );

  it("alone has what is written behind the former end sent, also where the primary dies meanwhile", async () => {
    const scene = await begun();
    await scene.do("it", async () => {
      scene.secondary.host.crash("process");
      await scene.lose();
      await scene.order();
      scene.primary.host.crash("power");
      await scene.restart(scene.primary);
      await scene.restart(scene.secondary);
      await scene.finish();
    });
  });

  it("that the secondary cannot do changes nothing on either side", async () => {
    const scene = await begun();
    const { primary, secondary } = scene;
    await scene.do("it", async () => {
      secondary.host.disk.faults.inject({ op: "truncate", path: imagePath(DISK), error: "out-of-space" });
      expect(await scene.order()).toMatchObject({ kind: "failed", error: { code: "out-of-space" } });
      for (const member of [primary, secondary]) expect(member.device(DISK)?.sizeBytes).toBe(SIZE);
      expect(await scene.order()).toMatchObject({ kind: "done", value: { grownPeers: 1 } });
      await scene.finish();
    });
  });

  it("that only the secondary has done leaves it longer, and is finished, or gone beyond, later", async () => {
    const scene = await begun();
    const { primary, secondary } = scene;
    await scene.do("it", async () => {
      primary.host.disk.faults.inject({ op: "truncate", path: imagePath(DISK), error: "out-of-space" });
      expect(await scene.order()).toMatchObject({ kind: "failed", error: { code: "out-of-space" } });
      expect(primary.device(DISK)?.sizeBytes).toBe(SIZE);
      expect(secondary.device(DISK)?.sizeBytes).toBe(LONGER);
      secondary.host.crash("power");
      await scene.lose();
      await scene.restart(secondary);
      await scene.until("synced");
      await scene.checkView();
      await scene.checkpoint();
      await scene.finish();
    });
  });

  it.each<{ side: "primary" | "secondary"; opens: number }>([
    { side: "primary", opens: 1 },
    { side: "primary", opens: Infinity },
    { side: "secondary", opens: 1 },
    { side: "secondary", opens: Infinity },
  ])("that the $side died in is finished once its image is there again: $opens opens fail", async ({ side, opens }) => {
    const scene = await begun();
    const dying = scene[side];
    const { disk } = dying.host;
    await scene.do("it", async () => {
      let isLonger = false;
      disk.faults.intercept = ({ op, path }) => {
        if (path !== imagePath(DISK)) return undefined;
        if (isLonger) return { crash: "process" };
        isLonger = op === "truncate";
        return undefined;
      };
      scene.world.schedule(0, () => void scene.order());
      while (dying.host.alive) await scene.world.sleep(1);
      if (side === "secondary") await scene.lose();
      disk.faults.clear();
      expect(disk.readFile(imagePath(DISK)).length).toBe(LONGER);
      disk.faults.inject({ op: "open", path: imagePath(DISK), error: "permission-denied", times: opens });
      dying.host.restart();
      await dying.start(["permission-denied", "image-changed"]);
      if (!dying.host.alive) await scene.restart(dying);
      await scene.checkView();
      await scene.finish();
    });
  });

  it("that one of the copies cannot do changes none of them", async () => {
    const scene = await begun({ hasCopies: true });
    const { primary } = scene;
    await scene.do("it", async () => {
      const { disk } = primary.host;
      disk.faults.inject({ op: "truncate", path: copyPath(DISK), error: "out-of-space" });
      expect(await scene.order()).toMatchObject({ kind: "failed", error: { code: "out-of-space" } });
      expect(primary.device(DISK)?.sizeBytes).toBe(SIZE);
      for (const path of [imagePath(DISK), copyPath(DISK)]) expect(disk.readFile(path).length).toBe(SIZE);
      primary.host.crash("power");
      await scene.restart(primary);
      for (const path of [imagePath(DISK), copyPath(DISK)]) expect(disk.readFile(path).length).toBe(SIZE);
      await scene.finish();
    });
  });

  it("keeps copies sound, and below no threshold", async () => {
    const scene = await begun({ hasCopies: true });
    const { primary } = scene;
    await scene.do("it", async () => {
      expect(await scene.order()).toMatchObject({ kind: "done", value: { formerSizeBytes: SIZE } });
      const children = primary.agent?.status().disks[0]?.children;
      expect(children?.map(({ state, dirtyBytes }) => [state, dirtyBytes])).toEqual([
        ["sound", 0],
        ["sound", 0],
      ]);
      await scene.finish();
    });
  });

  it("is found at its former size until it can be written behind that", async () => {
    const scene = await begun();
    const device = present(scene.primary.device(DISK));
    await scene.do("it", async () => {
      let isAnswered = false;
      const ordered = scene.order().then(() => {
        isAnswered = true;
      });
      while (!isAnswered) {
        if (device.sizeBytes > SIZE) await device.write(DATA, WRITTEN_AT, { fua: false });
        await scene.world.sleep(0.05);
      }
      await ordered;
      expect(scene.stateErrors).toEqual([]);
      await scene.finish();
    });
  });

  it("of an image that cannot be synced leaves it as long as it was", async () => {
    const scene = await begun();
    const { primary } = scene;
    await scene.do("it", async () => {
      const { disk } = primary.host;
      disk.faults.inject({ op: "sync", path: imagePath(DISK), error: "io-error" });
      expect(await scene.order()).toMatchObject({ kind: "failed", error: { code: "io-error" } });
      expect(disk.readFile(imagePath(DISK)).length).toBe(SIZE);
    });
  });

  it.each(Array.from({ length: 8 }, (_, index) => index + 1))(
    "that could not be synced is undone also where the power is lost then: seed %i",
    async (seed) => {
      for (const side of ["primary", "secondary"] as const) {
        const scene = await begun({ seed });
        const { host } = scene[side];
        await scene.do("it", async () => {
          host.disk.faults.inject({ op: "sync", path: imagePath(DISK), error: "io-error" });
          expect(await scene.resize(scene.primary)).toMatchObject({ kind: "failed", error: { code: "io-error" } });
          host.crash("power");
          if (side === "secondary") await scene.lose();
          await scene.restart(scene[side]);
          await scene.checkView();
          await scene.finish();
        });
      }
    },
  );

  it("to a smaller size, or of no whole sectors is refused; to the same one it is done", async () => {
    const scene = await begun();
    await scene.do("it", async () => {
      expect(await scene.resize(scene.primary, SIZE - 512)).toMatchObject({ error: { code: "not-supported" } });
      expect(await scene.resize(scene.primary, LONGER + 1)).toMatchObject({ error: { code: "usage" } });
      expect(await scene.resize(scene.primary, SIZE)).toMatchObject({ kind: "done", value: { formerSizeBytes: SIZE } });
    });
  });
});
