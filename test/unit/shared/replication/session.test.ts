import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../../proto/errors.ts";
import { HANDSHAKE_MESSAGE_MAX_BYTES, HANDSHAKE_TIMEOUT_MS, WRONG_TOKEN_PAUSE_MS } from "../../../../proto/limits.ts";
import {
  decodeMessage,
  encodeData,
  encodeMessage,
  numberMessage,
  type Hello,
  type Message,
} from "../../../../proto/replication-messages.ts";
import { NodeRandom } from "../../../../shared/host/node-random.ts";
import { Session, type SessionHandlers, type SessionOptions } from "../../../../shared/replication/session.ts";
import { primaryHello, secondaryHello, someGreeting } from "../../../support/hellos.ts";
import { LinkPair, type MemoryLink } from "../../../support/link-pair.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { present } from "../../../support/present.ts";

const PEER_TIMEOUT_MS = 4000;
const TOKEN = Buffer.from("a shared secret");

/** One end of a session, and what became of it. */
class End implements SessionHandlers {
  readonly session: Session;
  readonly link: MemoryLink;
  peer: Hello | undefined;
  readonly messages: string[] = [];
  readonly endings: ColobusError[] = [];
  throwing: Error | undefined;

  constructor(link: MemoryLink, clock: ManualClock, hello: Hello, options: Partial<SessionOptions> = {}) {
    this.link = link;
    this.session = new Session({
      link,
      clock,
      random: new NodeRandom(),
      hello,
      token: undefined,
      peerTimeoutMs: PEER_TIMEOUT_MS,
      handlers: this,
      ...options,
    });
  }

  opened(peer: Hello): void {
    this.peer = peer;
    if (this.throwing !== undefined) throw this.throwing;
  }

  message(message: Message): void {
    this.messages.push(message.type);
    if (this.throwing !== undefined) throw this.throwing;
  }

  closed(reason: ColobusError): void {
    this.endings.push(reason);
  }

  /** The only reason for which the session was closed. */
  get reason(): ColobusError {
    assert.equal(this.endings.length, 1);
    return present(this.endings[0]);
  }
}

interface Pair {
  readonly links: LinkPair;
  readonly clock: ManualClock;
  readonly primary: End;
  readonly secondary: End;
}

interface PairOptions {
  readonly tokens?: readonly [Buffer | undefined, Buffer | undefined];
  readonly primary?: Partial<Hello>;
  readonly secondary?: Partial<Hello>;
  /** The primary only asks. */
  readonly probe?: true;
}

/** The primary has dialled. */
function pair(options: PairOptions = {}): Pair {
  const { tokens = [undefined, undefined], primary = {}, secondary = {}, probe = false } = options;
  const links = new LinkPair();
  const clock = new ManualClock();
  return {
    links,
    clock,
    primary: new End(links.left, clock, primaryHello(primary), { token: tokens[0], probe }),
    secondary: new End(links.right, clock, secondaryHello(secondary), { token: tokens[1] }),
  };
}

/** Delivers everything, also what is said only after a pause. */
function deliverAll({ links, clock }: Pair): void {
  links.deliver();
  clock.advance(WRONG_TOKEN_PAUSE_MS);
  links.deliver();
}

/** What an end has sent that the other one has not been given. */
function sentBy(end: End): Message[] {
  return end.link.sent.map((bytes) => decodeMessage(bytes));
}

const typesSentBy = (end: End): string[] => sentBy(end).map(({ type }) => type);

function openPair(options: PairOptions = {}): Pair {
  const made = pair(options);
  made.links.deliver();
  expect(made.primary.peer).toBeDefined();
  expect(made.secondary.peer).toBeDefined();
  return made;
}

function bytesOf(message: Parameters<typeof encodeMessage>[0], number = 0): Buffer {
  return numbered(Buffer.concat(encodeMessage(message)), number);
}

