import { dirname } from "node:path";
import { asColobusError, ColobusError } from "../../proto/errors.ts";
import { SECONDARIES_MAX } from "../../proto/limits.ts";
import {
  decodeMarkClaims,
  decodeSharedMark,
  encodeMarkClaim,
  encodeSharedMark,
  MARK_CLAIMS_BYTES,
  SHARED_MARK_BYTES,
  SHARED_MARK_FILE_BYTES,
  type DecodedSharedMark,
  type MarkClaim,
  type SharedMarkRecord,
} from "../../proto/shared-mark-format.ts";
import type { Log } from "../host/log.ts";
import type { Storage, StorageFile } from "../host/storage.ts";

/** A claim that was made. */
export interface DiskClaim {
  /**
   * Has the mark say that this agent merges. Errors: `image-busy` where it is not the one that the claim is about any more, or
   * another one's claim has taken the slot; those of the storage: the mark on the device is then the old one or the new one.
   */
  readonly merge: () => Promise<void>;
  /** Takes it back where the promotion has failed. Errors: those of the storage; it stands then, until this agent starts again. */
  readonly withdraw: () => Promise<void>;
}

export interface StandOptions {
  readonly holders: () => readonly string[];
  /** Whether the mark tells that another agent was promoted since. */
  readonly isTaken: (mark: SharedMarkRecord) => boolean;
  /** undefined: there is no mark that can be read. */
  readonly before: (mark: SharedMarkRecord | undefined) => Promise<void>;
}

/**
 * The mark beside shared disks, as one of the hosts sees it. It is read from the device each time, since another host may
 * have written it, and is durable there when a write resolves. Who writes it has made sure that no other does: the primary
 * while it is the primary, a promoted side after fencing. Of several secondaries that are promoted at once one goes on at most:
 * each makes its claim in a slot of its own first, and then looks for the others'.
 */
export class SharedMark {
  readonly #storage: Storage;
  readonly #path: string;
  readonly #agentId: () => string;
  #tail: Promise<unknown> = Promise.resolve();

  constructor(storage: Storage, path: string, agentId: () => string) {
    this.#storage = storage;
    this.#path = path;
    this.#agentId = agentId;
  }

  /** The newest mark; undefined: there is none yet. Errors: `unprotected` where it cannot be read. */
  async read(): Promise<SharedMarkRecord | undefined> {
    const found = await this.#read();
    if (found.kind === "mark") return found.mark;
    if (found.kind === "none") return undefined;
    throw new ColobusError(
      "unprotected",
      `the mark ${this.#path} cannot be read: it is damaged, or of a later release`,
      "Bring the secondary and the primary together: the next checkpoint writes it anew. Without a primary, `colobus failover --force` takes the disk as it is.",
    );
  }

