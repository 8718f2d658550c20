import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../proto/errors.ts";
import {
  ACK_DELAY_MS,
  ACK_WINDOW_SHARE,
  CONTENT_REQUESTS_MAX,
  DISK_MAX_CLUSTERS,
  QUEUE_WINDOW_SHARE,
  HANDSHAKE_TIMEOUT_MS,
  REQUESTS_MAX,
  UNAUTHENTICATED_LINKS_MAX,
  UNREAD_MAX_BYTES,
} from "../../../proto/limits.ts";
import type { Hello, Message } from "../../../proto/replication-messages.ts";
import type { Durability } from "../../../proto/words.ts";
import { SecondaryRole } from "../../../secondary/secondary-role.ts";
import { FileImages } from "../../../shared/block/file-images.ts";
import { CheckpointAges } from "../../../shared/replication/checkpoint-ages.ts";
import { PeerTracking } from "../../../shared/replication/peer-tracking.ts";
import { StateFile } from "../../../shared/journal/state-file.ts";
import { SeededRandom } from "../../sim/seeded-random.ts";
import { SimRandom } from "../../sim/sim-random.ts";
import { someGreeting } from "../../support/hellos.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { turn, type MemoryStorage } from "../../support/memory-storage.ts";
import { CLUSTER_BYTES, pattern, seededStorage } from "../../support/overlay-bench.ts";
import {
  imagePath,
  lostSyncsOf,
  makeSecondary,
  trackingOptions,
  STATE_DIRECTORY,
} from "../../support/replica-bench.ts";
import { ScriptedPrimary } from "../../support/scripted-primary.ts";
import { SilentLog } from "../../support/silent-log.ts";
import { vmStatesOf } from "../../support/vm-states-of.ts";
import type { StateRecord } from "../../../proto/state-record.ts";
import { present } from "../../support/present.ts";

const SIZE = 4 * CLUSTER_BYTES;
const DISKS: Hello["disks"] = [{ name: "vda", sizeBytes: SIZE }];

const HISTORY = { lineage: "1".repeat(32), ancestors: [] };

class Bench {
  readonly windowBytes = 65_536;
  readonly storage: MemoryStorage;
  readonly clock = new ManualClock();
  readonly events: string[] = [];
  readonly state: StateFile;
  readonly role: SecondaryRole;

  private constructor(storage: MemoryStorage, state: StateFile) {
    this.storage = storage;
    this.state = state;
    this.role = new SecondaryRole({
      storage,
      images: new FileImages(storage),
      sharedMark: undefined,
      clock: this.clock,
      ages: new CheckpointAges(this.clock, state.record),
      random: new SimRandom(new SeededRandom(1)),
      log: new SilentLog(),
      emit: (type) => this.events.push(type),
      state,
      stateDirectory: STATE_DIRECTORY,
      vmStates: vmStatesOf(storage),
      access: "read-only",
      token: undefined,
      tracking: PeerTracking.open(trackingOptions(storage, state)),
      trackingOptions: () => trackingOptions(storage, state),
      site: () => ({ host: "beta", bootId: "boot-1", disks: [] }),
      takeOver: () => undefined,
      judged: () => undefined,
      peerTimeoutMs: 4000,
      windowBytes: this.windowBytes,
      bootId: "boot-1",
      retain: 0,
      maxCheckpointAgeMs: () => undefined,
      overlayLimitBytes: undefined,
      bufferMemoryBytes: 0,
      mayHaveLostWrites: false,
      lostSyncs: lostSyncsOf(state),
      disksCreated: () => this.events.push("disks-created"),
    });
  }

  static async open(changes: Partial<StateRecord> = {}, durability: Durability = "process"): Promise<Bench> {
    const storage = seededStorage(1);
    await makeSecondary(storage, [{ name: "vda", content: Buffer.alloc(SIZE) }], durability, changes);
    return new Bench(storage, present(StateFile.open(storage, STATE_DIRECTORY)));
  }

  /** Lets everything happen that needs no time to pass. */
  async settle(): Promise<void> {
    for (let count = 0; count < 10; count += 1) {
      await turn();
      this.clock.endTurn();
    }
  }

  async connect(changes: Partial<Hello> = {}): Promise<ScriptedPrimary> {
    const primary = new ScriptedPrimary({ disks: DISKS, ...changes });
    this.role.accept(primary.link);
    primary.greet();
    await this.settle();
    return primary;
  }