/** A copy of an encoded message with another number. */
function numbered(message: Buffer, number: number): Buffer {
  const copy = Buffer.from(message);
  numberMessage([copy], number);
  return copy;
}

describe("a session", () => {
  it("opens on both sides with the other's hello", () => {
    const { primary, secondary } = openPair();
    expect(primary.peer).toMatchObject({ role: "Secondary", agentId: "b".repeat(32) });
    expect(secondary.peer).toMatchObject({ role: "Primary", agentId: "a".repeat(32) });
  });

  it("opens with the same token on both sides, which never crosses the link", () => {
    const { links, primary, secondary } = pair({ tokens: [TOKEN, Buffer.from(TOKEN)] });
    const crossed: Buffer[] = [];
    while (links.left.sent.length + links.right.sent.length > 0) {
      crossed.push(...links.left.sent, ...links.right.sent);
      links.left.deliverOne();
      links.right.deliverOne();
    }
    expect(primary.peer).toBeDefined();
    expect(secondary.peer).toBeDefined();
    expect(Buffer.concat(crossed).includes(TOKEN)).toBe(false);
  });

  it.each<readonly [string, Buffer | undefined, Buffer | undefined]>([
    ["different tokens", TOKEN, Buffer.from("another secret")],
    ["a token on the primary only", TOKEN, undefined],
    ["a token on the secondary only", undefined, TOKEN],
    ["an empty token on one side", Buffer.alloc(0), TOKEN],
  ])("with %s is refused on both sides", (_, left, right) => {
    const { primary, secondary, ...between } = pair({ tokens: [left, right] });
    deliverAll({ primary, secondary, ...between });
    for (const end of [primary, secondary]) {
      expect(end.peer).toBeUndefined();
      expect(end.reason.code).toBe("auth-failed");
      expect(end.reason.action).toMatch(/--token-file/);
    }
  });

  it("tells who has dialled and proved nothing no more than a nonce", () => {
    const { links, clock, secondary } = pair({ tokens: [TOKEN, TOKEN] });
    links.right.receive(bytesOf({ type: "greeting", ...someGreeting({ hasToken: true }) }));
    const nonce = expect.any(Uint8Array) as Uint8Array;
    const greeting = { type: "greeting", ...someGreeting({ nonce, hasToken: true }) };
    expect(sentBy(secondary)).toEqual([greeting]);
    links.right.receive(bytesOf({ type: "proof", mac: Buffer.alloc(32) }, 1));
    expect(typesSentBy(secondary)).toEqual(["greeting"]);
    clock.advance(WRONG_TOKEN_PAUSE_MS);
    expect(typesSentBy(secondary)).toEqual(["greeting", "refuse"]);
    expect(secondary.peer).toBeUndefined();
  });

  it("tells who was dialled and proves nothing no more than a proof", () => {
    const { links, primary } = pair({ tokens: [TOKEN, TOKEN] });
    links.left.receive(bytesOf({ type: "greeting", ...someGreeting({ hasToken: true }) }));
    expect(typesSentBy(primary)).toEqual(["greeting", "proof"]);
    links.left.receive(bytesOf({ type: "proof", mac: Buffer.alloc(32) }, 1));
    expect(typesSentBy(primary)).toEqual(["greeting", "proof", "refuse"]);
    expect(primary.reason.code).toBe("auth-failed");
  });

  it("keeps the place of who guesses at the token until the pause is over, and hears nothing meanwhile", () => {
    const { links, clock, secondary } = pair({ tokens: [TOKEN, TOKEN] });
    links.right.receive(bytesOf({ type: "greeting", ...someGreeting({ hasToken: true }) }));
    links.right.receive(bytesOf({ type: "proof", mac: Buffer.alloc(32) }, 1));
    links.right.receive(bytesOf({ type: "proof", mac: Buffer.alloc(32, 1) }, 2));
    links.right.end(new ColobusError("connection-lost", "the next guess comes over another link"));
    clock.advance(WRONG_TOKEN_PAUSE_MS - 1);
    expect(secondary.endings).toEqual([]);
    clock.advance(1);
    expect(secondary.reason.code).toBe("auth-failed");
  });

  it("does not tell a stranger what its owner ends it for", () => {
    const { secondary } = pair({ tokens: [TOKEN, TOKEN] });
    secondary.session.close(new ColobusError("replaced", "this side was promoted"));
    expect(sentBy(secondary).at(-1)).toMatchObject({ type: "refuse", error: { code: "shutting-down" } });
    expect(secondary.link.closedWith?.message).not.toMatch(/promoted/);
    expect(secondary.reason.message).toBe("this side was promoted");
  });

  it("has no proof for who sends its own words back", () => {
    const { links, primary, secondary } = pair({ tokens: [TOKEN, TOKEN] });
    links.right.receive(present(links.right.sent[0]));
    expect(typesSentBy(secondary)).toEqual(["greeting"]);
    links.left.receive(present(links.left.sent[0]));
    links.left.receive(present(links.left.sent[1]));
    expect(primary.reason.code).toBe("auth-failed");
  });

  it.each([[undefined], [TOKEN]])("refuses itself, connected to itself", (token) => {
    const agentId = "a".repeat(32);
    const { links, primary, secondary } = pair({ tokens: [token, token], secondary: { agentId } });
    links.deliver();
    for (const end of [primary, secondary]) expect(end.reason.code).toBe("role-conflict");
  });

  it("refuses a proof that was made for another session", () => {
    const recorded = pair({ tokens: [TOKEN, TOKEN] });
    const greeting = present(recorded.links.left.sent[0]);
    recorded.links.left.deliverOne();
    recorded.links.right.deliverOne();
    const proof = present(recorded.links.left.sent[0]);
    const replayed = pair({ tokens: [TOKEN, TOKEN] });
    replayed.links.right.receive(greeting);
    replayed.links.right.receive(proof);
    expect(typesSentBy(replayed.secondary)).toEqual(["greeting"]);
    replayed.clock.advance(WRONG_TOKEN_PAUSE_MS);
    expect(replayed.secondary.peer).toBeUndefined();
    expect(replayed.secondary.reason.code).toBe("auth-failed");
  });

  it("refuses a greeting that was altered on the way", () => {
    const between = pair({ tokens: [TOKEN, TOKEN] });
    const { links, primary, secondary } = between;
    const [greeting] = sentBy(primary);
    assert(greeting?.type === "greeting");
    links.left.sent.splice(0, 1, bytesOf({ ...greeting, protocol: 2, protocolOldest: 1 }));
    deliverAll(between);
    for (const end of [primary, secondary]) expect(end.reason.code).toBe("auth-failed");
  });

  it.each(["left", "right"] as const)("refuses a hello that was altered on the way, of the side at the %s", (side) => {
    const { links, primary, secondary } = pair({ tokens: [TOKEN, TOKEN] });
    const [from, to] = side === "left" ? [primary, secondary] : [secondary, primary];
    while (!typesSentBy(from).includes("hello")) expect(links.left.deliverOne() || links.right.deliverOne()).toBe(true);
    const at = typesSentBy(from).indexOf("hello");
    const hello = present(sentBy(from)[at]);
    assert(hello.type === "hello");
    from.link.sent[at] = bytesOf({ ...hello, discardsOwn: true }, 2);
    links.deliver();
    expect(to.peer).toBeUndefined();
    expect(to.reason).toMatchObject({ code: "auth-failed", message: expect.stringMatching(/altered/) as string });
  });

  it("is not opened to a peer that only asks, which has its proved hello all the same", () => {
    const { links, primary, secondary } = pair({ tokens: [TOKEN, TOKEN], probe: true });
    links.deliver();
    expect(primary.peer).toMatchObject({ role: "Secondary" });
    expect(secondary.peer).toBeUndefined();
    expect([secondary.session.isProbe, primary.session.isProbe]).toEqual([true, false]);
    primary.session.send({ type: "ready", differs: 0 });
    links.deliver();
    expect(secondary.messages).toEqual([]);
    expect(secondary.reason.code).toBe("protocol-error");
  });

  it("is ended by the timer of the handshake when a peer that only asked stays", () => {
    const { links, clock, secondary } = pair({ probe: true });
    links.deliver();
    clock.advance(HANDSHAKE_TIMEOUT_MS - 1);
    expect(secondary.endings).toEqual([]);
    clock.advance(1);
    expect(secondary.reason.code).toBe("peer-timeout");
  });

  it("does not show its hello as proved to who asks without the token", () => {
    const between = pair({ tokens: [Buffer.from("wrong"), TOKEN], probe: true });
    const { primary, secondary } = between;
    deliverAll(between);
    expect([primary.peer, secondary.peer]).toEqual([undefined, undefined]);
    expect(secondary.reason.code).toBe("auth-failed");
  });

  it("tells both sides of a mismatch, with what differs", () => {
    const { links, primary, secondary } = pair({ secondary: { vm: "other" } });
    links.deliver();
    expect(primary.reason.code).toBe("vm-mismatch");
    expect(secondary.reason.code).toBe("vm-mismatch");
    expect(primary.reason.message).toMatch(/other/);
  });

  it("does not tell who asks without the token what differs", () => {
    const between = pair({ tokens: [Buffer.from("wrong"), TOKEN], secondary: { vm: "other" } });
    deliverAll(between);
    expect(between.primary.reason.code).toBe("auth-failed");
  });

  it("ends when the owner refuses the peer, or a message, with the owner's reason", () => {
    const refusing = pair();
    refusing.secondary.throwing = new ColobusError("unrelated", "not mine");
    refusing.links.deliver();
    expect(refusing.secondary.reason.code).toBe("unrelated");
    expect(refusing.primary.reason.message).toBe("not mine");

    const later = openPair();
    later.secondary.throwing = new ColobusError("protocol-error", "not now");
    later.primary.session.send({ type: "ready", differs: 0 });
    later.links.deliver();
    expect(later.secondary.reason.code).toBe("protocol-error");
    expect(later.primary.reason.message).toBe("not now");
  });

  it("hands messages over in order, and pings to nobody", () => {
    const { links, primary, secondary } = openPair();
    primary.session.send({ type: "sync", phase: "begin", totalBytes: 0, lineage: "l", ancestors: [] });
    primary.session.send({ type: "ping" });
    primary.session.send({ type: "barrier", id: 1, epoch: 1, commit: false });
    links.deliver();
    expect(secondary.messages).toEqual(["sync", "barrier"]);
  });

  it("is silent once it is closed, on both sides", () => {
    const { links, clock, primary, secondary } = openPair();
    primary.session.send({ type: "ready", differs: 0 });
    primary.session.close(new ColobusError("shutting-down", "bye"));
    primary.session.close(new ColobusError("internal", "again"));
    primary.session.send({ type: "ready", differs: 0 });
    secondary.session.send({ type: "ready", differs: 0 });
    links.deliver();
    expect(primary.messages).toEqual([]);
    expect(primary.reason.code).toBe("shutting-down");
    expect(secondary.messages).toEqual(["ready"]);
    expect(secondary.reason).toMatchObject({ code: "shutting-down", message: "bye" });
    clock.advance(100 * PEER_TIMEOUT_MS);
    expect(primary.endings).toHaveLength(1);
    expect(clock.pendingTimers).toBe(0);
  });

  it("over a link that has ended already tells its owner, once the owner has it", () => {
    const links = new LinkPair();
    links.left.end(new ColobusError("connection-lost", "gone before it began"));
    const clock = new ManualClock();
    const end: End = new End(links.left, clock, primaryHello());
    expect(end.endings).toEqual([]);
    clock.endTurn();
    expect(end.reason.code).toBe("connection-lost");
    expect(clock.pendingTimers).toBe(0);
  });
});

