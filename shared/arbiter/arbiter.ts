import type { ArbiterEntry, ArbiterRecord } from "../../proto/arbiter-record.ts";

/** What an arbiter says of one VM, read at one instant. */
export interface ArbiterState {
  /** undefined: nobody has ever served this VM under this arbiter. */
  readonly record: ArbiterRecord | undefined;
  /** Another one after each change of the record. */
  readonly revision: string;
  /** The agent under whose lease the VM is now; null: nobody's. */
  readonly leaseHolder: string | null;
}

/**
 * A third party that both agents of one VM can ask who may serve: it keeps a record, and a lease that expires unless its
 * holder renews it. Each call is bounded in time, and is made by one agent for itself. A call that has failed may have
 * taken effect all the same, even later.
 *
 * Errors of every call: `arbiter-unreachable`; `state-mismatch` for a record of another release.
 */
export interface Arbiter {
  read(): Promise<ArbiterState>;
  /**
   * Takes a new lease and writes the record, both or neither: only while the record is at `revision`, and nobody else has
   * a lease; with `force` whatever the record says, and whoever has a lease loses it. The lease runs from a moment after the
   * call. Resolves with how things stand then; undefined: it was not so, and nothing is changed.
   */
  claim(revision: string, entry: ArbiterEntry, force: boolean): Promise<ArbiterState | undefined>;
  /** Has this agent's lease run on, from a moment after the call, and tells how things stand after that. */
  renew(): Promise<ArbiterState>;
  /** Writes the record, while it is at `revision` and this agent has the lease. undefined: it was not so. */
  amend(revision: string, entry: ArbiterEntry): Promise<ArbiterState | undefined>;
  /** Gives this agent's lease up, if it has one. */
  release(): Promise<void>;
}
