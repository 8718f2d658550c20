import { describe, expect, it } from "vitest";
import { Session } from "../../../../shared/replication/session.ts";
import { NodeRandom } from "../../../../shared/host/node-random.ts";
import type { Pulse } from "../../../../shared/replication/pulse.ts";
import { TakeoverPromise } from "../../../../secondary/takeover-promise.ts";
import { primaryHello, secondaryHello } from "../../../support/hellos.ts";
import { LinkPair } from "../../../support/link-pair.ts";
import { ManualClock } from "../../../support/manual-clock.ts";

const PEER_TIMEOUT_MS = 4_000;
const BEAT_MS = 500;
const TTL_MS = 3_000;

/** Two sides of an open session. What the primary has heard is noted as the clock that was answered, and the promise. */
function openPair(promises: boolean) {
  const clock = new ManualClock();
  const links = new LinkPair();
  const heard: [number, number][] = [];
  const promise = new TakeoverPromise(clock, TTL_MS);
  const beats: Pulse = {
    of: "Primary",
    everyMs: BEAT_MS,
    beat: () => clock.nowMs(),
    heard: (at, promiseMs) => heard.push([at, promiseMs]),
  };
  const silent = { opened: () => undefined, message: () => undefined, closed: () => undefined };
  const common = {
    clock,
    random: new NodeRandom(),
    token: undefined,
    peerTimeoutMs: PEER_TIMEOUT_MS,
    handlers: silent,
  };
  void new Session({ ...common, link: links.left, hello: primaryHello(), pulse: beats });
  void new Session({
    ...common,
    link: links.right,
    hello: secondaryHello(),
    pulse: promises ? promise.pulse : undefined,
  });
  links.deliver();
  return { clock, links, heard, promise };
}

describe("the pings of a pair with an arbiter", () => {
  it("are answered at once, from the first moment of the session on, and as often as is asked for", () => {
    const { clock, links, heard } = openPair(true);
    expect(heard).toEqual([[0, TTL_MS]]);
    for (let count = 0; count < 3; count += 1) {
      clock.advance(BEAT_MS);
      links.deliver();
    }
    expect(heard.map(([at]) => at)).toEqual([0, BEAT_MS, 2 * BEAT_MS, 3 * BEAT_MS]);
  });

  it("promise nothing where the secondary has no arbiter", () => {
    const { clock, links, heard } = openPair(false);
    clock.advance(BEAT_MS);
    links.deliver();
    expect(heard).toEqual([]);
  });
});

describe("a secondary's promise", () => {
  it("binds from the last ping that was heard, for the longer one of both sides' times", () => {
    const { clock, links, promise } = openPair(true);
    clock.advance(BEAT_MS);
    links.deliver();
    expect(promise.leftMs(0)).toBe(TTL_MS);
    expect(promise.leftMs(2 * TTL_MS)).toBe(2 * TTL_MS);
    clock.advance(TTL_MS - 1);
    expect(promise.leftMs(0)).toBe(1);
    clock.advance(1);
    expect(promise.leftMs(0)).toBe(0);
  });

  it("begins with the process, which may have promised before its restart", () => {
    const clock = new ManualClock();
    clock.advance(7);
    expect(new TakeoverPromise(clock, TTL_MS).leftMs(0)).toBe(TTL_MS);
  });
});
