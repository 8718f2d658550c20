/**
 * How far away the peer is: round trip, throughput, and how the two hosts' times of day differ. It is measured over a link of
 * its own, as a probe is, so that no session waits for it. What is sent is bounded; the peer keeps none of it.
 */
import { ColobusError } from "../../proto/errors.ts";
import { LINK_MEASURE_CHUNK_BYTES, LINK_MEASURE_MAX_BYTES } from "../../proto/limits.ts";
import type { Clock } from "../host/clock.ts";
import type { PeerProbeOptions } from "./peer-probe.ts";
import { Session } from "./session.ts";

/** Single pings; the quickest one counts. */
const ROUNDS = 8;
/** A burst that takes this long tells enough. */
const BURST_ENOUGH_MS = 200;
const BURST_FIRST_CHUNKS = 8;
/** Nothing is counted as quicker than this. */
const CLOCK_STEP_MS = 0.001;

export interface LinkFigures {
  readonly roundTripMs: number;
  /** By how much the peer's time of day is ahead of this side's; behind: negative. It is wrong by half a round trip at most. */
  readonly clockAheadMs: number;
  /** Of what was sent to the peer, framed and encrypted as replication is. */
  readonly bytesPerSecond: number;
  readonly sentBytes: number;
}

/** Errors: as `probePeer`; `protocol-error` from a peer of a release that cannot be measured. */
export async function measureLink(options: PeerProbeOptions): Promise<LinkFigures> {
  const { dialer, signal, ...rest } = options;
  const link = await dialer.dial(signal);
  return new Promise((resolve, reject) => {
    const pings = new Pings(options.clock, (at, padding) => session.send({ type: "ping", at, padding }));
    const session = new Session({
      ...rest,
      link,
      probe: true,
      handlers: {
        opened: () => {
          takeFigures(pings, options.clock).then((figures) => {
            resolve(figures);
            session.close(new ColobusError("replaced", "the agent only measured the link"));
          }, reject);
        },
        echoed: (at, wallMs) => pings.answered(at, wallMs),
        message: ({ type }) => {
          throw new ColobusError("protocol-error", `the peer sent "${type}" to who only asks`);
        },
        closed: reject,
      },
    });
    const giveUp = (): void => session.close(new ColobusError("connection-lost", "the measurement was given up"));
    if (signal.aborted) giveUp();
    else signal.addEventListener("abort", giveUp, { once: true });
  });
}

async function takeFigures(pings: Pings, clock: Clock): Promise<LinkFigures> {
  let best = { roundTripMs: Infinity, clockAheadMs: 0 };
  for (let round = 0; round < ROUNDS; round += 1) {
    const sentWallMs = clock.wallMs();
    const { roundTripMs, wallMs } = await pings.send();
    if (roundTripMs < best.roundTripMs) best = { roundTripMs, clockAheadMs: wallMs - sentWallMs - roundTripMs / 2 };
  }
  let sentBytes = 0;
  for (let chunks = BURST_FIRST_CHUNKS; ; chunks *= 2) {
    const burstBytes = chunks * LINK_MEASURE_CHUNK_BYTES;
    const { tookMs } = await pings.sendBurst(chunks);
    sentBytes += burstBytes;
    const isLast = tookMs >= BURST_ENOUGH_MS || sentBytes + 2 * burstBytes > LINK_MEASURE_MAX_BYTES;
    if (!isLast) continue;
    // The last answer's way back is not the burst's.
    const onTheWayMs = Math.max(tookMs - best.roundTripMs, tookMs / 2, CLOCK_STEP_MS);
    return { ...best, bytesPerSecond: Math.round((burstBytes * 1000) / onTheWayMs), sentBytes };
  }
}

/** The pings under way, by their number. */
class Pings {
  readonly #clock: Clock;
  readonly #send: (at: number, padding: Uint8Array) => void;
  readonly #awaited = new Map<number, (wallMs: number) => void>();
  #last = 0;

  constructor(clock: Clock, send: (at: number, padding: Uint8Array) => void) {
    this.#clock = clock;
    this.#send = send;
  }

  async send(): Promise<{ readonly roundTripMs: number; readonly wallMs: number }> {
    const startedMs = this.#clock.nowMs();
    const wallMs = await this.#ask(new Uint8Array(0));
    return { roundTripMs: this.#clock.nowMs() - startedMs, wallMs };
  }

  /** Sends many with all they may carry, and resolves with how long it took until the last was answered. */
  async sendBurst(chunks: number): Promise<{ readonly tookMs: number }> {
    // Zeroes would tell of a link that compresses, and not of disks.
    const padding = Uint8Array.from({ length: LINK_MEASURE_CHUNK_BYTES }, (_, index) => (index * index * 31) >> 3);
    const startedMs = this.#clock.nowMs();
    await Promise.all(Array.from({ length: chunks }, () => this.#ask(padding)));
    return { tookMs: this.#clock.nowMs() - startedMs };
  }

  answered(at: number, wallMs: number): void {
    this.#awaited.get(at)?.(wallMs);
    this.#awaited.delete(at);
  }

  #ask(padding: Uint8Array): Promise<number> {
    this.#last += 1;
    const at = this.#last;
    return new Promise((resolve) => {
      this.#awaited.set(at, resolve);
      this.#send(at, padding);
    });
  }
}