  /** A primary whose session is ready for data. */
  async begin(openEpoch = 1, changes: Partial<Hello> = {}): Promise<ScriptedPrimary> {
    const primary = await this.connect(changes);
    primary.take();
    primary.begin(openEpoch);
    await this.settle();
    assert.deepEqual(types(primary.take()), ["ready"]);
    return primary;
  }

  image(): Buffer {
    return this.storage.disk.readFile(imagePath("vda"));
  }
}

/** Operations that wait until they are released. */
class Held {
  readonly paths: string[] = [];
  release: () => void = () => undefined;
  readonly #released = new Promise<void>((resolve) => {
    this.release = resolve;
  });

  wait(path: string): Promise<void> {
    this.paths.push(path);
    return this.#released;
  }
}

function types(messages: readonly Message[]): string[] {
  return messages.map(({ type }) => type);
}

describe("the secondary's end of a session", () => {
  it("takes a stream: data is acknowledged, barriers and commits are answered", async () => {
    const bench = await Bench.open();
    const primary = await bench.begin();
    primary.write(1, 0, 100, Buffer.from("hello"));
    primary.send({ type: "sync", phase: "end", totalBytes: 0, ...HISTORY });
    await bench.settle();
    expect(primary.take()).toEqual([]);
    bench.clock.advance(ACK_DELAY_MS);
    expect(primary.take()).toEqual([{ type: "ack", received: 1, stable: 1 }]);
    expect(bench.image().toString("latin1", 100, 105)).toBe("hello");
    primary.send({ type: "barrier", id: 1, epoch: 1, commit: false });
    primary.send({ type: "commit", id: 2, epoch: 1 });
    await bench.settle();
    // The commit did not wait for the barrier, as a primary would have.
    expect(primary.take()).toEqual([
      expect.objectContaining({
        type: "answer",
        id: 2,
        error: expect.objectContaining({ code: "epoch-unknown" }) as unknown,
        tookMs: 0,
      }),
      { type: "answer", id: 1, error: null, tookMs: 0 },
    ]);
    primary.send({ type: "commit", id: 3, epoch: 1 });
    primary.send({ type: "discard", id: 4, epochs: [1] });
    await bench.settle();
    expect(primary.take()).toMatchObject([
      { id: 3, error: null },
      { id: 4, error: { code: "epoch-committed" } },
    ]);
    expect(bench.state.record).toMatchObject({ lineage: "1".repeat(32), committed: { epoch: 1 }, prepared: [] });
    expect(bench.events).toEqual(["peer-connected", "sync-finished", "checkpoint-prepared", "checkpoint-committed"]);
  });

  it("answers with what a range holds between the operations before the question and those behind it", async () => {
    const bench = await Bench.open();
    const primary = await bench.begin();
    primary.write(1, 0, 100, Buffer.from("hello"));
    primary.send({ type: "read", id: 1, disk: 0, offset: 99, length: 7 });
    primary.write(2, 0, 100, Buffer.from("later"));
    await bench.settle();
    expect(primary.take().filter(({ type }) => type !== "ack")).toEqual([
      { type: "content", id: 1, payload: Buffer.from("\0hello\0") },
    ]);
    bench.storage.disk.faults.inject({ op: ["tryRead", "read"], kind: "image", error: "io-error" });
    primary.send({ type: "read", id: 2, disk: 0, offset: 99, length: 7 });
    await bench.settle();
    expect(primary.take().filter(({ type }) => type !== "ack")).toMatchObject([
      { type: "answer", id: 2, error: { code: "io-error" } },
    ]);
    expect(primary.refusal).toBeUndefined();
  });

  it("commits with a barrier that says so, and tells both", async () => {
    const bench = await Bench.open();
    const primary = await bench.begin();
    primary.write(1, 0, 100, Buffer.from("hello"));
    primary.send({ type: "sync", phase: "end", totalBytes: 0, ...HISTORY });
    primary.send({ type: "barrier", id: 1, epoch: 1, commit: true });
    await bench.settle();
    expect(primary.take().at(-1)).toEqual({ type: "answer", id: 1, error: null, tookMs: 0 });
    expect(bench.state.record).toMatchObject({ lineage: "1".repeat(32), committed: { epoch: 1 }, prepared: [] });
    expect(bench.events).toEqual(["peer-connected", "sync-finished", "checkpoint-prepared", "checkpoint-committed"]);
  });

  it("shows the sync that the primary announces", async () => {
    const bench = await Bench.open();
    const primary = await bench.begin();
    primary.send({ type: "sync", phase: "begin", totalBytes: 5, ...HISTORY });
    await bench.settle();
    expect(bench.role.describePeer().replication).toBe("SyncTarget");
    primary.send({ type: "sync", phase: "end", totalBytes: 5, ...HISTORY });
    await bench.settle();
    expect(bench.role.describePeer().replication).toBe("Established");
  });

  it.each<readonly [string, (primary: ScriptedPrimary) => void]>([
    ["a second begin", (primary) => primary.begin(1)],
    ["an acknowledgement", (primary) => primary.send({ type: "ack", received: 0, stable: 0 })],
    ["an answer", (primary) => primary.send({ type: "answer", id: 1, error: null, tookMs: 0 })],
    ["a stall", (primary) => primary.send({ type: "stall", error: { code: "overlay-full", message: "", action: "" } })],
    ["ready", (primary) => primary.send({ type: "ready", differs: 0 })],
    ["data out of turn", (primary) => primary.write(2, 0, 0, Buffer.from("x"))],
    ["data beyond the disk", (primary) => primary.write(1, 0, SIZE, Buffer.from("x"))],
    ["data for no disk", (primary) => primary.write(1, 9, 0, Buffer.from("x"))],
    ["rubbish", (primary) => primary.link.receive(Buffer.from("rubbish"))],
  ])("ends it at %s, with a reason, and nothing has changed", async (_, misbehave) => {
    const bench = await Bench.open();
    const primary = await bench.begin();
    const before = bench.image();
    const record = bench.state.record;
    misbehave(primary);
    await bench.settle();
    expect(primary.refusal).toBe("protocol-error");
    expect(types(primary.take())).toEqual(["refuse"]);
    expect([bench.image().equals(before), bench.state.record]).toEqual([true, record]);
    expect(bench.role.isConnected).toBe(false);
    await bench.begin(2);
  });

  it.each<readonly [string, (primary: ScriptedPrimary) => void]>([
    ["data", (primary) => primary.write(1, 0, 0, Buffer.from("x"))],
    ["a barrier", (primary) => primary.send({ type: "barrier", id: 1, epoch: 1, commit: false })],
    ["a commit", (primary) => primary.send({ type: "commit", id: 1, epoch: 1 })],
    ["a begin of other disks", (primary) => primary.begin(1, { diskSizes: [SIZE, SIZE] })],
    ["a begin of another size than greeted with", (primary) => primary.begin(1, { diskSizes: [2 * SIZE] })],
    ["a begin of another lineage than greeted with", (primary) => primary.begin(1, { lineage: "9" })],
  ])("is not begun by %s", async (_, misbehave) => {
    const bench = await Bench.open();
    const primary = await bench.connect();
    const before = bench.image();
    misbehave(primary);
    await bench.settle();
    expect(primary.refusal).toBe("protocol-error");
    expect(bench.image()).toEqual(before);
  });

  it("makes images at the primary's size, where that was left to it", async () => {
    const bench = await Bench.open({
      disks: [{ name: "vda", image: "/images/new.img", sizeBytes: null, cleanMark: null }],
    });
    await bench.begin();
    expect(bench.storage.disk.readFile("/images/new.img")).toEqual(Buffer.alloc(SIZE));
    expect(bench.state.record.disks[0]?.sizeBytes).toBe(SIZE);
    expect(bench.events).toContain("disks-created");
  });

  it("makes each image once, where another one cannot be made in the first session", async () => {
    const image = (name: string): string => `/images/new-${name}.img`;
    const bench = await Bench.open({
      disks: ["vda", "vdb"].map((name) => ({ name, image: image(name), sizeBytes: null, cleanMark: null })),
    });
    const disks = ["vda", "vdb"].map((name) => ({ name, sizeBytes: SIZE }));
    bench.storage.disk.addDirectory(`${STATE_DIRECTORY}/disks/vdb`);
    bench.storage.disk.faults.inject({ op: "open", path: image("vdb"), error: "out-of-space" });
    const first = await bench.connect({ disks });
    first.begin(1);
    await bench.settle();
    expect(first.refusal).toBe("out-of-space");
    const second = await bench.connect({ disks });
    second.begin(1);
    await bench.settle();
    expect(types(second.take()).at(-1)).toBe("ready");
    expect(bench.role.disks.map(({ name }) => name)).toEqual(["vda", "vdb"]);
    expect(bench.state.record.disks.map(({ sizeBytes }) => sizeBytes)).toEqual([SIZE, SIZE]);
    await bench.role.close();
    await bench.state.close();
    expect(bench.storage.openPaths).toEqual([]);
  });

  describe("takes no size that it could not start with again", () => {
    const tooLong = (DISK_MAX_CLUSTERS + 1) * CLUSTER_BYTES;

    it("for an image that it makes", async () => {
      const image = "/images/new.img";
      const bench = await Bench.open({ disks: [{ name: "vda", image, sizeBytes: null, cleanMark: null }] });
      const primary = await bench.connect({ disks: [{ name: "vda", sizeBytes: tooLong }] });
      primary.begin(1);
      await bench.settle();
      expect(primary.refusal).toBe("usage");
      expect(bench.storage.exists(image)).toBe(false);
      await bench.begin();
      expect(bench.state.record.disks[0]?.sizeBytes).toBe(SIZE);
    });

    it.each(["as a session begins", "in a session"])("for a disk that grows %s", async (when) => {
      const bench = await Bench.open();
      await bench.begin();
      const before = bench.state.record.disks;
      if (when === "in a session") {
        const primary = await bench.begin(2);
        primary.send({ type: "resize", id: 1, disk: 0, sizeBytes: tooLong });
        await bench.settle();
        expect(primary.take()).toMatchObject([{ type: "answer", id: 1, error: { code: "usage" } }]);
      } else {
        const primary = await bench.connect({ disks: [{ name: "vda", sizeBytes: tooLong }] });
        primary.begin(2);
        await bench.settle();
        expect(primary.refusal).toBe("usage");
      }
      expect(bench.state.record.disks).toEqual(before);
      expect(bench.image().length).toBe(SIZE);
      await bench.begin(3);
    });
  });

  it("takes no barrier in the middle of a sync: the end of that was lost", async () => {
    const bench = await Bench.open();
    const primary = await bench.begin();
    primary.send({ type: "sync", phase: "begin", totalBytes: 0, ...HISTORY });
    primary.send({ type: "barrier", id: 1, epoch: 1, commit: false });
    await bench.settle();
    expect(primary.refusal).toBe("protocol-error");
    expect(bench.state.record.prepared).toEqual([]);
  });

  it("refuses an epoch that was used before, and tells the primary from where they are free", async () => {
    const bench = await Bench.open();
    const first = await bench.begin(70);
    first.send({ type: "sync", phase: "end", totalBytes: 0, ...HISTORY });
    first.send({ type: "barrier", id: 1, epoch: 70, commit: false });
    await bench.settle();
    first.link.end(new ColobusError("connection-lost", "gone"));
    const stale = await bench.connect();
    expect(stale.take()).toContainEqual(expect.objectContaining({ type: "hello", prepared: [70], epochSeen: 70 }));
    stale.begin(70);
    await bench.settle();
    expect(stale.refusal).toBe("protocol-error");
    await bench.begin(71);
  });

  it("lets another primary begin after one that opened a high epoch and wrote nothing", async () => {
    const bench = await Bench.open();
    const first = await bench.begin(70);
    first.link.end(new ColobusError("connection-lost", "gone"));
    const second = await bench.connect({ agentId: "c".repeat(32) });
    const hello = second.take().find((message) => message.type === "hello");
    second.begin(present(hello).epochSeen + 1);
    await bench.settle();
    expect(types(second.take())).toEqual(["ready"]);
  });
});

