import type { ReloadAnswer } from "../proto/control-api.ts";
import { ColobusError } from "../proto/errors.ts";
import type { LogLevel } from "../proto/words.ts";
import type { AgentConfig } from "./agent-config.ts";
import { agentKeysSchema, RELOADABLE_KEYS, type AgentKey, type AgentKeys } from "./agent-keys.ts";
import type { ProcessConfig } from "./process-config.ts";
import type { Hook } from "./hook.ts";

/** Where the configuration of a running agent comes from. */
export interface ConfigSource {
  /** What the agent was started with. */
  readonly keys: AgentKeys;
  /** What it would be started with now. Errors: `usage`. */
  readonly read: () => Promise<{ readonly keys: AgentKeys; readonly config: ProcessConfig }>;
  readonly setLogLevel: (level: LogLevel) => void;
}

/** What of an agent's own configuration may change while it runs. */
export type LiveSettings = Partial<Pick<AgentConfig, "resyncSpeed" | "checkpointEveryMs" | "maxCheckpointAgeMs">>;

/** What a reload has found: the answer, and the settings of the agent that have another value now. */
export interface Reloaded {
  readonly answer: ReloadAnswer;
  readonly settings: LiveSettings;
}

/**
 * The part of a running agent's configuration that can change. A file that is wrong changes nothing; a key that needs a
 * restart keeps the value that the agent was started with, and is named by each reload until then.
 */
export class LiveConfig {
  readonly #source: ConfigSource | undefined;
  #keys: AgentKeys;
  #fence: Hook | undefined;
  #onFailover: Hook | undefined;

  /** `source`: undefined where there is no file. */
  constructor(config: Pick<ProcessConfig, "fence" | "onFailover">, source: ConfigSource | undefined) {
    this.#source = source;
    this.#keys = source?.keys ?? {};
    this.#fence = config.fence;
    this.#onFailover = config.onFailover;
  }

  get fence(): Hook | undefined {
    return this.#fence;
  }

  get onFailover(): Hook | undefined {
    return this.#onFailover;
  }

  /** Reads the file anew, and takes up what can be. Errors: `usage`, `not-applicable` without a file; nothing has changed then. */
  async reload(): Promise<Reloaded> {
    const source = this.#source;
    if (source === undefined) {
      throw new ColobusError(
        "not-applicable",
        "this agent was started without a configuration file",
        "Start it with --config FILE; flags are read at the start only.",
      );
    }
    const { keys, config } = await source.read();
    const changed = changedKeys(this.#keys, keys);
    const reloadable: readonly AgentKey[] = RELOADABLE_KEYS;
    const applied = changed.filter((key) => reloadable.includes(key));
    this.#keys = { ...this.#keys, ...Object.fromEntries(applied.map((key) => [key, keys[key]])) };
    this.#fence = config.fence;
    this.#onFailover = config.onFailover;
    if (applied.includes("log-level")) source.setLogLevel(config.logLevel);
    const { resyncSpeed, checkpointEveryMs, maxCheckpointAgeMs } = config.agent;
    return {
      answer: { applied, needsRestart: changed.filter((key) => !reloadable.includes(key)) },
      settings: {
        ...(applied.includes("resync-speed") ? { resyncSpeed } : {}),
        ...(applied.includes("checkpoint-every") ? { checkpointEveryMs } : {}),
        ...(applied.includes("max-checkpoint-age") ? { maxCheckpointAgeMs } : {}),
      },
    };
  }
}

function changedKeys(before: AgentKeys, now: AgentKeys): AgentKey[] {
  const all = Object.keys(agentKeysSchema.shape) as AgentKey[];
  return all.filter((key) => JSON.stringify(before[key]) !== JSON.stringify(now[key]));
}
