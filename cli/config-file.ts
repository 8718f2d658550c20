/**
 * The configuration file: YAML, whose keys are the names of the flags. What is wrong with it is told with its line and
 * column, and with what may stand there.
 */
import { readFileSync } from "node:fs";
import { isMap, isNode, isScalar, LineCounter, parseDocument, type Document } from "yaml";
import type { z } from "zod";
import { ColobusError } from "../proto/errors.ts";
import { agentKeysSchema, type AgentKeys } from "./agent-keys.ts";
import { nearestWord } from "./nearest-word.ts";

/** Lines and columns count from 1. */
export interface ConfigFault {
  readonly line: number | null;
  readonly column: number | null;
  /** null: it is not about one key. */
  readonly key: string | null;
  readonly message: string;
  readonly action: string;
}

const LIST_KEYS: readonly string[] = Object.entries(agentKeysSchema.shape)
  .filter(([, schema]) => schema.safeParse([""]).success)
  .map(([key]) => key);
const REFERENCE = "docs/configuration.md lists the keys.";

/** One file's text, and where in it everything stands. */
export class ConfigFile {
  /** What is wrong with it as a document of known keys; whether the values fit together is not looked at. */
  readonly faults: readonly ConfigFault[];
  /** undefined where there are faults. */
  readonly keys: AgentKeys | undefined;
  readonly #document: Document.Parsed;
  readonly #lines = new LineCounter();

  constructor(text: string) {
    this.#document = parseDocument(text, { lineCounter: this.#lines });
    const { errors } = this.#document;
    if (errors.length > 0) {
      this.faults = errors.map((error) => ({
        ...this.#place(error.pos[0]),
        key: null,
        message: firstLine(error.message).replace(/ at line \d+, column \d+:?$/, ""),
        action: "Write YAML: one `key: value` a line.",
      }));
      return;
    }
    const result = agentKeysSchema.safeParse(this.#document.toJS() ?? {});
    const faults = result.success ? [] : result.error.issues.flatMap((issue) => this.#faultsOf(issue));
    this.faults = faults.sort((one, other) => (one.line ?? 0) - (other.line ?? 0));
    this.keys = result.data;
  }

  /** The fault that a value is which `error` complains of, as a flag of that name. */
  faultOf(error: ColobusError): ConfigFault {
    const [key = null] = [...error.message.matchAll(/--([a-z]+(?:-[a-z]+)*)/g)]
      .map(([, flag = ""]) => flag)
      .filter((flag) => flag in agentKeysSchema.shape);
    const position = key === null ? undefined : this.#offsetOf([key]);
    return { ...this.#place(position), key, message: error.message, action: error.action };
  }

  #faultsOf(issue: z.core.$ZodIssue): ConfigFault[] {
    if (issue.code === "unrecognized_keys") return issue.keys.map((key) => this.#unknownKey(key));
    const [key] = issue.path;
    if (key === undefined) {
      const action = "Write one `key: value` a line.";
      return [{ ...this.#place(0), key: null, message: "the file is not a list of keys and values", action }];
    }
    const name = String(key);
    const value: unknown = this.#document.getIn(issue.path);
    const shown = value === undefined || isNode(value) ? "what stands there" : JSON.stringify(value);
    return [
      {
        ...this.#place(this.#offsetOf(issue.path)),
        key: name,
        message: `${shown} is not possible for ${name}`,
        action: whatToWrite(name, issue),
      },
    ];
  }

  #unknownKey(key: string): ConfigFault {
    const nearest = nearestWord(key, Object.keys(agentKeysSchema.shape));
    const action = nearest === undefined ? REFERENCE : `Did you mean ${nearest}? ${REFERENCE}`;
    return { ...this.#place(this.#keyOffset(key)), key, message: `${key} is not a key`, action };
  }

  /** Where the value begins, or its key where the value has no place of its own. */
  #offsetOf(path: readonly PropertyKey[]): number | undefined {
    const node: unknown = this.#document.getIn(path, true);
    const offset = isNode(node) ? node.range?.[0] : undefined;
    return offset ?? this.#keyOffset(String(path[0]));
  }

  #keyOffset(key: string): number | undefined {
    const { contents } = this.#document;
    if (!isMap(contents)) return undefined;
    const pair = contents.items.find((item) => isScalar(item.key) && String(item.key.value) === key);
    return isNode(pair?.key) ? pair.key.range?.[0] : undefined;
  }

  #place(offset: number | undefined): { readonly line: number | null; readonly column: number | null } {
    if (offset === undefined) return { line: null, column: null };
    const { line, col } = this.#lines.linePos(offset);
    return { line, column: col };
  }
}

/** The keys that the file at `path` has. Errors: `usage`, telling the first fault and its place. */
export function readConfigFile(path: string): AgentKeys {
  const file = new ConfigFile(readText(path));
  if (file.keys !== undefined) return file.keys;
  const [first, ...more] = file.faults;
  const others = more.length === 0 ? "" : ` \`colobus config check ${path}\` tells ${more.length} more.`;
  throw new ColobusError(
    "usage",
    `the configuration file cannot be read: ${first === undefined ? path : describeFault(path, first)}`,
    `${first?.action ?? ""}${others}`,
  );
}

/** The text of the file. Errors: `usage`. */
export function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new ColobusError("usage", `the configuration file cannot be read: ${why}`, "Check its path.", {
      cause: error,
    });
  }
}

/** `FILE:3:13: "sometimes" is not possible for durability`. */
export function describeFault(path: string, { line, column, message }: ConfigFault): string {
  return `${[path, line, column].filter((part) => part !== null).join(":")}: ${message}`;
}

function whatToWrite(key: string, issue: z.core.$ZodIssue): string {
  if (issue.code === "invalid_value") return `Write one of ${issue.values.map(String).join(", ")}.`;
  if (issue.code === "invalid_type" && issue.expected === "boolean") return "Write true or false.";
  return LIST_KEYS.includes(key) ? "Write one value, or a list of values." : "Write one value.";
}

function firstLine(text: string): string {
  return text.split("\n", 1)[0] ?? text;
}
