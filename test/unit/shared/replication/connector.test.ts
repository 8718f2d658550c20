import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../../proto/errors.ts";
import { RECONNECT_MAX_MS, RECONNECT_MIN_MS } from "../../../../proto/limits.ts";
import { Connector } from "../../../../shared/replication/connector.ts";
import type { Dialer, Link } from "../../../../shared/replication/link.ts";
import { LinkPair, type MemoryLink } from "../../../support/link-pair.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { turn } from "../../../support/memory-storage.ts";

/** A dialer whose every call is answered by the test. */
class ManualDialer implements Dialer {
  readonly url = "ws://127.0.0.1:1";
  dials = 0;
  signal: AbortSignal | undefined;
  #answer: { resolve: (link: Link) => void; reject: (reason: unknown) => void } | undefined;

  dial(signal: AbortSignal): Promise<Link> {
    this.dials += 1;
    this.signal = signal;
    return new Promise((resolve, reject) => {
      this.#answer = { resolve, reject };
    });
  }

  async succeed(): Promise<MemoryLink> {
    const link = new LinkPair().left;
    this.#answer?.resolve(link);
    await turn();
    return link;
  }

  async fail(reason: unknown = new ColobusError("connection-lost", "refused")): Promise<void> {
    this.#answer?.reject(reason);
    await turn();
  }
}

function bench(fraction = 0.5): {
  dialer: ManualDialer;
  clock: ManualClock;
  connector: Connector;
  links: Link[];
  failures: ColobusError[];
} {
  const dialer = new ManualDialer();
  const clock = new ManualClock();
  const links: Link[] = [];
  const failures: ColobusError[] = [];
  const random = { bytes: (length: number) => Buffer.alloc(length), fraction: () => fraction };
  const connector = new Connector({
    dialer,
    clock,
    random,
    isWanted: () => true,
    connected: (link) => links.push(link),
    failed: (reason) => failures.push(reason),
  });
  return { dialer, clock, connector, links, failures };
}

describe("the connector", () => {
  it("hands over the link, and dials again only when that is lost", async () => {
    const { dialer, clock, connector, links } = bench();
    connector.start();
    const link = await dialer.succeed();
    expect(links).toEqual([link]);
    clock.advance(100 * RECONNECT_MAX_MS);
    expect(dialer.dials).toBe(1);
    connector.lost(true);
    clock.advance(RECONNECT_MIN_MS);
    expect(dialer.dials).toBe(2);
  });

  it("dials for ever, after pauses that double up to a limit", async () => {
    const { dialer, clock, connector, failures } = bench();
    connector.start();
    for (
      let pauseMs = RECONNECT_MIN_MS, round = 1;
      round < 20;
      round += 1, pauseMs = Math.min(2 * pauseMs, RECONNECT_MAX_MS)
    ) {
      await dialer.fail();
      expect(failures).toHaveLength(round);
      clock.advance(pauseMs - 1);
      expect(dialer.dials).toBe(round);
      clock.advance(1);
      expect(dialer.dials).toBe(round + 1);
    }
  });

  it.each([
    [0, 0.5],
    [0.999_999, 1.5],
  ])("spreads its pauses: at %d the factor is %d", async (fraction, factor) => {
    const { dialer, clock, connector } = bench(fraction);
    connector.start();
    await dialer.fail();
    clock.advance(RECONNECT_MIN_MS * factor - 1);
    expect(dialer.dials).toBe(1);
    clock.advance(1);
    expect(dialer.dials).toBe(2);
  });

  it("dials soon after a good session, and goes on slowing down after links that came to nothing", async () => {
    const { dialer, clock, connector } = bench();
    connector.start();
    for (const pauseMs of [RECONNECT_MIN_MS, 2 * RECONNECT_MIN_MS, 4 * RECONNECT_MIN_MS]) {
      await dialer.succeed();
      connector.lost(false);
      clock.advance(pauseMs - 1);
      const before = dialer.dials;
      clock.advance(1);
      expect(dialer.dials).toBe(before + 1);
    }
    await dialer.succeed();
    connector.lost(true);
    clock.advance(RECONNECT_MIN_MS);
    expect(dialer.dials).toBe(5);
  });

  it("reports what is no fault of the network as a bug, and dials on", async () => {
    const { dialer, clock, connector, failures } = bench();
    connector.start();
    await dialer.fail(new TypeError("oops"));
    expect(failures[0]).toMatchObject({ code: "internal", message: "oops" });
    clock.advance(RECONNECT_MAX_MS);
    expect(dialer.dials).toBe(2);
  });

  it("that is stopped aborts its dial, closes a link that comes too late, and never dials again", async () => {
    const dialing = bench();
    dialing.connector.start();
    dialing.connector.stop();
    expect(dialing.dialer.signal?.aborted).toBe(true);
    const late = await dialing.dialer.succeed();
    expect(late.closedWith?.code).toBe("shutting-down");
    expect(dialing.links).toEqual([]);

    const failing = bench();
    failing.connector.start();
    failing.connector.stop();
    await failing.dialer.fail();
    expect(failing.failures).toEqual([]);

    const pausing = bench();
    pausing.connector.start();
    await pausing.dialer.fail();
    pausing.connector.stop();
    pausing.connector.lost(true);
    pausing.clock.advance(10 * RECONNECT_MAX_MS);
    expect(pausing.dialer.dials).toBe(1);
    expect(pausing.clock.pendingTimers).toBe(0);
  });
});
