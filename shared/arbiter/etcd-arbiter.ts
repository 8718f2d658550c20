import { z } from "zod";
import { encodeArbiterRecord, parseArbiterRecord, type ArbiterEntry } from "../../proto/arbiter-record.ts";
import { ColobusError } from "../../proto/errors.ts";
import { ARBITER_CALL_SHARE } from "../../proto/limits.ts";
import type { Clock } from "../host/clock.ts";
import type { Arbiter, ArbiterState } from "./arbiter.ts";
import { EtcdGateway, type EtcdAccess } from "./etcd-gateway.ts";

export interface EtcdArbiterOptions {
  /** Base URLs of the members' client ports. */
  readonly endpoints: readonly string[];
  readonly vm: string;
  readonly agentId: string;
  readonly ttlMs: number;
  readonly clock: Clock;
  /** Default: etcd takes everybody. */
  readonly access?: EtcdAccess;
}

/** 64-bit numbers are strings in etcd's JSON, and left out where they are 0. */
const int64 = z.string().regex(/^-?\d+$/);
const keyValue = z.object({
  key: z.string(),
  value: z.string().default(""),
  mod_revision: int64.default("0"),
  lease: int64.default("0"),
});
const rangeAnswer = z.object({ kvs: z.array(keyValue).default([]) });
const txnAnswer = z.object({
  header: z.object({ revision: int64 }),
  succeeded: z.boolean().default(false),
  responses: z.array(z.object({ response_range: rangeAnswer.optional() })).default([]),
});
const grantAnswer = z.object({ ID: int64, TTL: int64 });
const keepAliveAnswer = z.object({ result: z.object({ TTL: int64.default("0") }) });
const revokeAnswer = z.object({});

interface Seen {
  readonly state: ArbiterState;
  /** The lease that the lease key hangs on. */
  readonly leaseId: string;
}

/**
 * An arbiter in etcd, over its JSON gateway (`/v3`, etcd 3.4 and later): the record under one key, and under another the
 * id of the agent that has the lease, which etcd removes when the lease expires. All changes compare the record's
 * `mod_revision`, so that of two of them at most one is done.
 */
export class EtcdArbiter implements Arbiter {
  readonly #options: EtcdArbiterOptions;
  readonly #gateway: EtcdGateway;
  readonly #recordKey: string;
  readonly #leaseKey: string;
  /** The lease that this process has claimed under. */
  #leaseId: string | undefined;

  constructor(options: EtcdArbiterOptions) {
    this.#options = options;
    this.#gateway = new EtcdGateway(
      options.endpoints,
      options.clock,
      options.ttlMs * ARBITER_CALL_SHARE,
      options.access,
    );
    this.#recordKey = base64(`colobus/${options.vm}/record`);
    this.#leaseKey = base64(`colobus/${options.vm}/lease`);
  }

  async read(): Promise<ArbiterState> {
    return (await this.#look()).state;
  }

  async claim(revision: string, entry: ArbiterEntry, force: boolean): Promise<ArbiterState | undefined> {
    const { agentId, ttlMs } = this.#options;
    const { state, leaseId } = await this.#look();
    if (!force && (state.revision !== revision || (state.leaseHolder !== null && state.leaseHolder !== agentId))) {
      return undefined;
    }
    const granted = await this.#gateway.call("/v3/lease/grant", { TTL: Math.ceil(ttlMs / 1000) }, grantAnswer);
    const unchanged = force ? [] : [this.#recordIsAt(revision), this.#leaseHangsOn(leaseId)];
    const answer = await this.#txn(unchanged, [
      this.#putRecord(entry),
      { request_put: { key: this.#leaseKey, value: base64(agentId), lease: granted.ID } },
    ]);
    if (!answer.succeeded) {
      await this.#revoke(granted.ID);
      return undefined;
    }
    // Of what the key hung on before, nothing hangs on it now: whoever renews that lease learns that it is over.
    if (leaseId !== "0") await this.#revoke(leaseId).catch(() => undefined); // it expires by itself
    this.#leaseId = granted.ID;
    return { record: recordOf(entry), revision: answer.header.revision, leaseHolder: agentId };
  }

  async renew(): Promise<ArbiterState> {
    if (this.#leaseId !== undefined) {
      await this.#gateway.call("/v3/lease/keepalive", { ID: this.#leaseId }, keepAliveAnswer);
    }
    // The key is looked for after that: as long as it hangs on this lease, the lease has not expired before.
    const { state, leaseId } = await this.#look();
    return leaseId === this.#leaseId ? state : { ...state, leaseHolder: this.#strangerOf(state.leaseHolder) };
  }

  async amend(revision: string, entry: ArbiterEntry): Promise<ArbiterState | undefined> {
    if (this.#leaseId === undefined) return undefined;
    const answer = await this.#txn(
      [this.#recordIsAt(revision), this.#leaseHangsOn(this.#leaseId)],
      [this.#putRecord(entry)],
    );
    if (!answer.succeeded) return undefined;
    return { record: recordOf(entry), revision: answer.header.revision, leaseHolder: this.#options.agentId };
  }

  async release(): Promise<void> {
    const leaseId = this.#leaseId;
    this.#leaseId = undefined;
    if (leaseId !== undefined) await this.#revoke(leaseId);
  }

  /** A lease of an earlier process of this agent is as good as nobody's. */
  #strangerOf(holder: string | null): string | null {
    return holder === this.#options.agentId ? null : holder;
  }

  async #look(): Promise<Seen> {
    const { responses } = await this.#txn(
      [],
      [{ request_range: { key: this.#recordKey } }, { request_range: { key: this.#leaseKey } }],
    );
    const [record, lease] = responses.map(({ response_range: range }) => range?.kvs[0]);
    return {
      state: {
        record: record === undefined ? undefined : parseArbiterRecord(text(record.value)),
        revision: record?.mod_revision ?? "0",
        leaseHolder: lease === undefined ? null : text(lease.value),
      },
      leaseId: lease?.lease ?? "0",
    };
  }

  #txn(compare: readonly object[], success: readonly object[]): Promise<z.infer<typeof txnAnswer>> {
    return this.#gateway.call("/v3/kv/txn", { compare, success, failure: [] }, txnAnswer);
  }

  async #revoke(leaseId: string): Promise<void> {
    try {
      await this.#gateway.call("/v3/lease/revoke", { ID: leaseId }, revokeAnswer);
    } catch (error) {
      // etcd refuses to revoke what has expired already.
      if (!(error instanceof ColobusError && error.message.includes("lease not found"))) throw error;
    }
  }

  #recordIsAt(revision: string): object {
    return { key: this.#recordKey, target: "MOD", mod_revision: revision, result: "EQUAL" };
  }

  /** A key that does not exist hangs on no lease. */
  #leaseHangsOn(leaseId: string): object {
    return leaseId === "0"
      ? { key: this.#leaseKey, target: "CREATE", create_revision: "0", result: "EQUAL" }
      : { key: this.#leaseKey, target: "LEASE", lease: leaseId, result: "EQUAL" };
  }

  #putRecord(entry: ArbiterEntry): object {
    return { request_put: { key: this.#recordKey, value: base64(encodeArbiterRecord(entry)) } };
  }
}

function recordOf(entry: ArbiterEntry): ReturnType<typeof parseArbiterRecord> {
  return parseArbiterRecord(encodeArbiterRecord(entry));
}

function base64(value: string): string {
  return Buffer.from(value, "utf8").toString("base64");
}

function text(value: string): string {
  return Buffer.from(value, "base64").toString("utf8");
}
