import { connect, type Socket } from "node:net";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Agent } from "../../cli/agent.ts";
import { ColobusError } from "../../proto/errors.ts";
import { WRONG_TOKEN_PAUSE_MS } from "../../proto/limits.ts";
import { decodeMessage, numberMessage, type Message } from "../../proto/replication-messages.ts";
import { SourceSession } from "../../primary/source-session.ts";
import type { Timer } from "../../shared/host/clock.ts";
import { NodeClock } from "../../shared/host/node-clock.ts";
import { NodeRandom } from "../../shared/host/node-random.ts";
import { WebSocketListener } from "../../shared/replication/websocket-link.ts";
import { SeededRandom } from "../sim/seeded-random.ts";
import { SimDisk } from "../sim/sim-disk.ts";
import { FUZZ_RUNS, FUZZ_SEED } from "../support/fuzz-runs.ts";
import { primaryHello } from "../support/hellos.ts";
import { MemoryLink } from "../support/link-pair.ts";
import { ManualClock } from "../support/manual-clock.ts";
import { MemoryStorage } from "../support/memory-storage.ts";
import { mutate, seededRandom } from "../support/mutate.ts";
import {
  FUZZ_DISK_BYTES,
  FUZZ_DISKS,
  imagesOf,
  openFuzzAgent,
  recordSession,
  type RecordedSession,
} from "../support/recorded-session.ts";

/** A session takes longer than what other fuzz tests play. */
const RUNS = FUZZ_RUNS / 2;

const TOKEN = Buffer.from("a token that both agents hold");
const LOST = new ColobusError("connection-lost", "the test ended the link");
/** Messages of the handshake from each side; what follows them is the stream. */
const OPENING = 4;
const SOCKETS_AT_ONCE = 64;
/** Far beyond what it takes: a limit for what hangs, not a measure. */
const TIME_LIMIT_MS = 600_000;
/** Each connection is damaged in so many places, so that there need not be one for each. */
const MUTATIONS_PER_CONNECTION = 20;

describe("a secondary that is sent damaged sessions", () => {
  let primary: MemoryStorage;
  let storage: MemoryStorage;
  let agent: Agent;
  let recorded: RecordedSession;
  let before: Buffer;

  beforeAll(async () => {
    ({ primary, storage, agent, recorded } = await secondaryWithHistory(TOKEN));
    before = imagesOf(storage);
  });

  afterAll(() => agent.stop(1000));

  it(
    `changes nothing for a peer without the token, message by message (${RUNS} sessions)`,
    async () => {
      const random = seededRandom(FUZZ_SEED);
      for (let run = 0; run < RUNS; run += 1) {
        const link = new MemoryLink("fuzz");
        agent.accept(link);
        const damagedAt = Math.floor(random() * (OPENING + 1));
        for (const [index, message] of recorded.toSecondary.slice(0, OPENING + 4).entries()) {
          if (link.closedWith !== undefined) break;
          link.receive(index === damagedAt ? mutate(message, random) : Buffer.from(message));
        }
        while (link.closedWith === undefined) await turn();
        link.end(LOST);
      }
      expect(imagesOf(storage).equals(before)).toBe(true);
      expect(agent.status().epoch.committed).toBeGreaterThan(0);
    },
    TIME_LIMIT_MS,
  );

  it(
    `changes nothing for damaged bytes on its WebSocket (${RUNS} mutations)`,
    async () => {
      const random = seededRandom(FUZZ_SEED + 1);
      const listener = new WebSocketListener((link) => agent.accept(link));
      const port = await listener.listen("127.0.0.1", 0);
      const stream = Buffer.concat([upgradeRequest(), ...recorded.toSecondary.slice(0, OPENING + 4).map(frame)]);
      let left = RUNS;
      const worker = async (): Promise<void> => {
        while (left > 0) {
          let bytes: Buffer = stream;
          for (let count = 0; count < MUTATIONS_PER_CONNECTION && bytes.length > 0; count += 1) {
            bytes = mutate(bytes, random);
            left -= 1;
          }
          await playBytes(port, bytes);
        }
      };
      await Promise.all(Array.from({ length: SOCKETS_AT_ONCE }, worker));
      expect(imagesOf(storage).equals(before)).toBe(true);
      await listener.close();
    },
    TIME_LIMIT_MS,
  );

  it("still serves its primary afterwards", async () => {
    await recordSession(primary, agent, TOKEN, 0x60);
    expect(imagesOf(storage).equals(imagesOf(primary))).toBe(true);
    expect(imagesOf(storage).equals(before)).toBe(false);
  }, 60_000);
});

