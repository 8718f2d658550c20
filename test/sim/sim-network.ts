import type { Dialer, Link } from "../../shared/replication/link.ts";
import type { SeededRandom } from "./seeded-random.ts";
import type { SimHost, SimProcess } from "./sim-host.ts";
import { lost, SimLink } from "./sim-link.ts";
import type { CrashKind } from "./simulated-crash.ts";
import type { SimWorld } from "./world.ts";

/**
 * The network between the simulated hosts: who can be dialled, which ways are blocked, and the links that exist.
 *
 * A partition blocks a way: what travels there waits, and goes on when the way is free, as TCP repeats it. Only `cut`,
 * `close` and death end a link.
 */
export interface NetworkProfile {
  readonly latencyMs: readonly [number, number];
  readonly bytesPerMs: number;
  /** Bytes in flight on one way of one link; more wait in the sender's queue. At least one message always flies. */
  readonly bufferBytes: number;
  /** How often a message arrives together with the one before it. */
  readonly burstProbability: number;
  /** How often the reason of a `close`, and some of what was queued before it, does not arrive. */
  readonly closeLostProbability: number;
  /** A dial that nobody answers is given up after this time. */
  readonly dialTimeoutMs: number;
}

export const NETWORK_PROFILE: NetworkProfile = {
  latencyMs: [0.1, 2],
  bytesPerMs: 100_000,
  bufferBytes: 256 * 1024,
  burstProbability: 0.2,
  closeLostProbability: 0.1,
  dialTimeoutMs: 10_000,
};

/** `cut` ends the link instead; the other two are what a broken relay between the hosts does to one message. */
export type MessageFate = "deliver" | "cut" | "lose" | "repeat";

/** Which ends of a link that is cut hear of it. */
export type CutHeardBy = "both" | "dialler" | "acceptor" | "nobody";

export class SimNetwork {
  readonly world: SimWorld;
  readonly random: SeededRandom;
  /** May be changed at any time; holds for what is sent from then on. */
  profile: NetworkProfile = NETWORK_PROFILE;
  /** Asked about every message before its receiver gets it, while set. */
  intercept: ((receiver: SimLink, data: Buffer) => MessageFate) | undefined;
  /** Both ends of every link that has not ended. The end that dialled comes first. */
  readonly #ends = new Set<SimLink>();
  /** Blocked ways, as "FROM TO". */
  readonly #blocked = new Set<string>();
  #pairs = 0;

  constructor(world: SimWorld, random: SeededRandom) {
    this.world = world;
    this.random = random;
  }

  // For hosts

