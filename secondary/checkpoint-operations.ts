import { ColobusError } from "../proto/errors.ts";
import type { EventType } from "../proto/words.ts";
import { newId, type Random } from "../shared/host/random.ts";
import type { CheckpointView } from "./checkpoint-view.ts";
import type { Checkpoints } from "./checkpoints.ts";
import type { CheckpointHold } from "./kept-checkpoints.ts";
import type { ReplicaDisk } from "./replica-disk.ts";
import type { ReplicaSession } from "./replica-session.ts";

export interface CheckpointOperationsOptions {
  readonly checkpoints: Checkpoints;
  readonly disks: () => readonly ReplicaDisk[];
  /** The session with a primary that is open, if one is. */
  readonly session: () => ReplicaSession | undefined;
  /** Ends every session, and does the work before another can begin. */
  readonly withoutSessions: <T>(why: string, work: () => Promise<T>) => Promise<T>;
  readonly random: Random;
  /** Makes what came after a checkpoint dirty, durably; false: nothing is known of the primary's copy. */
  readonly trackRolledBack: (epoch: number) => Promise<boolean>;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  /** Storage was freed. */
  readonly freed: () => void;
}

/** What an operator, and a client that opens an earlier checkpoint, can do with a secondary's checkpoints. */
export class CheckpointOperations {
  readonly #options: CheckpointOperationsOptions;

  constructor(options: CheckpointOperationsOptions) {
    this.#options = options;
  }

  /**
   * Makes this side Inconsistent: there is no checkpoint to return to until the next commit, and the overlays are free.
   * A session that is open goes on. Returns the epoch that was given up; 0: there was none. Errors: `io-error`.
   */
  async giveUp(): Promise<number> {
    const { checkpoints, emit } = this.#options;
    const session = this.#options.session();
    let epoch = 0;
    const inStream = await session?.betweenWrites(async () => {
      epoch = await checkpoints.giveUp();
      session.notify({ type: "given-up", throughEpoch: checkpoints.openEpoch - 1 });
    });
    // Where no session has a stream to stand in, none may begin meanwhile: it would save originals that are dropped.
    if (inStream !== true) {
      epoch = await this.#options.withoutSessions("its checkpoint is given up", () => checkpoints.giveUp());
    }
    if (epoch > 0) emit("checkpoint-given-up", { epoch });
    this.#options.freed();
    return epoch;
  }

  /**
   * Makes the retained checkpoint `epoch` the committed one, of a secondary whose primary is not connected, and begins a
   * lineage with it. Returns the epoch that was committed before. Errors: `peer-connected`, `epoch-unknown`, `io-error`.
   */
  async rollBack(epoch: number): Promise<number> {
    const { checkpoints, emit, random, trackRolledBack } = this.#options;
    const session = this.#options.session();
    if (session !== undefined) {
      throw new ColobusError(
        "peer-connected",
        `the primary at ${session.peerAddress} is connected`,
        "Stop the primary agent first.",
      );
    }
    const from = checkpoints.committed.epoch;
    const lineage = newId(random);
    await this.#options.withoutSessions("it is rolled back", () =>
      checkpoints.rollBack(epoch, { lineage, trackRolledBack }),
    );
    if (from !== epoch) emit("rolled-back", { epoch, fromEpoch: from, lineage });
    return from;
  }

  /** Whether a client can open the checkpoint. */
  isKept(epoch: number): boolean {
    return this.#options.checkpoints.kept.has(epoch);
  }

  /** A hold on the committed checkpoint, or on a retained one; undefined when there is no such checkpoint. */
  tryHold(epoch: number | "committed"): CheckpointHold | undefined {
    const { kept, committed } = this.#options.checkpoints;
    const wanted = epoch === "committed" ? committed.epoch : epoch;
    return kept.has(wanted) ? kept.hold(wanted) : undefined;
  }

  /** Disk `name` as it was at the checkpoint of the hold; undefined where the disk is still to be made. */
  viewOf(name: string, hold: CheckpointHold): CheckpointView | undefined {
    return this.#options
      .disks()
      .find((disk) => disk.name === name)
      ?.viewOf(hold);
  }
}
