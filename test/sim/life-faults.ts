import type { FaultKind } from "./life-plan.ts";
import type { LifeScene } from "./life-scene.ts";
import type { PairMember } from "./pair.ts";
import type { SeededRandom } from "./seeded-random.ts";
import type { FaultRule } from "./storage-faults.ts";
import type { CutHeardBy, MessageFate, NetworkProfile } from "./sim-network.ts";

const DRAIN_MS = 3_000;
const STOP_LIMIT_MS = 30_000;
const OPERATOR_CALLS = ["checkpoint", "prepare", "commit", "discard", "failover", "stop"];

/**
 * What goes wrong in a life. A fault begins when it is injected and is over by itself some time later; a process that
 * has died is started again by the life.
 */
export class LifeFaults {
  readonly #scene: LifeScene;
  readonly #random: SeededRandom;
  readonly #profile: NetworkProfile;
  readonly #messages: SeededRandom;
  readonly #active = new Set<Promise<void>>();

  constructor(scene: LifeScene, random: SeededRandom) {
    this.#scene = scene;
    this.#random = random;
    this.#messages = random.fork("messages");
    this.#profile = scene.world.network.profile;
  }

  inject(kind: FaultKind): void {
    const { counts } = this.#scene;
    counts.faults[kind] = (counts.faults[kind] ?? 0) + 1;
    this.#scene.world.note(`fault: ${kind}`);
    this.#scene.disturb(true);
    const fault = this.#begin(kind).finally(() => {
      this.#active.delete(fault);
      this.#scene.disturb(false);
    });
    this.#active.add(fault);
  }

  /** Resolves when no fault is on any more, and none is still to come. */
  async over(): Promise<void> {
    while (this.#active.size > 0) await Promise.all(this.#active);
    for (const { host } of Object.values(this.#scene.pair) as PairMember[]) host.disk.faults.clear();
  }

  async #begin(kind: FaultKind): Promise<void> {
    const { primary, secondary } = this.#scene.pair;
    const { network } = this.#scene.world;
    switch (kind) {
      case "secondary-killed":
        secondary.host.crash("process");
        break;
      case "secondary-loses-power":
        secondary.host.crash("power");
        break;
      case "secondary-killed-in-call":
        secondary.host.disk.faults.crashAt(1 + this.#random.below(150), "process");
        break;
      case "secondary-loses-power-in-call":
        secondary.host.disk.faults.crashAt(1 + this.#random.below(150), "power");
        break;
      case "primary-killed":
        primary.host.crash("process");
        break;
      case "primary-killed-in-call":
        primary.host.disk.faults.crashAt(1 + this.#random.below(100), "process");
        break;
      case "primary-loses-power":
        primary.host.crash("power");
        break;
      case "secondary-stopped":
        await this.#stop(secondary);
        break;
      case "primary-stopped":
        await this.#stop(primary);
        break;
      case "secondary-frozen":
        await this.#freeze(secondary);
        break;
      case "primary-frozen":
        await this.#freeze(primary);
        break;
      case "secondary-full":
        await this.#fill(secondary);
        break;
      case "secondary-io-error":
        await this.#failCalls(secondary);
        break;
      case "link-cut":
        network.cut("a", "b", this.#random.pick<CutHeardBy>(["both", "both", "dialler", "acceptor", "nobody"]));
        break;
      case "partition":
        network.partition("a", "b", true);
        await this.#whileOn();
        network.partition("a", "b", false);
        break;
      case "one-way-partition": {
        const [from, to] = this.#random.pick([
          ["a", "b"],
          ["b", "a"],
        ] as const);
        network.block(from, to, true);
        await this.#whileOn();
        network.block(from, to, false);
        break;
      }
      case "slow-network": {
        network.profile = { ...this.#profile, latencyMs: [20, 200], bytesPerMs: 200 };
        await this.#whileOn();
        network.profile = this.#profile;
        break;
      }
      case "message-lost":
        await this.#spoilMessage("lose");
        break;
      case "message-repeated":
        await this.#spoilMessage("repeat");
        break;
    }
  }

  /** Shorter or longer than it takes to be noticed. */
  #whileOn(): Promise<void> {
    return this.#scene.world.sleep(this.#random.within([1, this.#random.pick([20, 1_000, 8_000])]));
  }

  /** One message of the next few, of whichever side; none, when a later fault of this kind begins first. */
  async #spoilMessage(fate: MessageFate): Promise<void> {
    const { network } = this.#scene.world;
    let before = this.#messages.below(30);
    const intercept = (): MessageFate => {
      before -= 1;
      if (before >= 0) return "deliver";
      network.intercept = undefined;
      this.#scene.messagesSpoiled += 1;
      return fate;
    };
    network.intercept = intercept;
    await this.#scene.world.sleep(this.#messages.within([1, 2_000]));
    if (network.intercept === intercept) network.intercept = undefined;
  }

  async #freeze(member: PairMember): Promise<void> {
    const { process } = member.host;
    if (!process.alive || process.frozen) return;
    const frozenMs = this.#scene.world.nowMs;
    process.freeze(true);
    await this.#whileOn();
    process.freeze(false);
    this.#scene.calls.extend(process, this.#scene.world.nowMs - frozenMs);
  }

  /** A clean stop, as a service manager does it, and the end of the process. */
  async #stop(member: PairMember): Promise<void> {
    const { host } = member;
    const { process } = host;
    if (member.agent === undefined || process.frozen || this.#scene.paused.has(process)) return;
    this.#scene.paused.add(process);
    await this.#scene.calls.drained(process, OPERATOR_CALLS);
    if (!process.alive) return;
    const outcome = await this.#scene.calls.make(
      member,
      "stop",
      STOP_LIMIT_MS,
      () => member.stop(DRAIN_MS),
      (ended) => {
        if (ended.kind === "failed" && !this.#scene.deviceCodes.includes(ended.error.code)) throw ended.error;
      },
    );
    if (outcome.kind !== "lost" && process.alive) host.crash("process");
  }

  /** The secondary's file system has next to nothing left for a while. */
  async #fill(member: PairMember): Promise<void> {
    if (this.#scene.model.committed === 0) return;
    const { disk } = member.host;
    disk.capacityBytes = disk.usedBytes + this.#random.below(16) * 4096;
    await this.#whileOn();
    disk.capacityBytes = Number.POSITIVE_INFINITY;
  }

  /** The device of the member refuses a few calls. */
  async #failCalls(member: PairMember): Promise<void> {
    const isBuffered = this.#scene.plan.pair.mode === "mc";
    const rules: readonly Omit<FaultRule, "error">[] = isBuffered
      ? BUFFER_RULES
      : [
          { op: "sync", kind: "state" },
          { op: ["write", "zero", "zeroAllocated"], kind: ["image", "generation-data", "active-data", "journal"] },
          { op: ["tryRead", "read"], kind: ["image", "generation-data", "active-data"] },
          { op: "sync" },
          { op: "sync", kind: "journal" },
          { op: "sync", kind: "generation-data" },
        ];
    const remove = member.host.disk.faults.inject({
      ...this.#random.pick(rules),
      error: "io-error",
      skip: this.#random.below(20),
      times: 1 + this.#random.below(3),
    });
    await this.#whileOn();
    remove();
    // What was refused may be found to have happened by the process that follows.
    if (this.#random.chance(0.5)) member.host.crash("process");
  }
}

/** What a device may refuse of a secondary that buffers. */
const BUFFER_RULES: readonly Omit<FaultRule, "error">[] = [
  { op: "sync", kind: "state" },
  { op: ["write", "zero", "zeroAllocated"], kind: ["image", "buffer-log", "active-data", "journal"] },
  { op: ["tryRead", "read"], kind: ["image", "buffer-log", "active-data"] },
  { op: "write", kind: "buffer-log" },
  { op: "sync" },
  { op: "sync", kind: "image" },
  { op: "sync", kind: "buffer-log" },
];