  dialer(process: SimProcess, to: string): Dialer {
    return { url: `ws://${to}`, dial: (signal) => this.#dial(process, to, signal) };
  }

  forget(end: SimLink): void {
    this.#ends.delete(end);
  }

  processDied(process: SimProcess, kind: CrashKind): void {
    for (const end of this.#ends) if (end.process === process) end.processDied(kind);
  }

  processThawed(process: SimProcess): void {
    for (const end of this.#ends) if (end.process === process) end.peer.release();
  }

  isBlocked(from: SimHost, to: SimHost): boolean {
    return this.#blocked.size > 0 && this.#blocked.has(`${from.name} ${to.name}`);
  }

  /** Whether either way of a link is blocked. */
  isBlockedBetween(end: SimLink): boolean {
    const [left, right] = [end.process.host, end.peer.process.host];
    return this.isBlocked(left, right) || this.isBlocked(right, left);
  }

  // For tests

  /** Both ends of every link between two hosts that has not ended there, in the order of their making. */
  links(one: string, other: string): SimLink[] {
    const between = ({ process, peer }: SimLink): boolean =>
      (process.host.name === one && peer.process.host.name === other) ||
      (process.host.name === other && peer.process.host.name === one);
    return [...this.#ends].filter(between);
  }

  /** Blocks, or frees, both ways between two hosts. */
  partition(one: string, other: string, on: boolean): void {
    this.block(one, other, on);
    this.block(other, one, on);
  }

  /** Blocks, or frees, the way from one host to another. */
  block(from: string, to: string, on: boolean): void {
    const way = `${from} ${to}`;
    if (on === this.#blocked.has(way)) return;
    this.world.trace(`${on ? "blocked" : "free"}: ${way}`);
    if (on) {
      this.#blocked.add(way);
      return;
    }
    this.#blocked.delete(way);
    // A sender whose own end is gone may still have messages on the way: both ends of each pair are asked.
    const ends = new Set([...this.#ends].flatMap((end) => [end, end.peer]));
    for (const end of ends) if (end.process.host.name === from) end.release();
  }

  /** Cuts every link between two hosts. */
  cut(one: string, other: string, heardBy: CutHeardBy = "both"): void {
    const pairs = new Set<number>();
    for (const end of this.links(one, other)) {
      if (pairs.has(end.pair)) continue;
      pairs.add(end.pair);
      this.cutLink(end, heardBy);
    }
  }

  /**
   * Ends one link, given by either end: of what is in flight each way an arbitrary prefix still arrives, and behind it
   * those who hear of it do so, each in its time.
   */
  cutLink(end: SimLink, heardBy: CutHeardBy = "both"): void {
    const [dialler, acceptor] = end.dialled ? [end, end.peer] : [end.peer, end];
    this.world.trace(`cut: ${dialler.process.label} ${acceptor.process.label}`);
    const reason = lost("the connection was cut");
    acceptor.sever(heardBy === "both" || heardBy === "dialler" ? reason : undefined);
    dialler.sever(heardBy === "both" || heardBy === "acceptor" ? reason : undefined);
  }

  #dial(process: SimProcess, to: string, signal: AbortSignal): Promise<Link> {
    const { world } = this;
    const latencyMs = (): number => this.random.within(this.profile.latencyMs);
    return new Promise((resolve, reject) => {
      let settled = false;
      const end = (settle: () => void): void => {
        if (settled) return;
        settled = true;
        signal.removeEventListener("abort", abort);
        settle();
      };
      const fail = (why: string): void => end(() => reject(lost(`no link to ws://${to}: ${why}`)));
      const abort = (): void => fail("given up");
      if (signal.aborted) {
        abort();
        return;
      }
      signal.addEventListener("abort", abort, { once: true });
      world.trace(process.traceLine("dials", to));
      world.schedule(this.profile.dialTimeoutMs, () => fail("no answer"), process);
      world.schedule(latencyMs(), () =>
        this.#knock(
          process,
          to,
          () => settled,
          fail,
          (link) => {
            // From the acceptor's answer on the link exists for it, whatever the dialler does.
            world.schedule(
              latencyMs(),
              () => {
                if (settled) link.close(lost("given up"));
                else end(() => resolve(link));
              },
              process,
            );
          },
        ),
      );
    });
  }

  /** A dial has come to the host `to`. Without an answer the dialler's timeout decides. */
  #knock(
    from: SimProcess,
    to: string,
    givenUp: () => boolean,
    refuse: (why: string) => void,
    answer: (link: SimLink) => void,
  ): void {
    const host = this.world.getHost(to);
    if (givenUp() || !from.alive || host.isOff) return;
    if (this.isBlocked(from.host, host) || this.isBlocked(host, from.host)) return;
    const { process } = host;
    if (!process.alive || process.accept === undefined) {
      this.world.schedule(this.random.within(this.profile.latencyMs), () => refuse("connection refused"), from);
      return;
    }
    // The event belongs to the process, so that a frozen one answers when it thaws.
    const welcome = (): void => {
      if (givenUp() || !from.alive || process.accept === undefined) return;
      const pair = ++this.#pairs;
      const dialled = new SimLink(this, from, `ws://${to}`, pair, true);
      const accepted = new SimLink(this, process, from.host.name, pair, false);
      SimLink.join(dialled, accepted);
      this.#ends.add(dialled).add(accepted);
      this.world.trace(process.traceLine("accepts", from.label));
      answer(dialled);
      process.accept(accepted);
    };
    this.world.schedule(0, welcome, process);
  }
}