  /**
   * The checkpoints of the agents that `holders` names, as the mark is written, stand: those of no others do. Returns them.
   * `before` is called with the mark that is there, and is waited for. Errors: `outdated`, as `assertNotTaken`; those of
   * `before`; those of the storage: the mark on the device is then the old one or the new one.
   */
  stand({ holders, isTaken, before }: StandOptions): Promise<readonly string[]> {
    return this.#inTurn(async () => {
      const found = await this.#read();
      const mark = soundOf(found);
      if (mark !== undefined && isTaken(mark)) throw takenBy(mark.agentId);
      await before(mark);
      const standing = [...holders()];
      await this.#write(found, standing.length === 0 ? "unprotected" : "protected", standing);
      return standing;
    });
  }

  /**
   * To be called before anything is done that only a promoted side may do. Resolves when no other agent can be promoted from
   * what the mark says now, once `merge` has said that this one is. Errors: `image-busy`; those of the storage.
   */
  claim(): Promise<DiskClaim> {
    return this.#inTurn(async () => {
      const before = await this.#read();
      if (before.kind === "mark") assertNotMergedBy(before.mark, this.#agentId());
      // The last slot may be another one's already, which must see its own claim.
      await this.#assertUnclaimed(before);
      await this.#writeClaim(before, false);
      try {
        assertSame(before, await this.#read());
        await this.#assertUnclaimed(before);
      } catch (error) {
        await this.#withdraw(before);
        throw error;
      }
      return {
        merge: () =>
          this.#inTurn(async () => {
            assertSame(before, await this.#read());
            await this.#assertClaimed(before);
            await this.#write(before, "merging", []);
          }),
        withdraw: () => this.#inTurn(() => this.#withdraw(before)),
      };
    });
  }

  /** Ends a claim of an earlier process of this agent, which cannot be promoted any more. */
  async withdraw(log: Log): Promise<void> {
    try {
      await this.#inTurn(async () => {
        await this.#withdraw(await this.#read());
      });
    } catch (error) {
      log.warn({ reason: asColobusError(error) }, "a claim beside the mark of the shared disk is not withdrawn");
    }
  }

  /**
   * For a start: throws when another agent is merging into the disk. A mark that cannot be read keeps nobody from starting:
   * it is looked at again before anything is written. Errors: `image-busy`.
   */
  async assertNobodyMerges(log: Log): Promise<void> {
    const mark = await this.#tryRead(log);
    if (mark !== undefined) assertNotMergedBy(mark, this.#agentId());
  }

  /**
   * Ends the mark of a merge that this agent has finished. Where it says something else by now, or cannot be read, it is left
   * alone: that was written since, or the next checkpoint writes it. Errors: those of writing it.
   */
  endMerge(log: Log): Promise<void> {
    return this.#inTurn(async () => {
      const mark = await this.#tryRead(log);
      if (mark?.state !== "merging" || mark.agentId !== this.#agentId()) return;
      await this.#write({ kind: "mark", mark }, "unprotected", []);
    });
  }

  /** Whether this agent has written the mark last, so that no other one was promoted on the disk since. */
  async isOwn(log: Log): Promise<boolean> {
    return (await this.#tryRead(log))?.agentId === this.#agentId();
  }

  /**
   * Throws when `isTaken` says of the mark that another agent was promoted on the disks. Errors: `outdated`; those of the
   * storage.
   */
  async assertNotTaken(isTaken: (mark: SharedMarkRecord) => boolean): Promise<void> {
    const mark = soundOf(await this.#read());
    if (mark !== undefined && isTaken(mark)) throw takenBy(mark.agentId);
  }

  /**
   * Throws when another agent than `primary` was promoted on the disks since this side has heard of that one: it may be the
   * one that writes them. Errors: `image-busy`; those of the storage.
   */
  async assertWrittenBy(primary: string): Promise<void> {
    const mark = soundOf(await this.#read());
    if (mark === undefined || mark.agentId === primary || mark.agentId === this.#agentId()) return;
    throw new ColobusError(
      "image-busy",
      `agent ${mark.agentId} was promoted on the shared disk since this side has heard of its primary`,
      `Make this side its secondary: \`colobus rejoin\`. When it is gone for good, power its host off, remove ${this.#path}, and try again.`,
    );
  }

  async #tryRead(log: Log): Promise<SharedMarkRecord | undefined> {
    try {
      return await this.read();
    } catch (error) {
      log.warn({ reason: asColobusError(error) }, "the mark of the shared disk cannot be read");
      return undefined;
    }
  }

  /**
   * Throws when the disk may have been overwritten without this agent's originals, or another one is merging into it. `isNeeded`:
   * where there is no mark yet, too. Errors: `unprotected`, `image-busy`, those of the storage.
   */
  async assertProtected(isNeeded: boolean): Promise<void> {
    const mark = await this.read();
    if (mark !== undefined) assertNotMergedBy(mark, this.#agentId());
    if (mark?.state === "merging" || mark?.holders.includes(this.#agentId()) === true) return;
    if (mark === undefined && !isNeeded) return;
    throw new ColobusError(
      "unprotected",
      mark === undefined
        ? `nothing at ${this.#path} says that the shared disk was not overwritten without this secondary`
        : "the shared disk was overwritten without this secondary: its checkpoint is void",
      "Start the primary: the pair gets a new checkpoint. When it is gone for good, `colobus failover --force` takes the disk as it is.",
    );
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#tail.then(work);
    this.#tail = done.catch(() => undefined); // the caller has the error
    return done;
  }

  async #read(): Promise<DecodedSharedMark> {
    const bytes = await this.#readBytes(0, SHARED_MARK_BYTES);
    return bytes === undefined ? { kind: "none" } : decodeSharedMark(bytes);
  }

  async #readClaims(): Promise<readonly MarkClaim[]> {
    const bytes = await this.#readBytes(SHARED_MARK_BYTES, MARK_CLAIMS_BYTES);
    return bytes === undefined ? [] : decodeMarkClaims(bytes);
  }

  /** undefined: there is no mark. */
  async #readBytes(offset: number, length: number): Promise<Buffer | undefined> {
    if (!this.#storage.exists(this.#path)) return undefined;
    const file = this.#storage.open(this.#path, { kind: "other", create: "never", readOnly: true, direct: true });
    try {
      // An agent that died as it made the file has promised nothing yet.
      if (file.sizeBytes() < SHARED_MARK_FILE_BYTES) return undefined;
      const bytes = Buffer.alloc(length);
      await file.read(bytes, offset);
      return bytes;
    } finally {
      file.close();
    }
  }

  async #write(found: DecodedSharedMark, state: SharedMarkRecord["state"], holders: readonly string[]): Promise<void> {
    const agentId = this.#agentId();
    const sequence = sequenceOf(found) + 1;
    const others = claimantsOf(soundOf(found)).filter((one) => one !== agentId && !holders.includes(one));
    const { slot, offset } = encodeSharedMark({
      state,
      agentId,
      sequence,
      holders,
      others: others.slice(0, SECONDARIES_MAX - holders.length),
    });
    // Of two damaged slots neither may win over the new mark.
    const before = found.kind === "unreadable" ? [{ slot: Buffer.alloc(SHARED_MARK_BYTES), offset: 0 }] : [];
    await this.#writeSlots([...before, { slot, offset }]);
  }

  /** This agent's claim stands: in the last slot another one's may have taken its place. Errors: `image-busy`. */
  async #assertClaimed(mark: DecodedSharedMark): Promise<void> {
    const { isOwn, others } = await this.#claimsAbout(mark);
    if (!isOwn) throw claimedBy(others[0] ?? "unknown");
  }

  /** Errors: `image-busy`. */
  async #assertUnclaimed(mark: DecodedSharedMark): Promise<void> {
    const [other] = (await this.#claimsAbout(mark)).others;
    if (other !== undefined) throw claimedBy(other);
  }

  /** Takes back what this agent has claimed about that mark. The last slot may be another one's by now: that claim stands. */
  async #withdraw(mark: DecodedSharedMark): Promise<void> {
    if ((await this.#claimsAbout(mark)).isOwn) await this.#writeClaim(mark, true);
  }

  /** Whether this agent has a claim about that mark, and the ids of the others that have. */
  async #claimsAbout(
    mark: DecodedSharedMark,
  ): Promise<{ readonly isOwn: boolean; readonly others: readonly string[] }> {
    const own = this.#agentId();
    const claimants = (await this.#readClaims()).filter((claim) => isAbout(claim, mark)).map(({ agentId }) => agentId);
    return { isOwn: claimants.includes(own), others: claimants.filter((agentId) => agentId !== own) };
  }

  async #writeClaim(mark: DecodedSharedMark, isWithdrawn: boolean): Promise<void> {
    const claim = { agentId: this.#agentId(), sequence: sequenceOf(mark), isWithdrawn };
    await this.#writeSlots([encodeMarkClaim(claim, soundOf(mark))]);
  }

  async #writeSlots(slots: readonly ReturnType<typeof encodeSharedMark>[]): Promise<void> {
    const file = this.#storage.open(this.#path, { kind: "other", create: "if-missing", fresh: true });
    try {
      if (file.sizeBytes() < SHARED_MARK_FILE_BYTES) await this.#lengthen(file);
      for (const { slot, offset } of slots) file.write(slot, offset);
      await file.sync();
    } finally {
      file.close();
    }
  }

  async #lengthen(file: StorageFile): Promise<void> {
    file.truncate(SHARED_MARK_FILE_BYTES);
    await file.sync();
    await this.#storage.syncDirectory(dirname(this.#path));
  }
}

