/** The flags about the copies of a disk beside its image, and the same keys in the configuration file. */
import type { Argv } from "yargs";
import { z } from "zod";
import { newChild, newLocalChild } from "../primary/recorded-quorum.ts";
import { ColobusError } from "../proto/errors.ts";
import { CHILD_TIMEOUT_DEFAULT_MS, CHILDREN_MAX } from "../proto/limits.ts";
import type { RecordedQuorum, StateRecord } from "../proto/state-record.ts";
import { READ_PATTERNS } from "../proto/words.ts";
import type { AgentConfig } from "./agent-config.ts";
import { assertChildName } from "./child-name.ts";
import { parseNamedImage } from "./named-image.ts";
import { formatDuration, parseDuration } from "./quantities.ts";

const scalar = z.union([z.string(), z.number()]).transform(String);

/** As the operator wrote them. */
export const quorumOptionsShape = {
  "child": z.union([scalar.transform((one) => [one]), z.array(scalar)]).optional(),
  "vote-threshold": scalar.optional(),
  "read-pattern": z.enum(READ_PATTERNS).optional(),
  "rewrite-corrupted": z.boolean().optional(),
  "blkverify": z.boolean().optional(),
  "child-timeout": scalar.optional(),
};
type QuorumOptions = z.infer<z.ZodObject<typeof quorumOptionsShape>>;

export function quorumFlags<T>(yargs: Argv<T>): Argv<T> {
  const text = (describe: string) => ({ type: "string", requiresArg: true, describe }) as const;
  yargs
    .option("child", {
      ...text("A copy of a disk beside its image, as DISK:NAME=IMAGE; repeat it for each"),
      array: true,
    })
    .option("vote-threshold", text("So many sound copies of a disk must take each write (1)"))
    .option("read-pattern", {
      ...text("Read the first sound copy, or all, and believe the majority (fifo)"),
      choices: READ_PATTERNS,
    })
    .option("rewrite-corrupted", {
      type: "boolean",
      describe: "With read-pattern quorum: mend copies that are outvoted",
    })
    .option("blkverify", {
      type: "boolean",
      describe: "Compare two copies at each read, and freeze guests if they differ",
    })
    .option(
      "child-timeout",
      text(`A copy that takes longer for a request is broken (${formatDuration(CHILD_TIMEOUT_DEFAULT_MS)})`),
    );
  return yargs;
}

type QuorumConfig = Pick<
  AgentConfig,
  "children" | "voteThreshold" | "readPattern" | "rewriteCorrupted" | "blkverify" | "childTimeoutMs"
>;

/** Errors: `usage`, naming the flag. */
export function parseQuorum(
  options: QuorumOptions,
  disks: readonly { readonly name: string; readonly image: string }[],
  mode: string | undefined,
): QuorumConfig {
  const given = Object.keys(quorumOptionsShape).find((key) => options[key as keyof QuorumOptions] !== undefined);
  if (given !== undefined && mode === "shared") {
    throw invalid(`--${given}`, "A shared disk has no copies: use another --mode.");
  }
  const children = parseChildren(options.child ?? [], disks);
  const counts = disks.map(({ name }) => 1 + children.filter(({ disk }) => disk === name).length);
  const voteThreshold = options.blkverify === true ? 2 : parseThreshold(options["vote-threshold"], Math.min(...counts));
  refuseContradictions(options, counts);
  return {
    ...(children.length > 0 ? { children } : {}),
    voteThreshold,
    readPattern: options["read-pattern"] ?? "fifo",
    rewriteCorrupted: options["rewrite-corrupted"] ?? false,
    blkverify: options.blkverify ?? false,
    childTimeoutMs: parseTimeout(options["child-timeout"]),
  };
}

function refuseContradictions(options: QuorumOptions, counts: readonly number[]): void {
  if (options["rewrite-corrupted"] === true && options["read-pattern"] !== "quorum") {
    throw invalid("--rewrite-corrupted", "It goes with --read-pattern quorum: otherwise nobody is outvoted.");
  }
  if (options.blkverify !== true) return;
  if (options["vote-threshold"] !== undefined && options["vote-threshold"] !== "2") {
    throw invalid("--vote-threshold", "With --blkverify it is 2.");
  }
  if (options["rewrite-corrupted"] === true) throw invalid("--rewrite-corrupted", "Of two copies neither is outvoted.");
  if (counts.some((count) => count !== 2)) {
    throw invalid("--blkverify", "Each disk has exactly two copies then: its image, and one --child.");
  }
}

function parseChildren(
  texts: readonly string[],
  disks: readonly { readonly name: string; readonly image: string }[],
): { disk: string; name: string; image: string }[] {
  const children = texts.map((text) => {
    const at = text.indexOf(":");
    const disk = text.slice(0, at);
    if (at < 1 || !disks.some(({ name }) => name === disk)) {
      throw invalid(`--child ${JSON.stringify(text)}`, "Write DISK:NAME=IMAGE, with a DISK that --disk names.");
    }
    const named = parseNamedImage("--child", text.slice(at + 1));
    assertChildName(named.name);
    if (named.name === "local") throw invalid(`--child ${JSON.stringify(text)}`, "local is the disk's own image.");
    return { disk, ...named };
  });
  const images = [...disks, ...children].map(({ image }) => image);
  const twice = images.find((image, index) => images.indexOf(image) !== index);
  if (twice !== undefined) throw invalid(`--child ${twice}`, "Two copies are the same image.");
  const names = children.map(({ disk, name }) => `${disk}:${name}`);
  const sameName = names.find((name, index) => names.indexOf(name) !== index);
  if (sameName !== undefined) throw invalid(`--child ${sameName}`, "Two copies of the disk have that name.");
  for (const { name } of disks) {
    if (children.filter(({ disk }) => disk === name).length >= CHILDREN_MAX) {
      throw invalid("--child", `Disk ${name} has more than ${CHILDREN_MAX} copies, its image included.`);
    }
  }
  return children;
}

function parseThreshold(text: string | undefined, copies: number): number {
  const threshold = text === undefined ? 1 : /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (!(threshold >= 1)) throw invalid(`--vote-threshold ${text ?? ""}`, "It is a number of at least 1.");
  if (threshold > copies) {
    throw invalid(`--vote-threshold ${threshold}`, `It may not exceed the number of copies, which is ${copies}.`);
  }
  return threshold;
}

function parseTimeout(text: string | undefined): number {
  const timeoutMs = text === undefined ? CHILD_TIMEOUT_DEFAULT_MS : parseDuration(text, "--child-timeout");
  if (timeoutMs > 0) return timeoutMs;
  throw invalid("--child-timeout 0", "It must be longer than nothing.");
}

function invalid(flag: string, action: string): ColobusError {
  return new ColobusError("usage", `${flag} is not possible`, action);
}

/** The rules for a disk's copies that the configuration gives. */
export function quorumPolicyOf(config: AgentConfig): Omit<RecordedQuorum, "children"> {
  return {
    voteThreshold: config.voteThreshold ?? 1,
    readPattern: config.readPattern ?? "fifo",
    rewriteCorrupted: config.rewriteCorrupted ?? false,
    blkverify: config.blkverify ?? false,
  };
}

/** What a new record says of the copies of a disk. */
export function initialQuorum(config: AgentConfig, disk: string): Pick<StateRecord["disks"][number], "quorum"> {
  const further = (config.children ?? []).filter((child) => child.disk === disk);
  if (further.length === 0) return {};
  const children = [newLocalChild(), ...further.map(({ name, image }) => newChild(name, image))];
  return { quorum: { ...quorumPolicyOf(config), children } };
}
