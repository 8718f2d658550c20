/** The settings of an agent as an operator writes them: flags, and the same keys in the configuration file. */
import { z } from "zod";
import {
  ACK_POLICIES,
  CONGESTION_POLICIES,
  DURABILITIES,
  FAILOVER_KINDS,
  LOG_LEVELS,
  MODES,
  PEER_LOSS_POLICIES,
  SECONDARY_EXPORTS,
} from "../proto/words.ts";
import { quorumOptionsShape } from "./quorum-options.ts";
import { NBD_TLS } from "./tls-options.ts";

const scalar = z.union([z.string(), z.number()]).transform(String);
const list = z.union([scalar.transform((one) => [one]), z.array(scalar)]);

/** Every flag as the operator wrote it, and every key of the configuration file. */
export const agentKeysSchema = z.strictObject({
  "vm": scalar.optional(),
  "run": scalar.optional(),
  "state": scalar.optional(),
  "disk": list.optional(),
  "peer": list.optional(),
  "secondaries": scalar.optional(),
  "listen": scalar.optional(),
  "mode": z.enum(MODES).optional(),
  "ack": z.enum(ACK_POLICIES).optional(),
  "durability": z.enum(DURABILITIES).optional(),
  "peer-timeout": scalar.optional(),
  "on-peer-loss": z.enum(PEER_LOSS_POLICIES).optional(),
  "on-congestion": z.enum(CONGESTION_POLICIES).optional(),
  "resync-speed": scalar.optional(),
  "window": scalar.optional(),
  "cluster-size": scalar.optional(),
  "checkpoint-every": scalar.optional(),
  "max-checkpoint-age": scalar.optional(),
  "secondary-export": z.enum(SECONDARY_EXPORTS).optional(),
  "nbd-listen": scalar.optional(),
  "nbd-tls": z.enum(NBD_TLS).optional(),
  "nbd-psk-file": scalar.optional(),
  "token-file": scalar.optional(),
  "tls-cert": scalar.optional(),
  "tls-key": scalar.optional(),
  "tls-ca": scalar.optional(),
  "tls-peer": list.optional(),
  "insecure": z.boolean().optional(),
  "create": z.boolean().optional(),
  "assume-in-sync": z.boolean().optional(),
  "adopt-image": z.boolean().optional(),
  "fence-peer": scalar.optional(),
  "fence-timeout": scalar.optional(),
  "on-failover": scalar.optional(),
  "on-failover-timeout": scalar.optional(),
  "shared-mark": scalar.optional(),
  "arbiter": list.optional(),
  "arbiter-ttl": scalar.optional(),
  "arbiter-user-file": scalar.optional(),
  "arbiter-tls-ca": scalar.optional(),
  "arbiter-tls-cert": scalar.optional(),
  "arbiter-tls-key": scalar.optional(),
  "failover": z.enum(FAILOVER_KINDS).optional(),
  "overlay-limit": scalar.optional(),
  "buffer-memory": scalar.optional(),
  "retain": scalar.optional(),
  "control-listen": scalar.optional(),
  "control-token-file": scalar.optional(),
  "log-level": z.enum(LOG_LEVELS).optional(),
  ...quorumOptionsShape,
});
export type AgentKeys = z.infer<typeof agentKeysSchema>;
export type AgentKey = keyof AgentKeys;

/** Keys that `colobus config reload` takes up; every other one needs a restart of the agent. */
export const RELOADABLE_KEYS = [
  "log-level",
  "resync-speed",
  "checkpoint-every",
  "max-checkpoint-age",
  "fence-peer",
  "fence-timeout",
  "on-failover",
  "on-failover-timeout",
] as const satisfies readonly AgentKey[];