/** undefined: there is none, or it is damaged. */
function soundOf(found: DecodedSharedMark): SharedMarkRecord | undefined {
  return found.kind === "mark" ? found.mark : undefined;
}

/** Whom the mark knows of: each may be promoted on the disk one day. */
function claimantsOf(mark: SharedMarkRecord | undefined): readonly string[] {
  return mark === undefined ? [] : [...new Set([...mark.holders, ...mark.others, mark.agentId])];
}

function sequenceOf(found: DecodedSharedMark): number {
  return soundOf(found)?.sequence ?? 0;
}

/** A claim about an older mark is over. */
function isAbout({ sequence }: MarkClaim, mark: DecodedSharedMark): boolean {
  return sequence === sequenceOf(mark);
}

/** Between the two looks nobody was promoted. Errors: `image-busy`. */
function assertSame(before: DecodedSharedMark, now: DecodedSharedMark): void {
  if (now.kind === "mark" && now.mark.sequence !== sequenceOf(before)) throw claimedBy(now.mark.agentId);
}

function claimedBy(agentId: string): ColobusError {
  return new ColobusError(
    "image-busy",
    `agent ${agentId} is being promoted on the shared disk, or has died as it was about to be`,
    "See `colobus status` there. If it is still Secondary, start it, or fail over there; then try again where it is to be done.",
  );
}

function takenBy(agentId: string): ColobusError {
  return new ColobusError(
    "outdated",
    `agent ${agentId} was promoted on the shared disk since this side has written its mark`,
    "Start that agent, and make this side its secondary: `colobus rejoin`.",
  );
}

function assertNotMergedBy(mark: SharedMarkRecord, self: string): void {
  if (mark.state !== "merging" || mark.agentId === self) return;
  throw new ColobusError(
    "image-busy",
    `agent ${mark.agentId} was promoted, and merges its checkpoint into the shared disk`,
    "This side was fenced off. Wait until that agent says `merged`, start this one again, and make it the secondary: `colobus rejoin`.",
  );
}
