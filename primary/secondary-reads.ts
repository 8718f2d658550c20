/**
 * Owns: what guests read of ranges that a primary's own images have failed to give: the secondaries are asked instead.
 *
 * How: the question is put into the stream of a secondary, which answers it from what the stream has brought, between the
 * operations before it and those behind it. Whatever a guest was told before it asked is among those before, or is dirty
 * there; and a range of which anything is dirty is not asked for. So a secondary is good for all that it does not lack,
 * also in the middle of a resync. It is asked for pieces, and for few at a time, which bounds what both sides keep.
 *
 * Does not: mend the image, or call it sound. How long a guest waits is bounded as it is for its writes: by the session.
 */
import { asColobusError } from "../proto/errors.ts";
import { CONTENT_MAX_BYTES, CONTENT_REQUESTS_MAX } from "../proto/limits.ts";
import type { Log } from "../shared/host/log.ts";
import type { PeerTracking } from "../shared/replication/peer-tracking.ts";
import type { Replicator } from "./replicator.ts";

/** A secondary, or the place for one. */
interface Source {
  readonly replicator: Pick<Replicator, "isEstablished" | "streamingSession">;
  readonly tracking: Pick<PeerTracking, "dirty">;
}

export class SecondaryReads {
  readonly #log: Log;
  readonly #sources: readonly Source[];
  #underWay = 0;
  /** What lets each piece go on that waits for others to be answered. */
  readonly #waiting: (() => void)[] = [];

  constructor(log: Log, sources: readonly Source[]) {
    this.#log = log;
    this.#sources = sources;
  }

  /**
   * Fills `target` with what the disk with this index holds at `offset`. Resolves with the agent id of a secondary that has
   * given it; undefined where none has all of it: what is in `target` means nothing then.
   */
  async read(disk: number, target: Uint8Array, offset: number): Promise<string | undefined> {
    const pieces: Promise<string | undefined>[] = [];
    for (let at = 0; at < target.length; at += CONTENT_MAX_BYTES) {
      const piece = target.subarray(at, at + CONTENT_MAX_BYTES);
      pieces.push(this.#inTurn(() => this.#readPiece(disk, piece, offset + at)));
    }
    const givers = await Promise.all(pieces);
    return givers.includes(undefined) ? undefined : givers[0];
  }

  /** Errors: none. */
  async #readPiece(disk: number, target: Uint8Array, offset: number): Promise<string | undefined> {
    const sources = [...this.#sources];
    sources.sort((one, other) => Number(other.replicator.isEstablished) - Number(one.replicator.isEstablished));
    for (const { replicator, tracking } of sources) {
      // Looked at and asked in one turn of the event loop: nothing comes between.
      const session = replicator.streamingSession;
      if (session === undefined || tracking.dirty(disk).touches(offset, target.length)) continue;
      try {
        target.set(await session.content(disk, offset, target.length));
        return session.peer?.agentId;
      } catch (error) {
        this.#log.debug({ disk, offset, reason: asColobusError(error) }, "a secondary could not be read");
      }
    }
    return undefined;
  }

  async #inTurn<T>(work: () => Promise<T>): Promise<T> {
    if (this.#underWay < CONTENT_REQUESTS_MAX) this.#underWay += 1;
    else {
      await new Promise<void>((resolve) => {
        this.#waiting.push(resolve);
      });
    }
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#underWay -= 1;
      else next();
    }
  }
}