describe("a session that is not open", () => {
  const NOT_NOW = expect.stringMatching(/where the handshake does not allow it/) as string;
  const EARLY: readonly (readonly [string, Buffer])[] = [
    ["data", Buffer.concat(encodeData(1, [0, 0, 0, 3], [Buffer.from("abc")]))],
    ["begin", bytesOf({ type: "begin", session: "s", extent: "full", lineage: "l", openEpoch: 1, diskSizes: [1] })],
    ["a barrier", bytesOf({ type: "barrier", id: 1, epoch: 1, commit: false })],
    ["a ping", bytesOf({ type: "ping" })],
    ["a hello", bytesOf({ type: "hello", ...primaryHello() })],
    ["a seal", bytesOf({ type: "seal", mac: Buffer.alloc(0) })],
    ["a proof before the greeting", bytesOf({ type: "proof", mac: Buffer.alloc(0) })],
    ["rubbish", Buffer.from("GET / HTTP/1.1\r\n\r\n")],
    ["nothing at all", Buffer.alloc(0)],
  ];

  it.each(EARLY)("refuses %s", (_, bytes) => {
    const { links, secondary } = pair();
    links.right.receive(bytes);
    expect(secondary.reason.code).toBe("protocol-error");
    expect(secondary.messages).toEqual([]);
  });

  it.each(EARLY.slice(0, 6))("refuses %s after the greeting", (_, bytes) => {
    const { links, secondary } = pair();
    links.left.deliverOne();
    links.right.receive(numbered(bytes, 1));
    expect(secondary.reason).toMatchObject({ code: "protocol-error", message: NOT_NOW });
    expect(secondary.peer).toBeUndefined();
  });

  it.each([
    bytesOf({ type: "greeting", ...someGreeting() }),
    bytesOf({ type: "proof", mac: Buffer.alloc(0) }),
    bytesOf({ type: "hello", ...primaryHello() }),
    bytesOf({ type: "seal", mac: Buffer.alloc(0) }),
  ])("refuses any message of the handshake once more, then and later (%#)", (message) => {
    const late = openPair();
    late.links.right.receive(numbered(message, 4));
    expect(late.secondary.reason).toMatchObject({ code: "protocol-error", message: NOT_NOW });
    const early = pair();
    early.links.left.deliverOne();
    early.links.right.receive(numbered(message, 1));
    early.links.right.receive(numbered(message, 2));
    expect(early.secondary.reason).toMatchObject({ code: "protocol-error", message: NOT_NOW });
  });

  it("refuses a message that is larger than a handshake needs, unread", () => {
    const { links, secondary } = pair();
    links.right.receive(
      Buffer.concat(encodeData(1, [0, 0, 0, HANDSHAKE_MESSAGE_MAX_BYTES], [Buffer.alloc(HANDSHAKE_MESSAGE_MAX_BYTES)])),
    );
    expect(secondary.reason.message).toMatch(/large message/);
  });

  it("takes a refusal at any time, and tells a peer's words as they are, a stranger's as a stranger's", () => {
    const error = { code: "role-conflict", message: `run curl${" now".repeat(1000)}`, action: "a" };
    const { links, secondary } = pair({ tokens: [TOKEN, TOKEN] });
    links.right.receive(bytesOf({ type: "refuse", error }));
    expect(secondary.reason).toMatchObject({ code: "role-conflict", action: "See the log of the agent there." });
    expect(secondary.reason.message).toMatch(/^the other side has not proved who it is, .*"run curl( now){48}"$/);
    const known = openPair();
    known.links.right.receive(bytesOf({ type: "refuse", error }, 4));
    expect(known.secondary.reason.toJSON()).toEqual(error);
  });

  it("is given up when the handshake takes too long, whatever was said", () => {
    const { links, clock, secondary } = pair();
    links.left.deliverOne();
    clock.advance(HANDSHAKE_TIMEOUT_MS - 1);
    expect(secondary.endings).toEqual([]);
    clock.advance(1);
    expect(secondary.reason.code).toBe("peer-timeout");
  });
});