describe("a secondary whose primary sends damaged messages in an open session", () => {
  it(
    "keeps its committed checkpoint, byte for byte",
    async () => {
      const { agent, recorded } = await secondaryWithHistory(undefined);
      const committed = await viewOf(agent);
      const random = seededRandom(FUZZ_SEED + 2);
      const opening = recorded.toSecondary.slice(0, OPENING + 1);
      const stream = recorded.toSecondary.slice(opening.length).filter((message) => !isRequest(message));
      const begin = decodeMessage(opening[OPENING] ?? Buffer.alloc(0));
      expect(begin.type).toBe("begin");
      const epoch = agent.status().epoch.open;
      const runs = Math.ceil(RUNS / 10);
      let reached = 0;
      for (let run = 0; run < runs; run += 1) {
        const link = new MemoryLink("fuzz");
        agent.accept(link);
        for (const message of opening.slice(0, OPENING)) link.receive(Buffer.from(message));
        link.receive(withEpoch(opening[OPENING] ?? Buffer.alloc(0), epoch));
        while (link.closedWith === undefined && !link.sent.some((message) => typeOf(message) === "ready")) await turn();
        if (link.closedWith === undefined) reached += 1;
        const damagedAt = Math.floor(random() * stream.length);
        let number = opening.length;
        for (const [index, message] of stream.entries()) {
          const next = numbered(message, number);
          const bytes = index === damagedAt ? mutate(next, random) : next;
          // A damaged request that is a request all the same may rightly move the checkpoint.
          if (isRequest(bytes)) continue;
          link.receive(bytes);
          number += 1;
          if (link.closedWith !== undefined) break;
        }
        await turn();
        link.end(LOST);
        if (run % 500 === 0) expect((await viewOf(agent)).equals(committed)).toBe(true);
      }
      expect(reached).toBe(runs);
      expect((await viewOf(agent)).equals(committed)).toBe(true);
      await agent.stop(1000);
    },
    TIME_LIMIT_MS,
  );
});

describe("a primary whose secondary sends damaged messages", () => {
  it(
    `ends the session once, or goes on, and nothing is thrown (${RUNS} sessions)`,
    async () => {
      const { agent, recorded } = await secondaryWithHistory(undefined);
      await agent.stop(1000);
      const random = seededRandom(FUZZ_SEED + 3);
      const clock = new ManualClock();
      for (let run = 0; run < RUNS; run += 1) {
        const link = new MemoryLink("fuzz", true);
        let closings = 0;
        const session = new SourceSession({
          link,
          clock,
          random: new NodeRandom(),
          hello: primaryHello({ vm: "fuzz", disks: FUZZ_DISKS.map((name) => ({ name, sizeBytes: FUZZ_DISK_BYTES })) }),
          token: undefined,
          peerTimeoutMs: 5000,
          windowBytes: 1024 * 1024,
          opened: () => undefined,
          differs: () => undefined,
          ready: () => undefined,
          stalled: () => undefined,
          notified: () => undefined,
          closed: () => {
            closings += 1;
          },
        });
        const damagedAt = Math.floor(random() * recorded.toPrimary.length);
        for (const [index, message] of recorded.toPrimary.entries()) {
          if (index === OPENING && closings === 0)
            session.send("write", { disk: 0, firstCluster: 0, endCluster: 1 }, 0, 512, Buffer.alloc(512));
          link.receive(index === damagedAt ? mutate(message, random) : Buffer.from(message));
        }
        link.end(LOST);
        expect(closings).toBe(1);
        expect(session.unstableBytes).toBe(0);
      }
      expect(clock.pendingTimers).toBe(0);
    },
    TIME_LIMIT_MS,
  );
});

