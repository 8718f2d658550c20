import assert from "node:assert/strict";
import type { JobStatus } from "../../proto/status.ts";
import type { ErrorCode } from "../../proto/errors.ts";
import type { LifeScene } from "./life-scene.ts";
import type { SeededRandom } from "./seeded-random.ts";

/** Why there may be nothing to compare with. */
const LEGAL_CODES: readonly ErrorCode[] = ["no-peer", "not-in-sync", "not-supported"];
const WITHIN_MS = 600_000;

/**
 * An operator who has the copies compared, pauses and cancels that, and must never be told that they differ, whatever
 * guests write and whatever goes wrong meanwhile.
 */
export class LifeVerify {
  readonly #scene: LifeScene;
  readonly #random: SeededRandom;

  constructor(scene: LifeScene, random: SeededRandom) {
    this.#scene = scene;
    this.#random = random;
  }

  /** Begins a comparison, or does something to the one that is under way. */
  do(): void {
    const { agent } = this.#scene.pair.primary;
    if (agent === undefined || this.#scene.pair.primary.status?.role !== "Primary") return;
    const job = this.#check().find(({ state }) => state !== "concluded");
    if (job !== undefined) {
      const verb = this.#random.pick(["cancel", "pause", "resume"] as const);
      this.#direct(job.id, verb);
      return;
    }
    const disk = this.#random.chance(0.3) ? this.#random.pick(this.#scene.plan.pair.disks).name : undefined;
    const speed = this.#random.pick([0, "dynamic", 65_536] as const);
    void this.#verify({ disk, speed, repair: this.#random.chance(0.5), wait: false });
  }

  /** At peace: everything is compared, and equal. */
  async all(): Promise<void> {
    const { pair, plan } = this.#scene;
    if (plan.pair.mode === "shared") return;
    for (const job of this.#check()) if (job.state !== "concluded") this.#direct(job.id, "cancel");
    for (;;) {
      if (this.#check().every(({ state }) => state === "concluded")) break;
      await this.#scene.world.sleep(10);
    }
    const job = await this.#verify({ disk: undefined, speed: 0, repair: false, wait: true });
    this.#check();
    const sizeBytes = plan.pair.disks.reduce((sum, disk) => sum + disk.sizeBytes, 0);
    assert.equal(job?.error, null, `the copies on ${pair.primary.name} and its secondary cannot be compared`);
    assert.equal(job.verify?.checkedBytes, sizeBytes);
  }

  async #verify(request: {
    readonly disk: string | undefined;
    readonly speed: number | "dynamic";
    readonly repair: boolean;
    readonly wait: boolean;
  }): Promise<JobStatus | undefined> {
    const { calls, pair } = this.#scene;
    const { agent } = pair.primary;
    if (agent === undefined) return undefined;
    this.#scene.world.note(`verify ${request.disk ?? "all"}`);
    const outcome = await calls.make(
      pair.primary,
      "verify",
      WITHIN_MS,
      () => agent.verify({ ...request, timeoutMs: WITHIN_MS }, new AbortController().signal),
      (ended) => {
        if (ended.kind === "failed") {
          assert(LEGAL_CODES.includes(ended.error.code), `verify failed with ${ended.error.code}`);
          assert(!request.wait, `the pair is in sync, and cannot be compared: ${ended.error.message}`);
        } else if (ended.kind === "done") this.#scene.counts.verifies += 1;
      },
    );
    return outcome.kind === "done" ? outcome.value : undefined;
  }

  #direct(id: string, verb: "cancel" | "pause" | "resume"): void {
    const { calls, pair } = this.#scene;
    const { agent } = pair.primary;
    if (agent === undefined) return;
    this.#scene.world.note(`job ${verb} ${id}`);
    void calls.make(
      pair.primary,
      `job ${verb}`,
      1,
      () => agent.job(id, verb),
      (ended) => assert(ended.kind !== "failed" || ended.error.code === "job-state"),
    );
  }

  /** The comparisons so far: none has found anything. */
  #check(): JobStatus[] {
    const jobs = (this.#scene.pair.primary.status?.jobs ?? []).filter(({ type }) => type === "verify");
    for (const { id, verify } of jobs) assert.equal(verify?.ranges, 0, `${id} has found a difference`);
    return jobs;
  }
}
