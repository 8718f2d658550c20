import { describe, expect, it } from "vitest";
import { LINK_MEASURE_CHUNK_BYTES, LINK_MEASURE_MAX_BYTES } from "../../../../proto/limits.ts";
import { encodeMessage, numberMessage, type Hello } from "../../../../proto/replication-messages.ts";
import type { Clock } from "../../../../shared/host/clock.ts";
import { NodeRandom } from "../../../../shared/host/node-random.ts";
import { measureLink, type LinkFigures } from "../../../../shared/replication/measure-link.ts";
import { Session } from "../../../../shared/replication/session.ts";
import { primaryHello, secondaryHello, someGreeting } from "../../../support/hellos.ts";
import { LinkPair } from "../../../support/link-pair.ts";
import { ManualClock } from "../../../support/manual-clock.ts";

const PEER_TIMEOUT_MS = 4000;
const ONE_WAY_MS = 2;
const BYTES_PER_MS = 20_000;
const AHEAD_MS = 3000;

/** The peer's side, whose time of day is ahead. Its end is noted. */
function peerOn(
  links: LinkPair,
  clock: ManualClock,
  hello: Partial<Hello> = {},
): { reason?: string; session: Session } {
  const ahead: Clock = {
    nowMs: () => clock.nowMs(),
    wallMs: () => clock.wallMs() + AHEAD_MS,
    after: clock.after.bind(clock),
    defer: clock.defer.bind(clock),
  };
  const handlers = { opened: () => undefined, message: () => undefined };
  const session = new Session({
    link: links.right,
    clock: ahead,
    random: new NodeRandom(),
    hello: secondaryHello(hello),
    token: undefined,
    peerTimeoutMs: PEER_TIMEOUT_MS,
    handlers: { ...handlers, closed: ({ code }) => (peer.reason = code) },
  });
  const peer: { reason?: string; session: Session } = { session };
  return peer;
}

/** Measures over a line of that latency and speed, in virtual time. */
async function measured(links: LinkPair, clock: ManualClock): Promise<LinkFigures> {
  const { signal } = new AbortController();
  const dialer = { url: "ws://peer:7000", dial: () => Promise.resolve(links.left) };
  const hello = primaryHello();
  let isOver = false;
  const figures = measureLink({
    dialer,
    clock,
    random: new NodeRandom(),
    hello,
    token: undefined,
    peerTimeoutMs: PEER_TIMEOUT_MS,
    signal,
  });
  const settled = figures.then(
    () => (isOver = true),
    () => (isOver = true),
  );
  for (;;) {
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
    if (isOver) break;
    clock.endTurn();
    clock.advance(ONE_WAY_MS + links.left.queuedBytes / BYTES_PER_MS);
    while (links.left.deliverOne());
    clock.advance(ONE_WAY_MS);
    while (links.right.deliverOne());
  }
  await settled;
  return figures;
}

describe("a measurement of the link", () => {
  it("tells the round trip, the speed, and how far the peer's clock is ahead", async () => {
    const [links, clock] = [new LinkPair(), new ManualClock()];
    peerOn(links, clock);
    const figures = await measured(links, clock);
    expect(figures.roundTripMs).toBeCloseTo(2 * ONE_WAY_MS, 1);
    expect(Math.abs(figures.clockAheadMs - AHEAD_MS)).toBeLessThanOrEqual(figures.roundTripMs / 2);
    expect(figures.bytesPerSecond / (BYTES_PER_MS * 1000)).toBeCloseTo(1, 1);
    expect(figures.sentBytes).toBeLessThanOrEqual(LINK_MEASURE_MAX_BYTES);
  });

  it("says why where the two are no pair", async () => {
    const [links, clock] = [new LinkPair(), new ManualClock()];
    peerOn(links, clock, { vm: "other" });
    await expect(measured(links, clock)).rejects.toMatchObject({ code: "vm-mismatch" });
  });

  it("is ended by a peer that is sent more than it needs", () => {
    const [links, clock] = [new LinkPair(), new ManualClock()];
    const ended = peerOn(links, clock);
    const padding = Buffer.alloc(LINK_MEASURE_CHUNK_BYTES);
    const send = (message: Parameters<typeof encodeMessage>[0], number: number): void => {
      const parts = encodeMessage(message);
      numberMessage(parts, number);
      links.right.receive(Buffer.concat(parts));
    };
    send({ type: "greeting", ...someGreeting({ probe: true }) }, 0);
    send({ type: "proof", mac: Buffer.alloc(0) }, 1);
    send({ type: "hello", ...primaryHello() }, 2);
    send({ type: "seal", mac: Buffer.alloc(0) }, 3);
    const allowed = LINK_MEASURE_MAX_BYTES / LINK_MEASURE_CHUNK_BYTES;
    for (let at = 1; at <= allowed; at += 1) send({ type: "ping", at, padding }, 3 + at);
    expect(ended.reason).toBeUndefined();
    send({ type: "ping", at: allowed + 1, padding }, 4 + allowed);
    expect(ended.reason).toBe("protocol-error");
  });
});
