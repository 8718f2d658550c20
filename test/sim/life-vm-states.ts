import assert from "node:assert/strict";
import type { ErrorCode } from "../../proto/errors.ts";
import { ColobusError } from "../../proto/errors.ts";
import { VMSTATE_CHUNK_BYTES } from "../../proto/limits.ts";
import type { LifeScene } from "./life-scene.ts";
import { vmStateBytesOf } from "./pair-model.ts";
import type { PairMember } from "./pair.ts";
import type { SeededRandom } from "./seeded-random.ts";

/** What a state may end with beside success, when sessions come and go, and others withdraw and commit checkpoints. */
const LEGAL_CODES: readonly ErrorCode[] = [
  "no-peer",
  "timed-out",
  "outcome-unknown",
  "too-many-prepared",
  "vmstate-busy",
  "vmstate-interrupted",
  "vmstate-awaited",
  "epoch-unknown",
  "epoch-committed",
  "out-of-space",
];
const SLACK_MS = 1;
const READ_WITHIN_MS = 60_000;

/**
 * The hypervisor: takes checkpoints with a VM state, whose bytes tell the epoch that they belong to, and reads back what
 * is stored. A checkpoint whose barrier says that a state follows must never be committed without it, or with another's.
 */
export class LifeVmStates {
  readonly #scene: LifeScene;
  readonly #random: SeededRandom;

  constructor(scene: LifeScene, random: SeededRandom) {
    this.#scene = scene;
    this.#random = random;
  }

  /** Whether the next checkpoint is one with a state. */
  isDue(): boolean {
    return this.#random.chance(this.#scene.plan.vmStateShare);
  }

  /** Takes a checkpoint with a state, and commits it unless only that is asked for. */
  async take(prepare: boolean, timeoutMs: number, signal: AbortSignal): Promise<void> {
    const { calls, model, pair } = this.#scene;
    const { agent } = pair.primary;
    if (agent === undefined) return;
    const { process } = pair.primary.host;
    this.#scene.world.note(`checkpoint with a VM state within ${timeoutMs} ms`);
    const barrier = await calls.make(
      pair.primary,
      "checkpoint",
      timeoutMs + SLACK_MS,
      () => agent.checkpoint({ prepare: true, vmstate: true, timeoutMs }, signal),
      (ended) => {
        if (ended.kind === "failed") this.#assertLegal("the barrier", ended.error);
      },
    );
    if (barrier.kind !== "done") return;
    const { epoch } = barrier.value;
    assert(model.isClosed(epoch), `checkpoint ${epoch} was taken, and no barrier was seen`);
    if (!process.alive || this.#random.chance(0.05)) return; // the hypervisor has died meanwhile
    const bytes = this.#bytesOf(epoch);
    const sent = await calls.make(
      pair.primary,
      "vmstate",
      timeoutMs + SLACK_MS,
      () => agent.receiveVmState({ epoch, timeoutMs }, bytes, signal),
      (ended) => {
        this.#scene.world.note(`the VM state of ${epoch}: ${ended.kind === "failed" ? ended.error.code : ended.kind}`);
        if (ended.kind === "failed") this.#assertLegal("the state", ended.error);
      },
    );
    if (sent.kind !== "done" || prepare || !process.alive) return;
    this.#scene.counts.vmStates += 1;
    await calls.make(
      pair.primary,
      "commit",
      timeoutMs + SLACK_MS,
      () => agent.commit({ epoch, timeoutMs }, signal),
      (ended) => {
        this.#scene.world.note(
          `commit ${epoch} with its VM state: ${ended.kind === "failed" ? ended.error.code : ended.kind}`,
        );
        if (ended.kind === "failed") this.#assertLegal("the commit", ended.error);
        this.#scene.observeCommitted();
      },
    );
  }

  /** What the member says of the state that a VM can be started from, and the state itself, are the committed epoch's. */
  async check(member: PairMember): Promise<void> {
    const { calls, model } = this.#scene;
    const { agent } = member;
    const { status } = member;
    if (agent === undefined || status === undefined) return;
    const { committed } = status.epoch;
    const expected = model.vmStateOf(committed);
    const named = status.vmstate;
    assert.deepEqual(
      named,
      expected === undefined ? null : { epoch: committed, bytes: expected.length },
      `the VM state of epoch ${committed}`,
    );
    if (expected === undefined) return;
    const { content } = agent.storedVmState({ force: false });
    await calls.make(
      member,
      "stored vmstate",
      READ_WITHIN_MS,
      async () => {
        const pieces: Uint8Array[] = [];
        for await (const piece of content) pieces.push(piece);
        return Buffer.concat(pieces);
      },
      (ended) => {
        if (ended.kind === "failed") {
          assert(this.#scene.deviceCodes.includes(ended.error.code), `the VM state: ${ended.error.message}`);
        }
        if (ended.kind === "done") assert(ended.value.equals(expected), `the VM state of ${committed} is another one`);
      },
    );
  }

  /** Comes in pieces, with pauses, and now and then breaks off. */
  async *#bytesOf(epoch: number): AsyncGenerator<Uint8Array, void, undefined> {
    const bytes = vmStateBytesOf(epoch);
    const breaksAt = this.#random.chance(0.15) ? this.#random.below(bytes.length) : undefined;
    for (let at = 0; at < bytes.length;) {
      if (breaksAt !== undefined && at >= breaksAt) throw new ColobusError("connection-lost", "the hypervisor died");
      const length = 1 + this.#random.below(this.#random.pick([4096, VMSTATE_CHUNK_BYTES]));
      yield bytes.subarray(at, at + length);
      at += length;
      if (this.#random.chance(0.3)) await this.#scene.world.sleep(this.#random.pick([0.1, 5, 300]));
    }
  }

  #assertLegal(what: string, { code, message }: ColobusError): void {
    assert([...LEGAL_CODES, ...this.#scene.deviceCodes].includes(code), `${what} failed with ${code}: ${message}`);
  }
}
