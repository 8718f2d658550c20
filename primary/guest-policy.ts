import { ColobusError } from "../proto/errors.ts";
import type { EventType } from "../proto/words.ts";
import type { Pending } from "../shared/block/block-device.ts";
import type { Log } from "../shared/host/log.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { arbiterSettled, mustHold } from "../shared/replication/lineage.ts";
import { GuestGate } from "./guest-gate.ts";

export interface GuestPolicyOptions {
  readonly state: StateFile;
  /** As for `mustHold`. */
  readonly mayHaveHadPeer: boolean;
  /** Whatever the record says, the peer may have been promoted on the disks that the two share. */
  readonly mayBeSuperseded: boolean;
  /** As `splitBrainKnown`; asked only when the role is whole. */
  readonly splitBrain: () => ColobusError | undefined;
  readonly log: Log;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
}

/**
 * Decides when this primary's guests may go on, by what the state record says and what the peer has said: held from a
 * start until the peer has spoken, frozen without the peer where the policy says so, or since copies of a disk differ,
 * refused once this side is outdated.
 */
export class GuestPolicy {
  readonly gate = new GuestGate();
  readonly #options: GuestPolicyOptions;
  #isOutdated = false;
  /** Guests have waited since the start for what the peer has to say. */
  #isHeldFromStart = false;
  /** How copies of a disk differ: changes wait until an operator has seen it, whatever the peer says. */
  #difference: ColobusError | undefined;

  constructor(options: GuestPolicyOptions) {
    this.#options = options;
    const { record } = options.state;
    if (record.outdated) this.gate.refuse(outdated());
    else if (options.mayBeSuperseded || mustHold(record, options.mayHaveHadPeer)) {
      this.gate.hold();
      this.#isHeldFromStart = true;
      options.emit("guests-held", { reason: this.#describeStart() });
    }
  }

  get isHeld(): boolean {
    return this.gate.state === "held";
  }

  /** Guests' requests wait, or their changes, until the peer has spoken, is back, or an operator decides. */
  get areWaiting(): boolean {
    return this.gate.state === "held" || this.gate.state === "frozen";
  }

  /** This side has learned that it is behind, whatever the record says yet. */
  get isOutdated(): boolean {
    return this.#isOutdated || this.#options.state.record.outdated;
  }

  /** A peer was written to as well, as far as is known: why guests who wait go on only where an operator says so in spite of it. */
  get splitBrain(): ColobusError | undefined {
    return this.#options.splitBrain();
  }

  /** Changes wait for nobody but an operator, who is to look at copies that differ. */
  get areWaitingForOperator(): boolean {
    return this.gate.state === "frozen" && this.#difference !== undefined;
  }

  /** Changes wait until the secondary is back, or, with a `difference` of copies, until an operator lets them go on. */
  freeze(difference?: ColobusError): void {
    // Each one is told of by the quorum; to look at one is to look at all.
    if (difference !== undefined && this.#difference !== undefined) return;
    this.#difference ??= difference;
    this.gate.freeze();
    this.#options.emit("guests-held", { reason: this.describeHold() });
  }

  /** Done when changes are not frozen any more. Errors: why guests are refused meanwhile. */
  frozen(): Pending {
    return this.gate.state === "frozen" ? this.gate.admitChange() : undefined;
  }

  /** The peer has spoken, and was not promoted meanwhile: guests go on, unless an operator is waited for. */
  release(): void {
    this.#isHeldFromStart = false;
    if (!this.areWaiting || this.areWaitingForOperator) return;
    this.gate.open();
    if (this.#difference === undefined) {
      this.#options.emit("guests-released", {});
      return;
    }
    this.gate.freeze();
    this.#options.emit("guests-held", { reason: this.describeHold() });
  }

  /**
   * By the arbiter the peer was not promoted: guests that have waited for it since the start may go on, or, with `freezes`,
   * read.
   */
  vouched({ freezes }: { readonly freezes: boolean }): void {
    const { record } = this.#options.state;
    if (!this.#isHeldFromStart || this.#options.mayBeSuperseded || record.handOver !== null || record.outdated) return;
    this.release();
    if (freezes) this.freeze();
  }

  /** Guests have waited at the gate since they were held for a hand-over. Errors: why they are refused; `not-in-sync`. */
  assertHeld(): void {
    this.gate.assertServing();
    if (this.isHeld) return;
    throw new ColobusError("not-in-sync", "guests were let go on while the role was being handed over", "Try again.");
  }

  /** Errors: `outdated`; `handed-over` while the peer may have taken the role. */
  assertMayStartAlone(): void {
    if (this.isOutdated) throw outdated();
    if (this.#options.state.record.handOver !== null) {
      throw new ColobusError(
        "handed-over",
        "the role was handed to the peer, and it is not known whether the peer took it",
        "Connect the two; or, when the peer is surely not Primary, fail over there and rejoin here.",
      );
    }
  }

  /** Lets the guests go on that wait for the peer, or for an operator. Returns whether any did. Errors: as `assertMayStartAlone`. */
  startAlone(): boolean {
    this.assertMayStartAlone();
    const waited = this.areWaiting;
    this.#difference = undefined;
    this.release();
    return waited;
  }

  /** The agent is about to stop: nobody waits for the peer any more. */
  leave(): void {
    if (!this.areWaiting) return;
    this.gate.refuse(new ColobusError("shutting-down", "the agent is being stopped while guests wait for the peer"));
  }

  /** This side is behind the peer: from now on, and in every later process, it serves nothing. */
  becomeOutdated(peer: { readonly agentId: string; readonly lineage: string | null }): void {
    const { state, log, emit } = this.#options;
    if (state.record.outdated) return;
    this.#isOutdated = true;
    // First the guests, then the record: they must not go on, whatever becomes of the record.
    this.gate.refuse(outdated());
    state
      .update((record) => ({ ...arbiterSettled(record), outdated: true }))
      .catch((error: unknown) => log.error({ error }, "it cannot be recorded that this side is outdated"));
    emit("outdated", { agent: state.record.agentId, newer: peer.agentId, lineage: peer.lineage });
  }

  /** What guests wait for, and what lets them go on. */
  describeHold(): string {
    const isFrozen = this.gate.state === "frozen";
    const { splitBrain } = this;
    if (splitBrain !== undefined) return `Guests' ${isFrozen ? "writes" : "requests"} wait here. ${splitBrain.action}`;
    if (isFrozen && this.#difference !== undefined) {
      const { message, action } = this.#difference;
      return `Writes wait, since ${message}. ${action} \`colobus start-alone\` lets writes go on.`;
    }
    if (isFrozen)
      return "Writes wait until the secondary is back: start it, or let them go on with `colobus start-alone`.";
    return this.#describeStart();
  }

  #describeStart(): string {
    const { handOver, history } = this.#options.state.record;
    if (handOver !== null)
      return "The role was handed to the peer: start it, so that it can say whether it has taken it.";
    const release = "start it, or release the guests with `colobus start-alone`.";
    return history.origin === "created" && !history.shared
      ? `This agent has not met its peer yet, or its state directory was put back to before it had: ${release}`
      : `The peer may have been promoted while this agent was away: ${release}`;
  }
}

/** Why guests are refused on a side that has laid its role down. */
export function laidDown(): ColobusError {
  return new ColobusError("handed-over", "this side is not Primary any more");
}

export function outdated(): ColobusError {
  return new ColobusError(
    "outdated",
    "this side is behind its peer's history, and serves nothing",
    "Make it the peer's secondary: `colobus rejoin --peer WS_URL`.",
  );
}