describe("a secondary with several links", () => {
  it("ends the session that a newer one replaces, before that is ready", async () => {
    const bench = await Bench.open();
    const old = await bench.begin();
    old.write(1, 0, 0, Buffer.from("old"));
    const next = await bench.begin(2);
    expect(old.refusal).toBe("replaced");
    old.write(2, 0, 0, Buffer.from("later"));
    next.write(1, 0, 10, Buffer.from("new"));
    await bench.settle();
    expect(bench.image().toString("latin1", 0, 13)).toBe("old\0\0\0\0\0\0\0new");
    expect(bench.role.isConnected).toBe(true);
  });

  it("begins nothing for a session before the one that it follows has stopped making itself ready", async () => {
    const bench = await Bench.open({
      disks: [{ name: "vda", image: "/images/new.img", sizeBytes: null, cleanMark: null }],
    });
    const held = new Held();
    bench.storage.hold = (operation, path) => (operation === "sync" ? held.wait(path) : undefined);
    const old = await bench.connect();
    old.begin(1);
    await bench.settle();
    expect(held.paths).not.toEqual([]);
    expect(bench.events).toEqual(["peer-connected"]);
    old.link.end(new ColobusError("peer-timeout", "cut"));
    const next = await bench.connect();
    next.take();
    next.begin(2);
    await bench.settle();
    expect(bench.events).toEqual(["peer-connected", "peer-disconnected"]);
    held.release();
    bench.storage.hold = undefined;
    await bench.settle();
    expect(types(next.take())).toEqual(["ready"]);
    expect(bench.state.record.pairing?.sessions).toEqual(["session-2"]);
  });

  it("is not ready before what the session that it follows had begun is done", async () => {
    const bench = await Bench.open({}, "power");
    const old = await bench.begin();
    old.send({ type: "sync", phase: "end", totalBytes: 0, ...HISTORY });
    old.send({ type: "barrier", id: 1, epoch: 1, commit: false });
    await bench.settle();
    old.send({ type: "commit", id: 2, epoch: 1 });
    await bench.settle();
    // The save of the original is held at its fsync, and the session ends behind it.
    const held = new Held();
    bench.storage.hold = (operation, path) => (operation === "sync" ? held.wait(path) : undefined);
    old.write(1, 0, 0, Buffer.from("old"));
    await bench.settle();
    expect(held.paths).toEqual([expect.stringContaining("/hidden.")]);
    old.link.end(new ColobusError("peer-timeout", "cut"));
    const next = await bench.connect();
    next.take();
    next.begin(3);
    await bench.settle();
    expect(types(next.take())).toEqual([]);
    held.release();
    bench.storage.hold = undefined;
    await bench.settle();
    expect(types(next.take())).toEqual(["ready"]);
    next.write(1, 0, 0, Buffer.from("new"));
    await bench.settle();
    expect(bench.image().toString("latin1", 0, 3)).toBe("new");
    // The view is still the checkpoint: nobody has taken "old" for an original.
    const view = Buffer.alloc(3, "?");
    await present(bench.role.disks[0]).view.read(view, 0);
    expect(view).toEqual(Buffer.alloc(3));
  });

  it("goes on following its primary when another one comes that it has parted from, or that is behind it, but not when a later one does", async () => {
    const bench = await Bench.open();
    const [former, own, parted, later] = ["1", "2", "3", "4"].map((digit) => digit.repeat(32));
    assert(former !== undefined && own !== undefined && parted !== undefined && later !== undefined);
    await bench.begin(1, { lineage: own, ancestors: [former] });
    for (const rival of [{ lineage: parted, ancestors: [former] }, { lineage: former }, { lineage: own }]) {
      const { refusal } = await bench.connect({ agentId: "c".repeat(32), ...rival });
      expect(refusal).toBe("role-conflict");
    }
    const next = { agentId: "d".repeat(32), lineage: later, ancestors: [own, former] };
    await bench.begin(2, next);
    expect(bench.role.isFollowing(next.agentId)).toBe(true);
  });

  it("goes on following its primary when another one comes that has nothing to do with it, until its own is gone", async () => {
    const bench = await Bench.open();
    const primary = await bench.begin();
    const other: Partial<Hello> = { agentId: "c".repeat(32), lineage: "9".repeat(32) };
    for (let count = 0; count < 3; count += 1) {
      const rival = await bench.connect(other);
      expect(rival.refusal).toBe("role-conflict");
      expect(rival.take().at(-1)).toMatchObject({
        type: "refuse",
        error: {
          message: expect.stringMatching(/follows another primary, a{32}, /) as string,
          action: expect.stringMatching(/check --peer on both/) as string,
        },
      });
    }
    primary.write(1, 0, 0, Buffer.from("x"));
    await bench.settle();
    bench.clock.advance(ACK_DELAY_MS);
    expect(types(primary.take())).toContain("ack");
    expect(bench.events.filter((event) => event === "peer-refused")).toHaveLength(1);
    primary.link.end(new ColobusError("connection-lost", "gone"));
    await bench.begin(2, other);
    expect((await bench.connect()).refusal).toBe("role-conflict");
  });

  it("lets another primary of its primary's history take that one's place", async () => {
    const bench = await Bench.open();
    const former = await bench.begin();
    const promoted = { agentId: "c".repeat(32), lineage: "9".repeat(32), ancestors: [HISTORY.lineage] };
    await bench.begin(2, promoted);
    expect(former.refusal).toBe("replaced");
  });

  it("is not disturbed by strangers", async () => {
    const bench = await Bench.open();
    const primary = await bench.begin();
    const events = [...bench.events];
    for (const code of ["overlay-full", "out-of-space", "replaced", "shutting-down"]) {
      const stranger = new ScriptedPrimary({}, "stranger");
      bench.role.accept(stranger.link);
      stranger.send({ type: "refuse", error: { code, message: "boo", action: "" } });
      await bench.settle();
    }
    expect(bench.events.filter((event) => event !== "peer-refused")).toEqual(events);
    expect(bench.role.describeProtection().reason).not.toBe("overlay-full");
    primary.write(1, 0, 0, Buffer.from("x"));
    await bench.settle();
    bench.clock.advance(ACK_DELAY_MS);
    expect(types(primary.take())).toEqual(["ack"]);
  });

  it("acknowledges at once where guests wait for it, after a part of the window, and before it answers", async () => {
    const waiting = await Bench.open();
    const primary = await waiting.begin(1, { ack: "received" });
    primary.write(1, 0, 0, Buffer.from("x"));
    await waiting.settle();
    expect(types(primary.take())).toContain("ack");

    const bench = await Bench.open();
    const windowBytes = 64 * 1024;
    const other = await bench.begin(1, { windowBytes });
    other.write(1, 0, 0, Buffer.alloc(windowBytes * ACK_WINDOW_SHARE));
    await bench.settle();
    expect(types(other.take())).toContain("ack");
    other.write(2, 0, 0, Buffer.from("x"));
    other.send({ type: "sync", phase: "end", totalBytes: 0, ...HISTORY });
    other.send({ type: "barrier", id: 1, epoch: 1, commit: false });
    await bench.settle();
    expect(types(other.take())).toEqual(["ack", "answer"]);
  });

  it("acknowledges no more than it takes into its queue, until that is applied", async () => {
    const bench = await Bench.open({}, "power");
    const primary = await bench.begin();
    primary.send({ type: "sync", phase: "end", totalBytes: 0, ...HISTORY });
    primary.send({ type: "barrier", id: 1, epoch: 1, commit: true });
    await bench.settle();
    const held = new Held();
    bench.storage.hold = (operation, path) => (operation === "sync" ? held.wait(path) : undefined);
    const writes = Math.ceil((bench.windowBytes * QUEUE_WINDOW_SHARE) / CLUSTER_BYTES) + 2;
    for (let sequence = 1; sequence <= writes; sequence += 1) {
      primary.write(sequence, 0, 0, Buffer.alloc(CLUSTER_BYTES, sequence));
    }
    const received = async (): Promise<number> => {
      await bench.settle();
      bench.clock.advance(ACK_DELAY_MS);
      return Math.max(...primary.take().map((message) => (message.type === "ack" ? message.received : 0)));
    };
    expect(await received()).toBeLessThan(writes);
    held.release();
    bench.storage.hold = undefined;
    expect(await received()).toBe(writes);
  });

  it("takes no more of them than it can afford, until some have gone", async () => {
    const bench = await Bench.open();
    const strangers = Array.from({ length: UNAUTHENTICATED_LINKS_MAX }, () => new ScriptedPrimary());
    for (const [index, stranger] of strangers.entries()) {
      bench.role.accept(stranger.link);
      if (index % 2 === 0) stranger.send({ type: "greeting", ...someGreeting() });
    }
    const refused = new ScriptedPrimary();
    bench.role.accept(refused.link);
    expect(refused.refusal).toBe("shutting-down");
    bench.clock.advance(HANDSHAKE_TIMEOUT_MS);
    for (const stranger of strangers) expect(stranger.refusal).toBe("peer-timeout");
    await bench.begin();
  });

  it("ends a session that is opened and never begun", async () => {
    const bench = await Bench.open();
    const idle = await bench.connect();
    for (let elapsedMs = 0; elapsedMs <= HANDSHAKE_TIMEOUT_MS; elapsedMs += 500) {
      idle.send({ type: "ping" });
      bench.clock.advance(500);
    }
    expect(idle.refusal).toBe("peer-timeout");
  });

  it("forgets a link that was gone before it could be served", async () => {
    const bench = await Bench.open();
    for (let count = 0; count < 2 * UNAUTHENTICATED_LINKS_MAX; count += 1) {
      const gone = new ScriptedPrimary();
      gone.link.end(new ColobusError("connection-lost", "gone"));
      bench.role.accept(gone.link);
      await bench.settle();
    }
    await bench.begin();
  });
});

