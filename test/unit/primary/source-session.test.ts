import { describe, expect, it } from "vitest";
import { SourceSession } from "../../../primary/source-session.ts";
import type { SentRange } from "../../../primary/send-window.ts";
import { ColobusError } from "../../../proto/errors.ts";
import {
  NBD_MAX_IN_FLIGHT_BYTES,
  READY_TIMEOUT_MS,
  UNREAD_MAX_BYTES,
  WRITE_PIECE_MAX_BYTES,
} from "../../../proto/limits.ts";
import {
  decodeMessage,
  encodeContent,
  encodeMessage,
  numberMessage,
  type HeaderMessage,
  type Hello,
  type Message,
} from "../../../proto/replication-messages.ts";
import { NodeRandom } from "../../../shared/host/node-random.ts";
import { primaryHello, secondaryHello, someGreeting } from "../../support/hellos.ts";
import { MemoryLink } from "../../support/link-pair.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { turn } from "../../support/memory-storage.ts";

const PEER_TIMEOUT_MS = 4000;
const WINDOW_BYTES = 10_000;
const RANGE = { disk: 0, firstCluster: 3, endCluster: 4 };

class Bench {
  readonly clock = new ManualClock();
  readonly link = new MemoryLink("secondary", true);
  readonly calls: string[] = [];
  readonly endings: { reason: ColobusError; missing: readonly SentRange[] }[] = [];
  readonly session: SourceSession;
  #received = 0;

  constructor(hello: Partial<Hello> = {}) {
    this.session = new SourceSession({
      link: this.link,
      clock: this.clock,
      random: new NodeRandom(),
      hello: primaryHello(hello),
      token: undefined,
      peerTimeoutMs: PEER_TIMEOUT_MS,
      windowBytes: WINDOW_BYTES,
      opened: (peer) => {
        this.calls.push("opened");
        if (peer.lineage === "another") throw new ColobusError("unrelated", "no");
      },
      differs: (disk, runs) => this.calls.push(`differs ${disk} ${JSON.stringify(runs)}`),
      ready: () => this.calls.push("ready"),
      stalled: (reason) => this.calls.push(`stalled ${reason?.code ?? "no more"}`),
      notified: (notice) => this.calls.push(`notified ${notice.type}`),
      closed: (reason, missing) => this.endings.push({ reason, missing }),
    });
  }

  receive(message: HeaderMessage): void {
    this.receiveParts(encodeMessage(message));
  }

