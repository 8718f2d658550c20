import type { AgentEvent } from "../../proto/status.ts";
import type { PairMember, PairObserver } from "./pair.ts";
import type { SimProcess } from "./sim-host.ts";
import type { SimWorld } from "./world.ts";

const HOUR_MS = 3_600_000;
/** Fractions of virtual time, added up in another order. */
const ROUNDING_MS = 1e-3;

/** When a barrier was placed, or prepared, and by which process. */
interface Moment {
  readonly atMs: number;
  readonly process: SimProcess;
}

/**
 * Sets the hosts' wall clocks at each barrier, hours back and forth, and looks at what the agents say of the age of their
 * checkpoint then. All else goes to the observer behind it.
 *
 * Invariant held here: as long as the process lives that placed a barrier, or prepared its checkpoint, that one is as old
 * there as virtual time says.
 */
export class AgeWatch implements PairObserver {
  readonly sent: PairObserver["sent"];
  readonly #world: SimWorld;
  readonly #observer: PairObserver;
  readonly #placed = new Map<number, Moment>();
  /** Of each side that has been heard of. */
  readonly #prepared = new Map<PairMember, Map<number, Moment>>();
  readonly #looked: () => void;

  /** `looked` counts the ages that were judged. */
  constructor(world: SimWorld, observer: PairObserver, looked: () => void) {
    this.#world = world;
    this.#observer = observer;
    this.#looked = looked;
    this.sent = observer.sent === undefined ? undefined : (message, by) => observer.sent?.(message, by);
  }

  requested(message: Parameters<PairObserver["requested"]>[0], by: PairMember): void {
    this.#observer.requested(message, by);
    if (message.type !== "barrier") return;
    this.#placed.set(message.epoch, this.#momentOf(by));
    for (const [index, member] of [...this.#prepared.keys()].entries()) {
      member.host.wallOffsetMs = (((message.epoch + index) % 3) - 1) * HOUR_MS;
      this.#look(member);
    }
  }

  happened(member: PairMember, event: AgentEvent): void {
    const prepared = this.#prepared.get(member) ?? new Map<number, Moment>();
    this.#prepared.set(member, prepared);
    if (event.type === "checkpoint-prepared") prepared.set(Number(event.data["epoch"]), this.#momentOf(member));
    this.#observer.happened(member, event);
  }

  #momentOf({ host }: PairMember): Moment {
    return { atMs: this.#world.nowMs, process: host.process };
  }

  #look(member: PairMember): void {
    const { status } = member;
    const { process } = member.host;
    const { epoch = 0, ageMs = 0 } = status?.recoverable ?? {};
    const placed = this.#placed.get(epoch);
    const prepared = this.#prepared.get(member)?.get(epoch);
    if (placed === undefined || prepared?.process !== process) return;
    this.#looked();
    const ageOf = ({ atMs }: Moment): number => this.#world.nowMs - atMs;
    // Without epochs it is the last write that counts.
    const isOfWrite = status?.mode === "mirror";
    const leastMs = isOfWrite ? 0 : ageOf(placed.process === process ? placed : prepared);
    const mostMs = isOfWrite ? this.#world.nowMs : ageOf(placed);
    if (ageMs >= leastMs - ROUNDING_MS && ageMs <= mostMs + ROUNDING_MS) return;
    const told = `${member.name} says ${ageMs} ms of checkpoint ${epoch}, which are ${leastMs} to ${mostMs}`;
    this.#world.fail("the age of a checkpoint", new Error(told));
  }
}