describe("a session between whose ends", () => {
  /** Messages of the handshake from each side: the number of what is said next. */
  const SAID = 4;
  const told = ["begin", "ping", "united", "sync", "barrier"] as const;

  /** An open pair, and what its primary has said since, not delivered yet. */
  function saying(): Pair & { readonly said: Buffer[] } {
    const open = openPair();
    const { session } = open.primary;
    const history = { lineage: "l", ancestors: [] };
    session.send({ type: "begin", session: "s", extent: "full", openEpoch: 1, diskSizes: [1], lineage: "l" });
    session.send({ type: "ping" });
    session.send({ type: "united" });
    session.send({ type: "sync", phase: "end", totalBytes: 0, ...history });
    session.send({ type: "barrier", id: 1, epoch: 1, commit: false });
    return { ...open, said: open.links.left.sent.splice(0) };
  }

  function expectEnded({ links, primary, secondary }: Pair, number: number, expected: number): void {
    const words = `message ${number} of the peer came where ${expected} was expected`;
    expect(secondary.reason.code).toBe("protocol-error");
    expect(secondary.reason.message).toContain(words);
    expect(secondary.reason.action).toMatch(/proxies/);
    links.deliver();
    expect(primary.reason.code).toBe("protocol-error");
    expect(primary.reason.message).toContain(secondary.reason.message);
  }

  const at = told.map((type, index) => ({ type, index }));

  it.each(at.slice(0, -1))("a message is lost ends at the next one: $type", ({ index }) => {
    const { said, ...open } = saying();
    said.splice(index, 1);
    for (const message of said) open.links.right.receive(message);
    expect(open.secondary.messages).toEqual(told.slice(0, index).filter((type) => type !== "ping"));
    expectEnded(open, SAID + index + 1, SAID + index);
  });

  it("the last message is lost ends at the next heartbeat", () => {
    const { said, ...open } = saying();
    for (const message of said.slice(0, -1)) open.links.right.receive(message);
    expect(open.secondary.endings).toEqual([]);
    open.clock.advance(PEER_TIMEOUT_MS / 4);
    open.links.deliver();
    expectEnded(open, SAID + 5, SAID + 4);
  });

  it.each(at)("a message is repeated ends there: $type", ({ index }) => {
    const { said, ...open } = saying();
    for (const message of said.slice(0, index + 1)) open.links.right.receive(message);
    open.links.right.receive(present(said[index]));
    expect(open.secondary.messages).toEqual(told.slice(0, index + 1).filter((type) => type !== "ping"));
    expectEnded(open, SAID + index, SAID + index + 1);
  });

  it.each(at.slice(0, -1))("two messages are swapped ends before either: $type", ({ index }) => {
    const { said, ...open } = saying();
    said.splice(index, 2, present(said[index + 1]), present(said[index]));
    for (const message of said) open.links.right.receive(message);
    expect(open.secondary.messages).toEqual(told.slice(0, index).filter((type) => type !== "ping"));
    expectEnded(open, SAID + index + 1, SAID + index);
  });

  it("a message of the handshake is lost does not open there", () => {
    const greeting = pair();
    greeting.links.left.sent.shift();
    greeting.links.deliver();
    expect(greeting.secondary.peer).toBeUndefined();
    expectEnded(greeting, 1, 0);
    for (const lost of ["hello", "seal"]) {
      const between = pair();
      const { links, clock, primary, secondary } = between;
      while (!typesSentBy(primary).includes(lost))
        expect(links.right.deliverOne() || links.left.deliverOne()).toBe(true);
      const [number] = links.left.sent
        .splice(typesSentBy(primary).indexOf(lost), 1)
        .map((bytes) => bytes.readUInt32BE(4));
      links.deliver();
      clock.advance(PEER_TIMEOUT_MS / 4); // the primary's session is open, and says so
      links.deliver();
      expect(secondary.peer).toBeUndefined();
      expectEnded(between, present(number) + 1, present(number));
    }
  });

  it("a message that the other waits for is lost ends with the time for the handshake", () => {
    for (const lost of ["greeting", "proof"]) {
      const { links, clock, primary, secondary } = pair();
      const from = lost === "proof" ? primary : secondary;
      while (!typesSentBy(from).includes(lost)) links.right.deliverOne();
      links.left.deliverOne();
      from.link.sent.pop();
      links.deliver();
      clock.advance(HANDSHAKE_TIMEOUT_MS);
      for (const end of [primary, secondary]) expect(end.reason.code).toBe("peer-timeout");
    }
  });

  it("data that comes twice is handed over once", () => {
    const open = openPair();
    open.primary.session.sendParts(encodeData(1, [0, 0, 0, 3], [Buffer.from("abc")]));
    const [data] = open.links.left.sent.splice(0);
    open.links.right.receive(present(data));
    open.links.right.receive(present(data));
    expect(open.secondary.messages).toEqual(["data"]);
    expectEnded(open, SAID, SAID + 1);
  });
});

