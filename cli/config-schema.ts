/** What is known of each key of the configuration: from its flag's description, and from its schema. */
import { z } from "zod";
import { AGENT_VERSION } from "../proto/versions.ts";
import { ROLES } from "../proto/words.ts";
import { agentKeysSchema, RELOADABLE_KEYS, type AgentKey } from "./agent-keys.ts";
import { agentOptions } from "./agent-options.ts";
import { describeFlags } from "./describe-commands.ts";

export interface KeyDescription {
  readonly key: AgentKey;
  readonly meaning: string;
  /** What holds where it is left out, as help has it; undefined: nothing does, or it has to be given. */
  readonly byDefault: string | undefined;
  readonly reloadable: boolean;
}

/** Every key, in the order in which help lists the flags. */
export function describeKeys(): KeyDescription[] {
  const flags = ROLES.flatMap((role) => describeFlags((yargs) => agentOptions(yargs, role)).options);
  const described = new Map(flags.map(({ name, describe }) => [name, describe]));
  const reloadable: readonly string[] = RELOADABLE_KEYS;
  return [...described]
    .filter((entry): entry is [AgentKey, string] => entry[0] in agentKeysSchema.shape)
    .map(([key, text]) => {
      const [, before = "", byDefault, after = ""] = /^(.*?) \(([^()]*)\)(;.*)?$/.exec(text) ?? [];
      return byDefault === undefined
        ? { key, meaning: text, byDefault, reloadable: reloadable.includes(key) }
        : { key, meaning: `${before}${after}`, byDefault, reloadable: reloadable.includes(key) };
    });
}

/** The JSON schema of the configuration file, for editors. */
export function configJsonSchema(): Record<string, unknown> {
  const { properties = {}, ...schema } = z.toJSONSchema(agentKeysSchema, { io: "input" });
  const described = describeKeys().map(({ key, meaning, byDefault }) => {
    const property = properties[key];
    const description = byDefault === undefined ? `${meaning}.` : `${meaning}. Default: ${byDefault}.`;
    return [key, { description, ...(typeof property === "object" ? property : {}) }] as const;
  });
  return {
    ...schema,
    title: "Configuration of a Colobus agent",
    description: `As of ${AGENT_VERSION}. Every key is a flag of colobus primary and colobus secondary.`,
    properties: Object.fromEntries(described),
  };
}
