import assert from "node:assert/strict";
import { bufferedBytes, checkpointsUntilApplied } from "./buffered-bytes.ts";
import type { Status } from "../../proto/status.ts";
import { ReplicatedDisk } from "../../primary/replicated-disk.ts";
import { imagePath, urlOf, type PairMember } from "./pair.ts";
import type { ScriptedPair } from "./scripted-pair.ts";
import type { SimHost } from "./sim-host.ts";

/**
 * A scripted pair whose secondary is promoted: what an operator does for it, step by step. The first primary's guest
 * writes nothing once the two are apart, so that side is merely behind.
 */
const COMMAND = { timeoutMs: 60_000 } as const;
const CALL_MS = 70_000;
const ATTEMPTS_MAX = 3;
/** What is waited for is looked for at growing intervals. */
const STEP_MIN_MS = 2;
const STEP_MAX_MS = 250;

export class RoleSwap {
  readonly #scripted: ScriptedPair;
  readonly #mortal: SimHost;
  #isParted = false;
  /** The secondary serves, and the model's guest is its guest. */
  #isPromoted = false;

  /** What waits ends with the process that runs on `mortal` by then. */
  constructor(scripted: ScriptedPair, mortal: SimHost) {
    this.#scripted = scripted;
    this.#mortal = mortal;
  }

  get isParted(): boolean {
    return this.#isParted;
  }

  get isPromoted(): boolean {
    return this.#isPromoted;
  }

  get #first(): PairMember {
    return this.#scripted.pair.primary;
  }

  get #promoted(): PairMember {
    return this.#scripted.pair.secondary;
  }

  /**
   * What the first primary has sent has arrived, and the network parts the two; what `write` still writes there never
   * arrives. Resolves when the secondary knows.
   */
  async part(write: () => Promise<unknown> = () => Promise.resolve()): Promise<void> {
    if (this.#isParted) return;
    await this.until(() => statusOf(this.#first)?.peers[0]?.lagBytes === 0);
    this.setParted(true);
    await write();
    await this.until(() => statusOf(this.#promoted)?.peers[0]?.connection === "Connecting");
  }

  setParted(on: boolean): void {
    this.#isParted = on;
    this.#scripted.world.network.partition("a", "b", on);
  }

  /** False when the secondary died on the way. */
  async promote(discardActive: boolean): Promise<boolean> {
    const { model, calls } = this.#scripted;
    const { agent } = this.#promoted;
    const epoch = statusOf(this.#promoted)?.epoch;
    if (agent === undefined || epoch === undefined) return false;
    model.observeSecondary(epoch);
    const request = { force: false, dryRun: false, discardActive, ...COMMAND };
    const outcome = await calls.make(this.#promoted, "failover", CALL_MS, () => agent.failover(request, never()));
    if (outcome.kind === "failed") throw outcome.error;
    if (outcome.kind === "done") this.takenUp(discardActive);
    return outcome.kind === "done";
  }

  /** The record says that the secondary is promoted. */
  takenUp(discardActive: boolean): void {
    if (this.#isPromoted) return;
    this.#isPromoted = true;
    this.#scripted.model.promoted(discardActive);
    this.#scripted.model.watch(this.#promoted);
  }

  /** The promoted side shows its guest what it must; what it shows is known from then on. Never settles when it dies. */
  async readBack(): Promise<Buffer[]> {
    const contents: Buffer[] = [];
    for (const [index, disk] of this.#scripted.disks.entries()) {
      const content = Buffer.alloc(disk.sizeBytes);
      const device = this.#promoted.device(disk);
      // It has died: who waits is never told.
      if (device === undefined) return new Promise<never>(ignore);
      // Past the gate: guests may have to wait, but what they will see is there.
      await (device instanceof ReplicatedDisk ? device.child : device).read(content, 0);
      const model = this.#scripted.model.guest[index];
      model?.check(content, 0, `${disk.name} of the promoted side`);
      model?.adopt(content);
      contents.push(content);
    }
    return contents;
  }

  async merged(): Promise<void> {
    await this.#promoted.agent?.wait({ condition: "merged", ...COMMAND }, never());
  }

  /** The network is whole, and the first primary becomes the promoted side's secondary, in sync with it. */
  async rejoin(): Promise<void> {
    await this.merged();
    this.setParted(false);
    await this.until(() => {
      const status = statusOf(this.#first);
      return status?.role === "Secondary" || status?.protection.reason === "outdated";
    });
    const { agent } = this.#first;
    if (agent !== undefined && statusOf(this.#first)?.role === "Primary") {
      const outcome = await this.#scripted.calls.make(this.#first, "rejoin", CALL_MS, () =>
        agent.rejoin({ peer: urlOf("b"), ...COMMAND }, never()),
      );
      if (outcome.kind === "failed") throw outcome.error;
    }
    await this.#promoted.agent?.wait({ condition: "synced", ...COMMAND }, never());
  }

  /** A checkpoint of the promoted side. False when it was not taken. */
  async checkpoint(): Promise<boolean> {
    const { agent } = this.#promoted;
    if (agent === undefined) return false;
    const outcome = await this.#scripted.calls.make(this.#promoted, "checkpoint", CALL_MS, () =>
      agent.checkpoint({ prepare: false, ...COMMAND }, never()),
    );
    return outcome.kind === "done";
  }

  /** The two come together, and after the next checkpoint both images are what the promoted side's guest has seen. */
  async checkTogether(): Promise<void> {
    await this.rejoin();
    let isTaken = false;
    for (let attempt = 0; attempt < ATTEMPTS_MAX && !isTaken; attempt += 1) {
      await this.#promoted.agent?.wait({ condition: "synced", ...COMMAND }, never());
      isTaken = await this.checkpoint();
    }
    assert(isTaken, "the swapped pair can take no checkpoint");
    const { options } = this.#scripted;
    for (let left = checkpointsUntilApplied(options); left > 0; left -= 1) await this.checkpoint();
    if (options.mode === "mc") await this.until(() => bufferedBytes(this.#first) === 0);
    for (const [index, disk] of this.#scripted.disks.entries()) {
      const [promoted, first] = [this.#promoted, this.#first].map(({ host }) => host.disk.readFile(imagePath(disk)));
      assert(promoted !== undefined && first !== undefined);
      this.#scripted.model.guest[index]?.check(promoted, 0, `the image of ${disk.name} of the promoted side`);
      assert(first.equals(promoted), `the copies of ${disk.name} differ after the rejoin`);
    }
  }

  async until(condition: () => boolean): Promise<void> {
    for (let stepMs = STEP_MIN_MS; !condition(); stepMs = Math.min(STEP_MAX_MS, stepMs * 1.5)) {
      await this.#scripted.world.sleep(stepMs, this.#mortal.process);
    }
  }
}

/** undefined while its agent does not run. */
export function statusOf(member: PairMember): Status | undefined {
  return member.agent?.status();
}

function never(): AbortSignal {
  return new AbortController().signal;
}

function ignore(): void {
  // For promises that never settle.
}