  receiveParts(parts: readonly Buffer[]): void {
    numberMessage(parts, this.#received);
    this.#received += 1;
    this.link.receive(Buffer.concat(parts));
  }

  /** Ends the turn, and takes what has been sent. */
  sent(): Message[] {
    this.clock.endTurn();
    return this.link.sent.splice(0).map((bytes) => decodeMessage(bytes));
  }

  /** The secondary does its part of the handshake. */
  meet(changes: Partial<Hello> = {}): void {
    this.receive({ type: "greeting", ...someGreeting() });
    this.receive({ type: "proof", mac: Buffer.alloc(0) });
    this.receive({ type: "hello", ...secondaryHello(changes) });
    this.receive({ type: "seal", mac: Buffer.alloc(0) });
  }

  open(changes: Partial<Hello> = {}): this {
    this.meet(changes);
    this.sent();
    return this;
  }

  /** Time passes for a peer that answers heartbeats and nothing else. */
  pass(ms: number): void {
    for (let elapsedMs = 0; elapsedMs < ms; elapsedMs += 100) {
      this.clock.advance(100);
      if (this.endings.length === 0) this.receive({ type: "ping" });
    }
  }
}

function contentOf(id: number, length: number): Buffer[] {
  return encodeContent({ type: "content", id, payload: Buffer.alloc(length) });
}

function barrier(id: number): Extract<Message, { type: "barrier" }> {
  return { type: "barrier", id, epoch: 4, commit: false };
}

describe("the primary's end of a session", () => {
  it("begins when the secondary has proved itself, and is ready when that says so", () => {
    const bench = new Bench();
    bench.meet();
    bench.session.begin({ session: "s", extent: "delta", lineage: "1", openEpoch: 4, diskSizes: [1_048_576] });
    expect(bench.sent().map(({ type }) => type)).toEqual(["greeting", "proof", "hello", "seal", "begin"]);
    bench.receive({ type: "differs", disk: 0, runs: [3, 2, 9, 1] });
    bench.receive({ type: "ready", differs: 1 });
    expect(bench.calls).toEqual(["opened", 'differs 0 [{"first":3,"end":5},{"first":9,"end":10}]', "ready"]);
  });

  it("is ended where what the secondary knows to differ has not all arrived", () => {
    const bench = new Bench().open();
    bench.receive({ type: "differs", disk: 0, runs: [3, 2] });
    bench.receive({ type: "ready", differs: 2 });
    expect(bench.calls).not.toContain("ready");
    expect(bench.endings[0]?.reason.code).toBe("protocol-error");
  });

  it("gives up a secondary that answers heartbeats and does not make itself ready", () => {
    const bench = new Bench().open();
    bench.session.begin({ session: "s", extent: "delta", lineage: "1", openEpoch: 4, diskSizes: [1_048_576] });
    bench.pass(READY_TIMEOUT_MS - 100);
    expect(bench.endings).toEqual([]);
    bench.pass(100);
    expect(bench.endings[0]?.reason.code).toBe("peer-timeout");
  });

  it("goes on while operations that have arrived wait with those that are on their way", () => {
    const bench = new Bench().open();
    bench.session.begin({ session: "s", extent: "delta", lineage: "1", openEpoch: 4, diskSizes: [1_048_576] });
    const payload = Buffer.alloc(WRITE_PIECE_MAX_BYTES);
    const count = (4 * UNREAD_MAX_BYTES) / payload.length;
    for (let sent = 0; sent < count; sent += 1) {
      bench.session.send("write", RANGE, 3 * 4096, payload.length, payload);
      bench.clock.endTurn();
    }
    // The network tells of one write of many messages when the last of them has gone.
    bench.receive({ type: "ack", received: count - 1, stable: 0 });
    bench.receive({ type: "unstall" });
    expect(bench.link.queuedBytes).toBeGreaterThan(4 * UNREAD_MAX_BYTES);
    expect(bench.endings).toEqual([]);
  });

  it("is ended where the secondary has more sent to it than the window and guests allow, and reads nothing", () => {
    const bench = new Bench().open();
    bench.link.sent.push(Buffer.alloc(2 * (WINDOW_BYTES + NBD_MAX_IN_FLIGHT_BYTES) + UNREAD_MAX_BYTES));
    bench.receive({ type: "unstall" });
    expect(bench.endings).toEqual([]);
    bench.link.sent.push(Buffer.alloc(1));
    bench.receive({ type: "unstall" });
    expect(bench.endings[0]?.reason.code).toBe("protocol-error");
  });

  it("is ended by the reason for which the two form no pair", () => {
    const bench = new Bench().open({ lineage: "another" });
    expect(bench.endings[0]?.reason.code).toBe("unrelated");
    expect(bench.session.peer).toBeUndefined();
  });

  it("keeps requests behind the data that was sent before them", async () => {
    const bench = new Bench().open();
    bench.session.send("write", RANGE, 3 * 4096, 1, Buffer.from("x"));
    const request = bench.session.request(barrier);
    bench.session.send("zero", RANGE, 3 * 4096, 1, undefined);
    bench.session.tell({ type: "sync", phase: "end", totalBytes: 0, lineage: "1", ancestors: [] });
    expect(bench.sent().map(({ type }) => type)).toEqual(["data", "barrier", "data", "sync"]);
    bench.receive({ type: "answer", id: 1, error: null, tookMs: 0 });
    await request;
  });

  it("hands the secondary's refusal to the one who asked", async () => {
    const bench = new Bench().open();
    const requests = [bench.session.request(barrier), bench.session.request(barrier)];
    bench.receive({
      type: "answer",
      id: 2,
      error: { code: "too-many-prepared", message: "m", action: "a" },
      tookMs: 0,
    });
    bench.receive({ type: "answer", id: 1, error: null, tookMs: 0 });
    await requests[0];
    await expect(requests[1]).rejects.toMatchObject({ code: "too-many-prepared", message: "m", action: "a" });
  });

  it("hands what the secondary holds to the one who asked for it", async () => {
    const bench = new Bench().open();
    bench.session.send("write", RANGE, 3 * 4096, 1, Buffer.from("x"));
    const contents = [
      bench.session.content(0, 512, 3),
      bench.session.content(0, 4096, 3),
      bench.session.content(0, 0, 3),
    ];
    expect(bench.sent()).toMatchObject([
      { type: "data" },
      { type: "read", id: 1, disk: 0, offset: 512, length: 3 },
      { type: "read", id: 2 },
      { type: "read", id: 3 },
    ]);
    bench.receiveParts(encodeContent({ type: "content", id: 2, payload: Buffer.from("def") }));
    bench.receiveParts(encodeContent({ type: "content", id: 1, payload: Buffer.from("abc") }));
    bench.receive({ type: "answer", id: 3, error: { code: "io-error", message: "m", action: "a" }, tookMs: 0 });
    await expect(contents[0]).resolves.toEqual(Buffer.from("abc"));
    await expect(contents[1]).resolves.toEqual(Buffer.from("def"));
    await expect(contents[2]).rejects.toMatchObject({ code: "io-error", message: "m" });
    expect(bench.endings).toEqual([]);
  });

  it.each<[string, (bench: Bench) => void]>([
    ["what was not asked for", (bench) => bench.receiveParts(contentOf(2, 3))],
    ["another length than was asked for", (bench) => bench.receiveParts(contentOf(1, 2))],
    ["no content, and no reason", (bench) => bench.receive({ type: "answer", id: 1, error: null, tookMs: 0 })],
  ])("is ended when the secondary answers with %s", async (_, answer) => {
    const bench = new Bench().open();
    const content = bench.session.content(0, 512, 3);
    answer(bench);
    await expect(content).rejects.toMatchObject({ code: "outcome-unknown" });
    expect(bench.endings).toMatchObject([{ reason: { code: "protocol-error" } }]);
    await expect(bench.session.content(0, 512, 3)).rejects.toMatchObject({ code: "outcome-unknown" });
  });

  it("does not know the outcome of what is asked when it is lost, or was lost before", async () => {
    const bench = new Bench().open();
    const request = bench.session.request(barrier);
    bench.link.end(new ColobusError("connection-lost", "gone"));
    await expect(request).rejects.toMatchObject({ code: "outcome-unknown" });
    await expect(bench.session.request(barrier)).rejects.toMatchObject({ code: "outcome-unknown" });
  });

  it("names what may be missing when it is lost, and lets everybody go", async () => {
    const bench = new Bench().open();
    for (let cluster = 0; cluster < 3; cluster += 1) {
      bench.session.send(
        "zero",
        { disk: 0, firstCluster: cluster, endCluster: cluster + 1 },
        cluster * 4096,
        1,
        undefined,
      );
    }
    bench.sent();
    bench.receive({ type: "ack", received: 2, stable: 1 });
    const waiting = bench.session.acknowledged(3, "stable");
    bench.session.close(new ColobusError("shutting-down", "stop"));
    await waiting;
    expect(bench.endings.map(({ missing }) => missing.map(({ firstCluster }) => firstCluster))).toEqual([[1, 2]]);
    expect(bench.clock.pendingTimers).toBe(0);
  });

  it("takes the smaller of the two windows", () => {
    const large = new Bench().open({ windowBytes: 1_000_000 });
    large.session.send("write", RANGE, 0, 5000, Buffer.alloc(5000));
    expect(large.session.room()).toBeUndefined();
    const small = new Bench().open({ windowBytes: 4000 });
    small.session.send("write", RANGE, 0, 5000, Buffer.alloc(5000));
    expect(small.session.room()).toBeDefined();
  });

  it.each<readonly [string, HeaderMessage]>([
    ["begin", { type: "begin", session: "s", extent: "full", lineage: "1", openEpoch: 1, diskSizes: [1] }],
    ["a sync", { type: "sync", phase: "end", totalBytes: 0, lineage: "1", ancestors: [] }],
    ["a barrier", barrier(1)],
    ["an answer to nothing", { type: "answer", id: 1, error: null, tookMs: 0 }],
    ["an acknowledgement of nothing", { type: "ack", received: 1, stable: 1 }],
    ["a second hello", { type: "hello", ...secondaryHello() }],
  ])("is ended by %s", (_, message) => {
    const bench = new Bench().open();
    bench.receive(message);
    expect(bench.endings.map(({ reason }) => reason.code)).toEqual(["protocol-error"]);
  });

  it("passes on why the secondary takes no writes, and when it does again", () => {
    const bench = new Bench().open();
    bench.receive({ type: "stall", error: { code: "overlay-full", message: "", action: "" } });
    bench.receive({ type: "unstall" });
    expect(bench.calls.slice(1)).toEqual(["stalled overlay-full", "stalled no more"]);
  });

  it("over a link that is gone already ends once, and leaves nothing behind", async () => {
    const link = new MemoryLink("gone");
    link.end(new ColobusError("connection-lost", "gone"));
    const clock = new ManualClock();
    const endings: ColobusError[] = [];
    const session: SourceSession = new SourceSession({
      link,
      clock,
      random: new NodeRandom(),
      hello: primaryHello(),
      token: undefined,
      peerTimeoutMs: PEER_TIMEOUT_MS,
      windowBytes: 1,
      opened: () => undefined,
      differs: () => undefined,
      ready: () => undefined,
      stalled: () => undefined,
      notified: () => undefined,
      // What a replicator does here: it looks at the session that has ended.
      closed: (reason) => endings.push(session.silenceMs >= 0 ? reason : reason),
    });
    await turn();
    clock.advance(10 * PEER_TIMEOUT_MS);
    expect(endings.map(({ code }) => code)).toEqual(["connection-lost"]);
    expect(clock.pendingTimers).toBe(0);
  });
});

describe("a secondary that only answers heartbeats", () => {
  it("is given up when it acknowledges nothing of what was sent for the peer timeout", () => {
    const bench = new Bench().open();
    bench.pass(10 * PEER_TIMEOUT_MS); // nothing is outstanding: that may last
    expect(bench.endings).toEqual([]);
    bench.session.send("zero", RANGE, 0, 1, undefined);
    bench.pass(PEER_TIMEOUT_MS - 1100);
    expect(bench.endings).toEqual([]);
    bench.pass(2200);
    expect(bench.endings[0]?.reason).toMatchObject({
      code: "peer-timeout",
      message: expect.stringMatching(/acknowledged nothing/) as string,
    });
  });

  it.each<[string, (bench: Bench) => Promise<unknown>]>([
    ["request", ({ session }) => session.request(barrier)],
    ["read", ({ session }) => session.content(0, 0, 1)],
  ])("is given up when it does not answer a %s", async (_, ask) => {
    const bench = new Bench().open();
    const request = ask(bench);
    bench.pass(2 * PEER_TIMEOUT_MS);
    await expect(request).rejects.toMatchObject({ code: "outcome-unknown" });
  });

  it("is kept as long as it makes some progress", () => {
    const bench = new Bench().open();
    for (let count = 0; count < 10; count += 1) bench.session.send("zero", RANGE, 0, 1, undefined);
    bench.sent();
    for (let count = 1; count <= 10; count += 1) {
      bench.pass(PEER_TIMEOUT_MS / 2);
      bench.receive({ type: "ack", received: count, stable: 0 });
    }
    for (let count = 1; count <= 9; count += 1) {
      bench.pass(PEER_TIMEOUT_MS / 2);
      bench.receive({ type: "ack", received: 10, stable: count });
    }
    expect(bench.endings).toEqual([]);
    bench.receive({ type: "ack", received: 10, stable: 9 }); // no news
    bench.pass(1.5 * PEER_TIMEOUT_MS);
    expect(bench.endings).toHaveLength(1);
  });
});
