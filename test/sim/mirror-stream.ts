import assert from "node:assert/strict";
import type { DataMessage, Message } from "../../proto/replication-messages.ts";
import type { AckPolicy, Durability } from "../../proto/words.ts";
import { ModelWrite, type DiskModel } from "./disk-model.ts";
import type { PairMember } from "./pair.ts";

interface Sent {
  readonly disk: number;
  readonly write: ModelWrite;
  /** The guest was told that it is done: a failover has to return it. */
  isTold: boolean;
}

/** What a secondary holds from a barrier on, which ended a sync: the disks at that barrier, and all that was sent since. */
interface Followed {
  readonly by: PairMember;
  readonly disks: readonly DiskModel[];
  /** The same without what was sent since, where it is known to the byte. */
  readonly contents: readonly Buffer[] | undefined;
  readonly sent: Sent[];
  /** The stream goes on, and brings nothing but what guests write. */
  isOpen: boolean;
}

/**
 * What a failover may return in mode `mirror`, seen from the stream itself: the disks at the barrier that is committed,
 * and each write sent since, until the next sync begins. A write that a guest was told of must be there, as far as the
 * acknowledgement policy promises it; every other one may be, or may not be.
 */
export class MirrorStream {
  readonly #ack: AckPolicy;
  readonly #durability: Durability;
  readonly #followed = new Map<number, Followed>();
  /** The newest checkpoint that a failover may return to, now that a guest was told of a write behind it. */
  #promisedEpoch = 0;

  constructor({ ack, durability }: { readonly ack: AckPolicy; readonly durability: Durability }) {
    this.#ack = ack;
    this.#durability = durability;
  }

  /** A barrier takes its place in the stream. `disks` are no one else's. */
  barrier(epoch: number, by: PairMember, disks: readonly DiskModel[], contents?: readonly Buffer[]): void {
    this.#followed.set(epoch, { by, disks, contents, sent: [], isOpen: true });
  }

  sent(message: DataMessage | Extract<Message, { type: "sync" }>, by: PairMember): void {
    for (const followed of this.#followed.values()) {
      if (message.type === "sync") followed.isOpen = false;
      if (message.type === "sync" || !followed.isOpen || followed.by !== by) continue;
      for (const { kind, disk, offset, length, payload } of message.operations) {
        const write = new ModelWrite(offset, length, kind === "write" ? Buffer.from(payload) : undefined);
        followed.disks[disk]?.begin(write);
        followed.sent.push({ disk, write, isTold: false });
      }
    }
  }

  /** A guest was told of its write while the pair called itself Established. */
  acknowledged(by: PairMember, disk: number, told: ModelWrite): void {
    if (this.#ack === "async") return;
    for (const [epoch, followed] of this.#followed) {
      if (!followed.isOpen || followed.by !== by) continue;
      // Of two at a time the older one is committed.
      if (this.#isOldestOpen(epoch)) this.#promisedEpoch = epoch;
      const found = followed.sent.findLast(({ disk: on, write }) => on === disk && isSame(write, told));
      if (found === undefined || found.isTold) continue;
      found.isTold = true;
      // What is merely received comes into the images a little later, or with the promotion.
      if (this.#ack === "received") continue;
      found.write.settled = true;
      if (this.#durability === "power") followed.disks[disk]?.flushed(new Set([found.write]));
    }
  }

  /** What a failover has to return, as one comparable text. */
  describePromises(): string {
    const followed = [...this.#followed].map(([epoch, { sent, isOpen }]) => {
      const writes = sent.map(({ disk, write: { offset, length }, isTold }) => [disk, offset, length, isTold]);
      return [epoch, isOpen, writes];
    });
    return JSON.stringify([this.#promisedEpoch, followed]);
  }

  #isOldestOpen(epoch: number): boolean {
    for (const [other, { isOpen }] of this.#followed) if (isOpen && other < epoch) return false;
    return true;
  }

  /** What had been received, and no more, is lost with the process. */
  secondaryDied(): void {
    if (this.#ack === "applied") return;
    for (const { sent } of this.#followed.values()) for (const one of sent) one.isTold = false;
  }

  /** The secondary is promoted: whatever has been received is in its images. */
  promoted(epoch: number): readonly DiskModel[] {
    const disks = this.at(epoch);
    const promised = this.#promisedEpoch;
    assert(epoch >= promised, `a failover returns to ${epoch}, and guests were told that it returns ${promised}`);
    for (const { write, isTold } of this.#followed.get(epoch)?.sent ?? []) if (isTold) write.settled = true;
    return disks;
  }

  /** The disks as the secondary's view may show them. */
  at(epoch: number): readonly DiskModel[] {
    const followed = this.#followed.get(epoch);
    assert(followed !== undefined, `no barrier has closed epoch ${epoch}`);
    return followed.disks;
  }

  /** Where guests go on before a write is stable: all disks are of one moment of the stream, give or take one write. */
  checkPrefix(epoch: number, actual: readonly Buffer[]): void {
    const followed = this.#followed.get(epoch);
    if (this.#ack === "applied" || followed?.contents === undefined) return;
    const state = followed.contents.map((content) => Buffer.from(content));
    for (const next of [...followed.sent, undefined]) {
      if (state.every((content, disk) => isSameBut(content, actual[disk] ?? content, disk, next))) return;
      if (next !== undefined) apply(state[next.disk], next.write);
    }
    assert.fail(`the disks are of no one moment of the ${followed.sent.length} writes since checkpoint ${epoch}`);
  }
}

function isSame(one: ModelWrite, other: ModelWrite): boolean {
  if (one.offset !== other.offset || one.length !== other.length) return false;
  if (one.data === undefined || other.data === undefined) return one.data === other.data;
  return Buffer.compare(one.data, other.data) === 0;
}

/** Whether the disk is as `content`, but for bytes that `next` may have changed already. */
function isSameBut(content: Buffer, actual: Buffer, disk: number, next: Sent | undefined): boolean {
  if (next === undefined || next.disk !== disk) return content.equals(actual);
  const { offset, length } = next.write;
  const end = offset + length;
  if (!content.subarray(0, offset).equals(actual.subarray(0, offset))) return false;
  if (!content.subarray(end).equals(actual.subarray(end))) return false;
  for (let at = offset; at < end; at += 1) {
    if (actual[at] !== content[at] && actual[at] !== next.write.byteAt(at)) return false;
  }
  return true;
}

function apply(content: Buffer | undefined, { offset, length, data }: ModelWrite): void {
  if (data === undefined) content?.fill(0, offset, offset + length);
  else content?.set(data, offset);
}