describe("a quiet session", () => {
  it("stays open by heartbeats", () => {
    const { links, clock, primary, secondary } = openPair();
    for (let elapsedMs = 0; elapsedMs < 20 * PEER_TIMEOUT_MS; elapsedMs += 100) {
      clock.advance(100);
      links.deliver();
    }
    expect(primary.endings).toEqual([]);
    expect(secondary.endings).toEqual([]);
    expect(primary.session.silenceMs).toBeLessThan(PEER_TIMEOUT_MS / 2);
  });

  it("is ended when the peer says nothing for the peer timeout, and not before", () => {
    const { clock, secondary } = openPair();
    for (let elapsedMs = 0; elapsedMs < PEER_TIMEOUT_MS - 100; elapsedMs += 100) clock.advance(100);
    expect(secondary.endings).toEqual([]);
    for (let elapsedMs = 0; elapsedMs < PEER_TIMEOUT_MS; elapsedMs += 100) clock.advance(100);
    expect(secondary.reason).toMatchObject({
      code: "peer-timeout",
      message: expect.stringMatching(/silent for \d+ ms/) as string,
    });
  });

  it("is not ended by a process that was itself stopped, until the peer's words could be read", () => {
    const clock = new StoppableClock();
    const links = new LinkPair();
    const primary = new End(links.left, clock, primaryHello());
    const secondary = new End(links.right, clock, secondaryHello());
    links.deliver();
    clock.stopFor(10 * PEER_TIMEOUT_MS);
    expect(secondary.endings).toEqual([]);
    links.deliver(); // the heartbeat that the other side has sent at once
    for (let elapsedMs = 0; elapsedMs < PEER_TIMEOUT_MS; elapsedMs += 100) {
      clock.advance(100);
      links.deliver();
    }
    expect(secondary.endings).toEqual([]);
    expect(primary.endings).toEqual([]);
  });

  it("is ended after a stop when the peer still says nothing", () => {
    const clock = new StoppableClock();
    const links = new LinkPair();
    const primary = new End(links.left, clock, primaryHello());
    const secondary = new End(links.right, clock, secondaryHello());
    links.deliver();
    clock.stopFor(10 * PEER_TIMEOUT_MS);
    clock.advance(PEER_TIMEOUT_MS);
    expect(secondary.reason.code).toBe("peer-timeout");
    expect(primary.endings).toHaveLength(1);
  });
});

/** A clock of a process that can be stopped (SIGSTOP): time goes on, and timers that fell due fire late. */
class StoppableClock extends ManualClock {
  #stoppedMs = 0;

  override nowMs(): number {
    return super.nowMs() + this.#stoppedMs;
  }

  stopFor(ms: number): void {
    this.#stoppedMs += ms;
    this.advance(PEER_TIMEOUT_MS / 4);
  }
}
