import { encodeArbiterRecord, parseArbiterRecord, type ArbiterEntry } from "../../proto/arbiter-record.ts";
import { ColobusError } from "../../proto/errors.ts";
import type { Arbiter, ArbiterState } from "../../shared/arbiter/arbiter.ts";

/** An arbiter in memory for one agent, which answers when the test says so. Leases end only when the test says so. */
export class MemoryArbiter implements Arbiter {
  state: ArbiterState = { record: undefined, revision: "0", leaseHolder: null };
  readonly calls: string[] = [];
  isReachable = true;
  readonly #agentId: string;
  /** While set, calls wait for it before they are answered. */
  answering: Promise<void> | undefined;

  constructor(agentId: string) {
    this.#agentId = agentId;
  }

  read(): Promise<ArbiterState> {
    return this.#answer("read", () => this.state);
  }

  claim(revision: string, entry: ArbiterEntry, force: boolean): Promise<ArbiterState | undefined> {
    return this.#answer("claim", () => {
      const { leaseHolder } = this.state;
      const isFree = leaseHolder === null || leaseHolder === this.#agentId;
      return force || (isFree && revision === this.state.revision) ? this.put(entry, this.#agentId) : undefined;
    });
  }

  renew(): Promise<ArbiterState> {
    return this.#answer("renew", () => this.state);
  }

  amend(revision: string, entry: ArbiterEntry): Promise<ArbiterState | undefined> {
    return this.#answer("amend", () =>
      revision === this.state.revision && this.state.leaseHolder === this.#agentId
        ? this.put(entry, this.#agentId)
        : undefined,
    );
  }

  release(): Promise<void> {
    return this.#answer("release", () => {
      this.state = { ...this.state, leaseHolder: null };
    });
  }

  /** The record, and whose the lease is, as somebody has written them. */
  put(entry: ArbiterEntry, leaseHolder: string | null): ArbiterState {
    const record = parseArbiterRecord(encodeArbiterRecord(entry));
    this.state = { record, revision: String(Number(this.state.revision) + 1), leaseHolder };
    return this.state;
  }

  async #answer<T>(call: string, does: () => T): Promise<T> {
    this.calls.push(call);
    if (!this.isReachable) throw new ColobusError("arbiter-unreachable", "there is no answer");
    const answer = does();
    await this.answering;
    return answer;
  }
}
