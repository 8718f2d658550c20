import { crc32 } from "node:zlib";
import { ColobusError } from "../proto/errors.ts";
import { VMSTATE_CHUNK_BYTES, VMSTATE_WINDOW_CHUNKS } from "../proto/limits.ts";
import { encodeVmState } from "../proto/replication-messages.ts";
import type { VmStateMark } from "../proto/state-record.ts";
import { encodeVmStateChunkHead, VmStateCount } from "../proto/vmstate-format.ts";
import type { Pending } from "../shared/block/block-device.ts";

/** The bytes of one VM state. It is whole when they end, and interrupted when they fail; nobody else reads them. */
export type VmStateBytes = AsyncIterator<Uint8Array, unknown>;

/**
 * Owns one VM state on its way to the secondary: gathers its bytes into chunks, and lets no more of them be under way
 * than the window holds, so that the state may be larger than any memory and guests' writes queue behind little of it.
 */
export class VmStateStream {
  readonly epoch: number;
  readonly #send: (parts: readonly Buffer[]) => void;
  readonly #count = new VmStateCount();
  /** The chunk that is being filled. It is the link's once it is sent. */
  #chunk: Buffer | undefined;
  #filled = 0;
  #taken = 0;
  #fault: ColobusError | undefined;
  /** Called when there is room, a byte more, or a fault: whoever waits looks again. */
  #wake: () => void = () => undefined;

  constructor(epoch: number, send: (parts: readonly Buffer[]) => void) {
    this.epoch = epoch;
    this.#send = send;
  }

  /** Whether the secondary has answered for everything that was sent. */
  get isQuiet(): boolean {
    return this.#taken === this.#count.chunks;
  }

  /**
   * Sends everything that `bytes` has, and resolves with what that was. Errors: `vmstate-interrupted`; why the secondary
   * takes no more; what `fail` was called with.
   */
  async pump(bytes: VmStateBytes): Promise<VmStateMark> {
    for (;;) {
      const piece = await this.#next(bytes);
      if (piece === undefined) break;
      for (let at = 0; at < piece.length;) {
        at += this.#fill(piece, at);
        if (this.#filled < VMSTATE_CHUNK_BYTES) continue;
        const room = this.#room();
        if (room !== undefined) await room;
        this.#sendChunk();
      }
    }
    if (this.#filled > 0) this.#sendChunk();
    const { mark } = this.#count;
    if (mark.bytes > 0) return mark;
    throw new ColobusError("vmstate-interrupted", "the VM state ended before its first byte", "Take a new checkpoint.");
  }

  /** The secondary has taken so many chunks, or takes no more. Errors: `protocol-error`. */
  acknowledge(chunks: number, error: ColobusError | undefined): void {
    if (chunks < this.#taken || chunks > this.#count.chunks) {
      throw new ColobusError("protocol-error", `the peer has taken ${chunks} chunks of ${this.#count.chunks}`);
    }
    this.#taken = chunks;
    if (error !== undefined) this.fail(error);
    this.#wake();
  }

  /** Nothing more of it is sent. */
  fail(reason: ColobusError): void {
    this.#fault ??= reason;
    this.#wake();
  }

  /** The next piece; undefined at the end. The waiting ends with a fault too, while the sender is still asked. */
  async #next(bytes: VmStateBytes): Promise<Uint8Array | undefined> {
    let asked: { readonly piece: Uint8Array | undefined } | { readonly error: unknown } | undefined;
    bytes.next().then(
      (result) => {
        asked = { piece: result.done === true ? undefined : result.value };
        this.#wake();
      },
      (error: unknown) => {
        asked = { error };
        this.#wake();
      },
    );
    for (;;) {
      if (this.#fault !== undefined) throw this.#fault;
      if (asked !== undefined) break;
      await this.#woken();
    }
    if ("piece" in asked) return asked.piece;
    const why = asked.error instanceof Error ? asked.error.message : String(asked.error);
    throw new ColobusError(
      "vmstate-interrupted",
      `the VM state broke off: ${why}`,
      "The previous checkpoint stands; take a new one.",
      { cause: asked.error },
    );
  }

  #fill(piece: Uint8Array, at: number): number {
    this.#chunk ??= Buffer.allocUnsafe(VMSTATE_CHUNK_BYTES);
    const length = Math.min(piece.length - at, VMSTATE_CHUNK_BYTES - this.#filled);
    this.#chunk.set(piece.subarray(at, at + length), this.#filled);
    this.#filled += length;
    return length;
  }

  #room(): Pending {
    return this.#hasRoom ? undefined : this.#untilRoom();
  }

  async #untilRoom(): Promise<void> {
    while (!this.#hasRoom && this.#fault === undefined) await this.#woken();
    if (this.#fault !== undefined) throw this.#fault;
  }

  get #hasRoom(): boolean {
    return this.#count.chunks - this.#taken < VMSTATE_WINDOW_CHUNKS;
  }

  #woken(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }

  #sendChunk(): void {
    const payload = (this.#chunk as Buffer).subarray(0, this.#filled);
    const crc = crc32(payload);
    const index = this.#count.chunks;
    this.#chunk = undefined;
    this.#filled = 0;
    this.#count.add(encodeVmStateChunkHead(payload.length, crc), payload.length);
    this.#send(encodeVmState({ type: "vmstate", epoch: this.epoch, index, crc, payload }));
  }
}
