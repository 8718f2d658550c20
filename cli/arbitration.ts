import type { Status } from "../proto/status.ts";
import { LEASE_TTL_DEFAULT_MS } from "../proto/limits.ts";
import type { EventType } from "../proto/words.ts";
import { OwnLease } from "../shared/arbiter/own-lease.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { AgentOptions } from "./agent-host.ts";
import { Takeover, type TakeoverOptions } from "./takeover.ts";

/** What an agent with an arbiter has beside its roles. */
export interface Arbitration {
  readonly lease: OwnLease;
  readonly takeover: Takeover;
}

/** undefined where the agent has no arbiter. */
export function openArbitration(
  { host, config, arbiter }: AgentOptions,
  state: StateFile,
  emit: (type: EventType, data: Record<string, unknown>) => void,
  roles: Pick<TakeoverOptions, "candidate" | "assertFit" | "failOver">,
): Arbitration | undefined {
  if (arbiter === undefined) return undefined;
  const { agentId } = state.record;
  const ttlMs = config.arbiterTtlMs ?? LEASE_TTL_DEFAULT_MS;
  const lease = new OwnLease({ ...host, arbiter: arbiter(agentId), agentId, ttlMs, emit });
  const takeover = new Takeover({
    ...host,
    ...roles,
    emit,
    state,
    lease,
    isAutomatic: config.failover === "automatic",
  });
  return { lease, takeover };
}

export function describeFailoverKind(
  { config }: AgentOptions,
  arbitration: Arbitration | undefined,
): Status["failover"] {
  const arbiter = arbitration?.lease.describe() ?? null;
  return { kind: arbiter === null ? "manual" : (config.failover ?? "manual"), arbiter };
}
