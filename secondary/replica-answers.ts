import { ColobusError } from "../proto/errors.ts";
import { CONTENT_REQUESTS_MAX } from "../proto/limits.ts";
import type { Message } from "../proto/replication-messages.ts";
import type { Mode } from "../proto/words.ts";
import { readNewest } from "./newest-content.ts";
import { ReplicaChecksums } from "./replica-checksums.ts";
import type { ReplicaDisk } from "./replica-disk.ts";

/** What the primary asks of a range: whether its own is the same, or, where its own image cannot be read, for the bytes. */
export type RangeQuestion = Extract<Message, { type: "checksum" | "read" }>;
/** The buffer is the receiver's. */
export type RangeAnswer = { readonly checksum: Uint8Array } | { readonly content: Buffer };

/** Answers the primary of one session from the newest content that its stream has brought. */
export class ReplicaAnswers {
  readonly #checksums = new ReplicaChecksums();
  /** Questions whose answers are the bytes, and have not been made. */
  #openReads = 0;

  /**
   * What makes the answer, to be called between two batches of the stream, one call at a time. Errors: `protocol-error`; those of
   * reading the image or the buffer, when it is called.
   */
  prepare(question: RangeQuestion, disks: readonly ReplicaDisk[], mode: Mode): () => Promise<RangeAnswer> {
    const { type, offset, length } = question;
    const disk = disks[question.disk];
    if (disk === undefined || offset + length > disk.base.sizeBytes || mode === "shared") {
      throw new ColobusError("protocol-error", "the peer asked for the content of what is not there");
    }
    if (type === "checksum") return async () => ({ checksum: await this.#checksums.read(disk, offset, length) });
    this.#openReads += 1;
    if (this.#openReads > CONTENT_REQUESTS_MAX) {
      throw new ColobusError("protocol-error", "the peer reads more at a time than it may");
    }
    return async () => {
      this.#openReads -= 1;
      const content = Buffer.allocUnsafeSlow(length);
      await readNewest(disk, content, offset);
      return { content };
    };
  }
}
