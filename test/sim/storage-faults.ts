import type { FileKind } from "../../shared/host/storage.ts";
import type { CrashKind } from "./simulated-crash.ts";
import type { SeededRandom } from "./seeded-random.ts";

/** Every call of Storage and StorageFile. */
export type StorageOp =
  | "open"
  | "exists"
  | "list"
  | "makeDirectory"
  | "remove"
  | "removeBehind"
  | "rename"
  | "syncDirectory"
  | "freeBytes"
  | "sizeBytes"
  | "tryRead"
  | "read"
  | "readNow"
  | "write"
  | "zero"
  | "zeroAllocated"
  | "allocate"
  | "truncate"
  | "sync"
  | "nextData"
  | "nextHole"
  | "prefetch"
  | "allocatedBytes"
  | "changeMark"
  | "close";

/** One call that a process is about to make. `kind` is undefined for calls on names. */
export interface StorageCall {
  readonly op: StorageOp;
  readonly path: string;
  readonly kind: FileKind | undefined;
  readonly offset: number;
  readonly length: number;
  /** Calls made on this disk so far, this one included. */
  readonly number: number;
}

/** What a call meets: an error of the device, or the death of the process in the middle of it. */
export type StorageFault =
  | { readonly error: "io-error" | "out-of-space" | "permission-denied" }
  | { readonly crash: CrashKind };

/** A fault for the calls that match everything given. */
export type FaultRule = StorageFault & {
  readonly op?: StorageOp | readonly StorageOp[];
  readonly kind?: FileKind | readonly FileKind[];
  /** The whole path, or a predicate of it. */
  readonly path?: string | ((path: string) => boolean);
  /** Matching calls that are let pass first; none by default. */
  readonly skip?: number;
  /** Matching calls that are hit then; 1 by default. */
  readonly times?: number;
  /** Each matching call is hit with this probability only. */
  readonly probability?: number;
};

/** Decides for every call on a disk whether it meets a fault. Rules outlive the processes that they kill. */
export class StorageFaults {
  readonly #random: SeededRandom;
  readonly #rules: { readonly rule: FaultRule; skip: number; times: number }[] = [];
  #calls = 0;
  #crashAt = -1;
  #crashKind: CrashKind = "process";
  /** Asked first about every call, while set: for tests that no rule serves. */
  intercept: ((call: StorageCall) => StorageFault | undefined) | undefined;

  constructor(random: SeededRandom) {
    this.#random = random;
  }

  /** Calls made on this disk so far, by all processes. */
  get calls(): number {
    return this.#calls;
  }

  /** Adds a rule. The result takes it away again. */
  inject(rule: FaultRule): () => void {
    const active = { rule, skip: rule.skip ?? 0, times: rule.times ?? 1 };
    this.#rules.push(active);
    return () => {
      const index = this.#rules.indexOf(active);
      if (index >= 0) this.#rules.splice(index, 1);
    };
  }

  /** The `calls`-th call from now on (1: the next one) is the last of its process. */
  crashAt(calls: number, kind: CrashKind = "process"): void {
    this.#crashAt = this.#calls + calls;
    this.#crashKind = kind;
  }

  clear(): void {
    this.#rules.length = 0;
    this.#crashAt = -1;
    this.intercept = undefined;
  }

  judge(
    op: StorageOp,
    path: string,
    kind: FileKind | undefined,
    offset: number,
    length: number,
  ): StorageFault | undefined {
    this.#calls++;
    if (this.#calls === this.#crashAt) return { crash: this.#crashKind };
    if (this.intercept !== undefined) {
      const fault = this.intercept({ op, path, kind, offset, length, number: this.#calls });
      if (fault !== undefined) return fault;
    }
    for (const active of this.#rules) {
      const { rule } = active;
      if (
        active.times === 0 ||
        !matches(rule.op, op) ||
        (rule.kind !== undefined && (kind === undefined || !matches(rule.kind, kind)))
      )
        continue;
      if (typeof rule.path === "string" ? rule.path !== path : rule.path?.(path) === false) continue;
      if (rule.probability !== undefined && !this.#random.chance(rule.probability)) continue;
      if (active.skip > 0) active.skip--;
      else {
        active.times--;
        return rule;
      }
    }
    return undefined;
  }
}

function matches<T extends string>(wanted: T | readonly T[] | undefined, actual: T): boolean {
  return wanted === undefined || (typeof wanted === "string" ? wanted === actual : wanted.includes(actual));
}
