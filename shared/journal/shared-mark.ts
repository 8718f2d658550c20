import { dirname } from "node:path";
import { asColobusError, ColobusError } from "../../proto/errors.ts";
import {
  decodeSharedMark,
  encodeSharedMark,
  SHARED_MARK_BYTES,
  type DecodedSharedMark,
  type SharedMarkRecord,
} from "../../proto/shared-mark-format.ts";
import type { SharedMarkState } from "../../proto/words.ts";
import type { Log } from "../host/log.ts";
import type { Storage, StorageFile } from "../host/storage.ts";

/**
 * The mark beside a shared disk, as one of the two hosts sees it. It is read from the device each time, since the other
 * host may have written it, and is durable there when a write resolves. Who writes it has made sure that the other does
 * not: the primary while it is the primary, a promoted side after fencing.
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

  /** Errors: those of the storage; the mark on the device is then the old one or the new one. */
  write(state: SharedMarkState): Promise<void> {
    const written = this.#tail.then(() => this.#write(state));
    this.#tail = written.catch(() => undefined); // the caller has the error
    return written;
  }

  /**
   * Throws when another agent is merging into the disk. A mark that cannot be read keeps nobody off: the disk itself may
   * be in order. Errors: `image-busy`.
   */
  async assertNobodyMerges(log: Log): Promise<void> {
    const mark = await this.#tryRead(log);
    if (mark !== undefined) assertNotMergedBy(mark, this.#agentId());
  }

  /** Ends the mark of a merge that this agent has finished, when it died before it could say so. Errors: the storage's. */
  async endMerge(log: Log): Promise<void> {
    const mark = await this.#tryRead(log);
    if (mark?.state === "merging" && mark.agentId === this.#agentId()) await this.write("unprotected");
  }

  /** Whether this agent has written the mark last, so that no other one was promoted on the disk since. */
  async isOwn(log: Log): Promise<boolean> {
    return (await this.#tryRead(log))?.agentId === this.#agentId();
  }

  /** Throws when `peer`, which was this agent's secondary, has written the mark: only a promoted one does. Errors: `outdated`. */
  async assertNotTakenBy(peer: string | undefined, log: Log): Promise<void> {
    const mark = await this.#tryRead(log);
    if (mark === undefined || mark.agentId !== peer) return;
    throw new ColobusError(
      "outdated",
      `agent ${mark.agentId} was promoted on the shared disk since this side has written its mark`,
      "Start that agent, and make this side its secondary: `colobus rejoin`.",
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
   * Throws when the disk may have been overwritten without its originals, or another agent is merging into it. `isNeeded`:
   * where there is no mark yet, too. Errors: `unprotected`, `image-busy`, those of the storage.
   */
  async assertProtected(isNeeded: boolean): Promise<void> {
    const mark = await this.read();
    if (mark !== undefined) assertNotMergedBy(mark, this.#agentId());
    if (mark?.state === "protected" || mark?.state === "merging") return;
    if (mark === undefined && !isNeeded) return;
    throw new ColobusError(
      "unprotected",
      mark === undefined
        ? `nothing at ${this.#path} says that the shared disk was not overwritten without this secondary`
        : "the shared disk was overwritten without this secondary: its checkpoint is void",
      "Start the primary: the pair gets a new checkpoint. When it is gone for good, `colobus failover --force` takes the disk as it is.",
    );
  }

  async #read(): Promise<DecodedSharedMark> {
    if (!this.#storage.exists(this.#path)) return { kind: "none" };
    const file = this.#storage.open(this.#path, { kind: "other", create: "never", readOnly: true, direct: true });
    try {
      const bytes = Buffer.alloc(SHARED_MARK_BYTES);
      // An agent that died as it made the file has promised nothing yet.
      if (file.sizeBytes() < bytes.length) return { kind: "none" };
      await file.read(bytes, 0);
      return decodeSharedMark(bytes);
    } finally {
      file.close();
    }
  }

  async #write(state: SharedMarkState): Promise<void> {
    const found = await this.#read();
    const sequence = (found.kind === "mark" ? found.mark.sequence : 0) + 1;
    const file = this.#storage.open(this.#path, { kind: "other", create: "if-missing", fresh: true });
    try {
      if (file.sizeBytes() < SHARED_MARK_BYTES) await this.#lengthen(file);
      const { slot, offset } = encodeSharedMark({ state, agentId: this.#agentId(), sequence });
      // Of two damaged slots neither may win over the new mark.
      if (found.kind === "unreadable") file.write(Buffer.alloc(SHARED_MARK_BYTES), 0);
      file.write(slot, offset);
      await file.sync();
    } finally {
      file.close();
    }
  }

  async #lengthen(file: StorageFile): Promise<void> {
    file.truncate(SHARED_MARK_BYTES);
    await file.sync();
    await this.#storage.syncDirectory(dirname(this.#path));
  }
}

function assertNotMergedBy(mark: SharedMarkRecord, self: string): void {
  if (mark.state !== "merging" || mark.agentId === self) return;
  throw new ColobusError(
    "image-busy",
    `agent ${mark.agentId} was promoted, and merges its checkpoint into the shared disk`,
    "This side was fenced off. Wait until that agent says `merged`, start this one again, and make it the secondary: `colobus rejoin`.",
  );
}