describe("a primary that asks too much", () => {
  /** A session whose stream stands still: its base does not answer. */
  async function stalled(): Promise<{ bench: Bench; primary: ScriptedPrimary; release: () => void }> {
    const bench = await Bench.open({ durability: "power" });
    const primary = await bench.begin();
    let release = (): void => undefined;
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    bench.storage.hold = (op, path) => (op === "sync" && path === imagePath("vda") ? released : undefined);
    primary.write(1, 0, 0, Buffer.from("x"));
    primary.send({ type: "sync", phase: "end", totalBytes: 0, ...HISTORY });
    primary.send({ type: "barrier", id: 1, epoch: 1, commit: false });
    await bench.settle();
    expect(primary.refusal).toBeUndefined();
    return { bench, primary, release };
  }

  it("is cut off when it waits for no answers", async () => {
    const { bench, primary, release } = await stalled();
    for (let id = 2; id <= REQUESTS_MAX + 2; id += 1) primary.send({ type: "barrier", id, epoch: id, commit: false });
    expect(primary.refusal).toBe("protocol-error");
    release();
    await bench.settle();
  });

  it.each<Extract<Message, { type: "sync" | "united" }>>([
    { type: "sync", phase: "begin", totalBytes: 0, ...HISTORY },
    { type: "united" },
  ])("is cut off when it says $type without end", async (message) => {
    const { bench, primary, release } = await stalled();
    for (let count = 0; count <= REQUESTS_MAX; count += 1) primary.send(message);
    expect(primary.refusal).toBe("protocol-error");
    release();
    await bench.settle();

    const patient = await bench.begin(9);
    for (let count = 0; count <= REQUESTS_MAX; count += 1) {
      patient.send(message);
      if (count % 100 === 0) await bench.settle();
    }
    expect(patient.refusal).toBeUndefined();
  });

  it("is cut off when it reads more at a time than it may", async () => {
    const { bench, primary, release } = await stalled();
    const read = (id: number): void => primary.send({ type: "read", id, disk: 0, offset: 0, length: 512 });
    for (let id = 2; id < CONTENT_REQUESTS_MAX + 2; id += 1) read(id);
    expect(primary.refusal).toBeUndefined();
    read(CONTENT_REQUESTS_MAX + 2);
    expect(primary.refusal).toBe("protocol-error");
    release();
    await bench.settle();

    const patient = await bench.begin(9);
    for (let id = 1; id <= 2 * CONTENT_REQUESTS_MAX; id += 1) {
      patient.send({ type: "read", id, disk: 0, offset: 0, length: 512 });
      if (id % CONTENT_REQUESTS_MAX === 0) await bench.settle();
    }
    expect(types(patient.take())).toEqual(Array(2 * CONTENT_REQUESTS_MAX).fill("content"));
  });

  it.each([
    ["of a disk that is not there", { disk: 1 }],
    ["behind the end of one", { offset: SIZE - 511 }],
  ])("is cut off when it reads %s", async (_, where) => {
    const bench = await Bench.open();
    const primary = await bench.begin();
    primary.send({ type: "read", id: 1, disk: 0, offset: 0, length: 512, ...where });
    expect(primary.refusal).toBe("protocol-error");
    await bench.settle();
  });

  it("is cut off when it does not read what it is answered", async () => {
    const bench = await Bench.open();
    const primary = await bench.begin();
    const ask = async (id: number): Promise<void> => {
      primary.send({ type: "commit", id, epoch: 7 });
      await bench.settle();
    };
    // Earlier answers, of which the last ones fill it up.
    primary.link.sent.push(Buffer.alloc(UNREAD_MAX_BYTES - 1));
    await ask(1);
    expect(primary.refusal).toBeUndefined();
    await ask(2);
    expect(primary.refusal).toBe("protocol-error");
  });

  it("may ask for ever, when it waits for the answers", async () => {
    const bench = await Bench.open();
    const primary = await bench.begin();
    for (let id = 1; id <= REQUESTS_MAX + 10; id += 1) {
      primary.send({ type: "discard", id, epochs: [] });
      if (id % 100 === 0) await bench.settle();
    }
    expect(primary.refusal).toBeUndefined();
  });
});