/** Has no pauses: who guesses at the token has one of a second for each few guesses, and the test many thousands of them. */
class HastyClock extends NodeClock {
  override after(delayMs: number, callback: () => void): Timer {
    return super.after(delayMs === WRONG_TOKEN_PAUSE_MS ? 0 : delayMs, callback);
  }
}

/** A secondary with a committed checkpoint, and the session that led to it. */
async function secondaryWithHistory(
  token: Buffer | undefined,
): Promise<{ primary: MemoryStorage; storage: MemoryStorage; agent: Agent; recorded: RecordedSession }> {
  const primary = fuzzStorage(1);
  const storage = fuzzStorage(2);
  const agent = await openFuzzAgent("Secondary", storage, token, () => Promise.reject(LOST), new HastyClock());
  const recorded = await recordSession(primary, agent, token);
  return { primary, storage, agent, recorded };
}

function fuzzStorage(seed: number): MemoryStorage {
  const storage = new MemoryStorage(new SimDisk(new SeededRandom(seed), { coldProbability: 0 }));
  storage.disk.addDirectory("/images");
  for (const name of FUZZ_DISKS) {
    const content = Buffer.alloc(FUZZ_DISK_BYTES);
    new SeededRandom(seed).fill(content.subarray(0, FUZZ_DISK_BYTES / 2));
    storage.disk.addFile(`/images/${name}.img`, FUZZ_DISK_BYTES, content);
  }
  return storage;
}

async function viewOf(agent: Agent): Promise<Buffer> {
  const view = Buffer.alloc(FUZZ_DISKS.length * FUZZ_DISK_BYTES);
  for (const [index, name] of FUZZ_DISKS.entries()) {
    const part = view.subarray(index * FUZZ_DISK_BYTES, (index + 1) * FUZZ_DISK_BYTES);
    await agent.exports.find(name)?.device.read(part, 0);
  }
  return view;
}

function typeOf(message: Buffer): Message["type"] | undefined {
  try {
    return decodeMessage(message).type;
  } catch (error) {
    if (error instanceof ColobusError) return undefined;
    throw error;
  }
}

function isRequest(message: Buffer): boolean {
  const type = typeOf(message);
  return type === "barrier" || type === "commit" || type === "discard";
}

/** A copy of a recorded message that follows others than it did. */
function numbered(message: Buffer, number: number): Buffer {
  const copy = Buffer.from(message);
  numberMessage([copy], number);
  return copy;
}

/** A `begin` that names another epoch: the recorded one is closed. */
function withEpoch(begin: Buffer, epoch: number): Buffer {
  const marker = Buffer.from("openEpoch");
  const at = begin.indexOf(marker) + marker.length;
  const changed = Buffer.from(begin);
  expect(changed[at]).toBeLessThan(0x80); // a positive fixint of msgpack
  changed[at] = epoch;
  return changed;
}

function upgradeRequest(): Buffer {
  return Buffer.from(
    "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
      "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "latin1",
  );
}

/** A client's binary frame with a zero mask (RFC 6455, 5.2). */
function frame(payload: Buffer): Buffer {
  const head = Buffer.alloc(payload.length < 126 ? 6 : payload.length < 65_536 ? 8 : 14);
  head[0] = 0x82;
  if (payload.length < 126) head[1] = 0x80 | payload.length;
  else if (payload.length < 65_536) {
    head[1] = 0x80 | 126;
    head.writeUInt16BE(payload.length, 2);
  } else {
    head[1] = 0x80 | 127;
    head.writeBigUInt64BE(BigInt(payload.length), 2);
  }
  return Buffer.concat([head, payload]);
}

/** Sends `bytes` to the listener, then nothing more, and resolves when the connection is over. */
function playBytes(port: number, bytes: Buffer): Promise<void> {
  return new Promise((resolve) => {
    const socket: Socket = connect({ host: "127.0.0.1", port });
    socket.on("connect", () => socket.end(bytes));
    socket.on("error", () => socket.destroy()); // the listener may reset what it does not want
    socket.on("close", () => resolve());
    socket.resume();
  });
}

function turn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}
