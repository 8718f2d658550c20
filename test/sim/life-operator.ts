import assert from "node:assert/strict";
import type { ErrorCode } from "../../proto/errors.ts";
import { UNSTABLE_WINDOWS } from "../../proto/limits.ts";
import type { Outcome } from "./calls.ts";
import type { LifeScene } from "./life-scene.ts";
import { LifeVmStates } from "./life-vm-states.ts";
import type { SeededRandom } from "./seeded-random.ts";

/** What a checkpoint may end with beside success, when sessions come and go. */
const LEGAL_CODES: readonly ErrorCode[] = ["no-peer", "timed-out", "outcome-unknown", "too-many-prepared"];
/** What a commit may end with that waited for a VM state. */
const VM_STATE_CODES: readonly ErrorCode[] = ["vmstate-awaited", "vmstate-interrupted", "out-of-space"];
/** An answer comes at its timeout at the latest. */
const SLACK_MS = 1;
/** How often a patient operator looks at the secondary. */
const LOOK_MS = 1_000;
const GIVE_UP_WITHIN_MS = 60_000;
/** What one request of the guest, or piece of a resync, may put into the stream beyond the window. */
const REQUEST_MAX_BYTES = 256 * 1024;
const SYNC_PIECE_BYTES = 1024 * 1024;

/** The operator, or the hypervisor's hook: takes checkpoints, commits and withdraws them, and looks at the status. */
export class LifeOperator {
  readonly vmStates: LifeVmStates;
  readonly #scene: LifeScene;
  readonly #random: SeededRandom;

  constructor(scene: LifeScene, random: SeededRandom) {
    this.#scene = scene;
    this.#random = random;
    this.vmStates = new LifeVmStates(scene, random.fork("VM states"));
  }

  do(kind: "checkpoint" | "prepare" | "commit" | "discard"): void {
    switch (kind) {
      case "checkpoint":
        return this.#take(false);
      case "prepare":
        return this.#take(true);
      case "commit":
        return this.#commit();
      case "discard":
        return this.#discard();
    }
  }