describe("a secondary whose overlays are full", () => {
  it("ends the session, then takes one that it stalls, and goes on when there is room", async () => {
    const bench = await Bench.open();
    const primary = await bench.begin();
    primary.write(1, 0, 0, pattern(SIZE, 1));
    primary.send({ type: "sync", phase: "end", totalBytes: 0, ...HISTORY });
    primary.send({ type: "barrier", id: 1, epoch: 1, commit: false });
    await bench.settle();
    primary.send({ type: "commit", id: 2, epoch: 1 });
    await bench.settle();
    bench.storage.disk.capacityBytes = bench.storage.disk.usedBytes;
    primary.take();
    primary.write(2, 0, 0, Buffer.from("no room"));
    await bench.settle();
    expect(primary.refusal).toBe("overlay-full");
    expect(bench.role.describeProtection().reason).toBe("overlay-full");

    const again = await bench.connect({ lineage: "1".repeat(32) });
    again.take();
    again.begin(2);
    await bench.settle();
    expect(types(again.take())).toEqual(["stall", "ready"]);
    bench.storage.disk.faults.inject({ op: "freeBytes", error: "io-error" });
    bench.clock.advance(1000);
    expect(types(again.take())).not.toContain("unstall");
    bench.storage.disk.capacityBytes = 1 << 30;
    bench.clock.advance(1000);
    expect(types(again.take())).toContain("unstall");
    again.write(1, 0, 0, Buffer.from("room"));
    await bench.settle();
    expect(again.refusal).toBeUndefined();
    expect(bench.events.filter((event) => event.startsWith("overlay"))).toEqual(["overlay-full", "overlay-freed"]);
  });
});

