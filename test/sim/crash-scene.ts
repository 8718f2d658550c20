import type { Durability } from "../../proto/words.ts";
import type { SimHost } from "./sim-host.ts";
import type { CrashKind } from "./simulated-crash.ts";
import type { SimWorld } from "./world.ts";

/** A kind of workload: which side dies in it, what is done before that, and what must hold afterwards. */
export interface CrashStage<Operation extends string = string> {
  readonly name: string;
  readonly operations: readonly Operation[];
  set(seed: number, durability: Durability): CrashScene<Operation>;
}

/** One life of a workload. The same stage, seed and operations live the same life, up to the death. */
export interface CrashScene<Operation extends string = string> {
  readonly world: SimWorld;
  /** The host that dies. */
  readonly host: SimHost;
  /** Prepares everything. Runs the world by itself. */
  start(): Promise<void>;
  /** Called in an event of the world. When the host dies meanwhile, the promise never settles. */
  perform(operation: Operation): Promise<void>;
  /** All that the sides are bound to, as one comparable text: two moments with the same promises allow the same. */
  describePromises(): string;
  /** The host has just died. Called in the middle of what it did. */
  died(kind: CrashKind): void;
  /**
   * Starts the host again and has it do what follows from what it finds, such as to merge. Called in an event of the
   * world; the host may die a second time meanwhile. Resolves when nothing is left to do.
   */
  goOn(): Promise<void>;
  /** The host is dead: looks at what is left, starts it again, and checks all that was promised. Runs the world by itself. */
  recover(): Promise<void>;
  /** Nothing has gone wrong: everything is as it has to be. Runs the world by itself. */
  checkEnd(): Promise<void>;
}