  #take(prepare: boolean): void {
    const timeoutMs = this.#timeoutMs();
    const signal = this.#signal();
    if (this.vmStates.isDue()) void this.vmStates.take(prepare, timeoutMs, signal);
    else void this.takeCheckpoint(prepare, timeoutMs, signal);
  }

  /** Takes a checkpoint, and resolves with its epoch, or undefined when none was answered. */
  async takeCheckpoint(
    prepare: boolean,
    timeoutMs: number,
    signal = new AbortController().signal,
  ): Promise<number | undefined> {
    const { calls, model, pair } = this.#scene;
    const { agent } = pair.primary;
    if (agent === undefined) return undefined;
    const what = prepare ? "prepare" : "checkpoint";
    this.#scene.world.note(`${what} within ${timeoutMs} ms`);
    const outcome = await calls.make(
      pair.primary,
      what,
      timeoutMs + SLACK_MS,
      () => agent.checkpoint({ prepare, timeoutMs }, signal),
      (ended) => {
        this.#tell(what, ended);
        if (ended.kind === "failed") this.#assertLegal(what, ended, LEGAL_CODES);
        if (ended.kind !== "done") return;
        const { epoch, state } = ended.value;
        assert(model.isClosed(epoch), `checkpoint ${epoch} was taken, and no barrier was seen`);
        assert.equal(state, prepare ? "prepared" : "committed");
        this.#scene.observeCommitted();
        this.#observeSecondary();
      },
    );
    return outcome.kind === "done" ? outcome.value.epoch : undefined;
  }

  #commit(): void {
    const { calls, model, pair } = this.#scene;
    const { agent } = pair.primary;
    const prepared = pair.primary.status?.epoch.prepared ?? [];
    if (agent === undefined) return;
    const epoch = prepared.length === 0 ? model.committed + this.#random.below(2) : this.#random.pick(prepared);
    if (epoch === 0) return;
    const timeoutMs = this.#timeoutMs();
    this.#scene.world.note(`commit ${epoch}`);
    const signal = this.#signal();
    void calls.make(
      pair.primary,
      "commit",
      timeoutMs + SLACK_MS,
      () => agent.commit({ epoch, timeoutMs }, signal),
      (ended) => {
        this.#tell(`commit ${epoch}`, ended);
        if (ended.kind === "failed") {
          this.#assertLegal("commit", ended, [...LEGAL_CODES, "epoch-unknown", ...VM_STATE_CODES]);
          if (
            ended.error.code === "epoch-unknown" &&
            prepared.includes(epoch) &&
            agent.status().peers[0]?.connection === "Connected"
          ) {
            assert(!this.#preparedAlone(epoch), `epoch ${epoch} was prepared, and its commit is refused as unknown`);
          }
        }
        this.#scene.observeCommitted();
      },
    );
  }

  #discard(): void {
    const { calls, model, pair } = this.#scene;
    const { agent } = pair.primary;
    const prepared = pair.primary.status?.epoch.prepared ?? [];
    if (agent === undefined) return;
    const epoch = this.#random.chance(0.3) || prepared.length === 0 ? undefined : this.#random.pick(prepared);
    const timeoutMs = this.#timeoutMs();
    this.#scene.world.note(`discard ${epoch ?? "all"}`);
    const request = epoch === undefined ? { timeoutMs } : { epoch, timeoutMs };
    const signal = this.#signal();
    void calls.make(
      pair.primary,
      "discard",
      timeoutMs + SLACK_MS,
      () => agent.discard(request, signal),
      (ended) => {
        this.#tell("discard", ended);
        if (ended.kind === "failed") {
          this.#assertLegal("discard", ended, [...LEGAL_CODES, "epoch-committed", "epoch-unknown"]);
        } else if (ended.kind === "done") {
          if (epoch !== undefined && model.isClosed(epoch)) model.discardAnswered(epoch);
        }
      },
    );
  }

  /** Gives the checkpoint up whenever the secondary says that its overlays are full, until it is over. */
  async relieve(isOver: () => boolean): Promise<void> {
    for (;;) {
      await this.#scene.world.sleep(LOOK_MS);
      if (isOver()) return;
      if (this.#scene.pair.secondary.status?.protection.reason === "overlay-full") await this.giveUp();
    }
  }

  /** The overlays have no room for what is left to be sent: the checkpoint goes. */
  async giveUp(): Promise<void> {
    const { calls, model, pair } = this.#scene;
    const { agent } = pair.secondary;
    if (agent === undefined) return;
    this.#scene.world.note("the operator gives the checkpoint up");
    model.checkpointGivenUp();
    await calls.make(
      pair.secondary,
      "resync --give-up-checkpoint",
      GIVE_UP_WITHIN_MS + SLACK_MS,
      () => agent.resync({ giveUpCheckpoint: true, timeoutMs: GIVE_UP_WITHIN_MS }, new AbortController().signal),
      (ended) => {
        this.#tell("give-up", ended);
        if (ended.kind === "failed") this.#assertLegal("give-up", ended, []);
        this.#scene.observeCommitted();
      },
    );
  }

  /** Compares what both agents say with what can be. */
  look(): void {
    const { model, pair, plan } = this.#scene;
    this.#observeSecondary();
    const { status } = pair.primary;
    if (status === undefined || status.role !== "Primary") return;
    const { windowBytes } = plan.pair;
    const [peer] = status.peers;
    const boundBytes = windowBytes * UNSTABLE_WINDOWS + (plan.depth + 1) * REQUEST_MAX_BYTES + SYNC_PIECE_BYTES;
    if (peer?.connection === "Connected") {
      assert(peer.lagBytes <= boundBytes, `${peer.lagBytes} bytes are on their way, of ${boundBytes} at most`);
    }
    const isToldAll = model.counts.voided === 0 && pair.secondary.agent !== undefined;
    if (isToldAll && !pair.secondary.host.process.frozen) {
      assert(status.epoch.committed <= model.committed, "the primary knows of a commit that has not happened");
    }
  }

  #observeSecondary(): void {
    const { status } = this.#scene.pair.secondary;
    if (status?.role !== "Secondary") return;
    this.#scene.model.observeSecondary(status.epoch);
    if (this.vmStates.isDue()) void this.vmStates.check(this.#scene.pair.secondary);
  }

  /** Whether nothing but a commit of this very epoch was asked for since it was prepared. */
  #preparedAlone(epoch: number): boolean {
    const { status } = this.#scene.pair.secondary;
    return status?.epoch.prepared.includes(epoch) === true;
  }

  #tell(what: string, outcome: Outcome<unknown>): void {
    const how =
      outcome.kind === "failed" ? outcome.error.code : outcome.kind === "done" ? JSON.stringify(outcome.value) : "";
    this.#scene.world.note(`${what}: ${outcome.kind} ${how}`);
  }

  #assertLegal(
    what: string,
    outcome: Extract<Outcome<unknown>, { kind: "failed" }>,
    legal: readonly ErrorCode[],
  ): void {
    const { code, message } = outcome.error;
    assert([...legal, ...this.#scene.deviceCodes].includes(code), `${what} failed with ${code}: ${message}`);
  }

  #timeoutMs(): number {
    return this.#random.pick([100, 2_000, 20_000]);
  }

  /** Now and then the one who asked goes away. */
  #signal(): AbortSignal {
    const controller = new AbortController();
    if (this.#random.chance(0.05)) {
      this.#scene.world.schedule(
        this.#random.within([0, 50]),
        () => controller.abort(),
        this.#scene.pair.primary.host.process,
      );
    }
    return controller.signal;
  }
}