describe("a secondary that is stopped", () => {
  it("ends its session first, and closes every file", async () => {
    const bench = await Bench.open();
    const primary = await bench.begin();
    primary.write(1, 0, 0, Buffer.from("x"));
    await bench.role.close();
    await bench.state.close();
    expect(primary.refusal).toBe("shutting-down");
    expect(bench.storage.openPaths).toEqual([]);
    const late = new ScriptedPrimary();
    bench.role.accept(late.link);
    expect(late.refusal).toBe("shutting-down");
  });
});

describe("the secondary's end of a session on a shared disk", () => {
  const SHARED: Partial<Hello> = { mode: "shared", shared: true };
  const STANDS: Partial<StateRecord> = {
    mode: "shared",
    lineage: HISTORY.lineage,
    committed: { epoch: 4, atMs: 1 },
    epochReserved: 4,
  };

  async function opened(changes: Partial<StateRecord>, extent: "keep" | "rearm" | "full"): Promise<Bench> {
    const bench = await Bench.open(changes);
    const primary = await bench.connect({ ...SHARED, committed: 4 });
    primary.take();
    primary.begin(9, { extent });
    await bench.settle();
    return bench;
  }

  it("keeps its checkpoint where both remember the same last session", async () => {
    const bench = await Bench.open({ ...STANDS });
    const { hello } = new ScriptedPrimary({ disks: DISKS });
    const pairing = { peer: hello.agentId, sessions: ["s1"] };
    await bench.state.update((record) => ({ ...record, pairing }));
    const { agentId } = bench.state.record;
    const primary = await bench.connect({ ...SHARED, committed: 4, pairing: { peer: agentId, sessions: ["s1"] } });
    primary.take();
    primary.begin(9, { extent: "keep" });
    await bench.settle();
    expect(types(primary.take())).toEqual(["ready"]);
    expect(bench.role.checkpoints.committed.epoch).toBe(4);
  });

  it("gives its checkpoint up where the two have not met last, before it is ready", async () => {
    const bench = await opened(STANDS, "rearm");
    expect(bench.role.checkpoints.committed.epoch).toBe(0);
    expect(bench.events).toContain("checkpoint-given-up");
  });

  it.each(["keep", "full"] as const)("gives nothing up for a primary that begins with %s instead", async (extent) => {
    const bench = await opened(STANDS, extent);
    expect(bench.role.checkpoints.committed.epoch).toBe(4);
    expect(bench.role.isConnected).toBe(false);
  });

  it("gives nothing up for a primary that sends its writes", async () => {
    const bench = await Bench.open({ ...STANDS, mode: "colo" });
    const primary = await bench.connect({ committed: 4 });
    primary.take();
    primary.begin(9, { extent: "rearm" });
    await bench.settle();
    expect(primary.refusal).toBe("protocol-error");
    expect(bench.role.checkpoints.committed.epoch).toBe(4);
  });
});
