import type { AgentEvent } from "../../proto/status.ts";
import type { ErrorCode } from "../../proto/errors.ts";
import { decodeSharedMark, SHARED_MARK_BYTES } from "../../proto/shared-mark-format.ts";
import { Calls } from "./calls.ts";
import type { ModelWrite } from "./disk-model.ts";
import type { FaultKind, LifePlan } from "./life-plan.ts";
import { MirrorStream } from "./mirror-stream.ts";
import { PairModel } from "./pair-model.ts";
import { makePair, MARK_PATH, type Pair, type PairDisk, type PairMember } from "./pair.ts";
import { SeededRandom } from "./seeded-random.ts";
import type { SimProcess } from "./sim-host.ts";
import { SimWorld } from "./world.ts";

const POOL_BYTES = 1024 * 1024;
let pool: Buffer | undefined;

/** What everybody who takes part in a life shares: the world, the pair, the model, and how long things have been quiet. */
export class LifeScene {
  readonly plan: LifePlan;
  readonly world: SimWorld;
  readonly pair: Pair;
  readonly model: PairModel;
  readonly calls: Calls;
  readonly counts = {
    operations: 0,
    failovers: 0,
    restarts: 0,
    congested: 0,
    vmStates: 0,
    verifies: 0,
    faults: {} as Partial<Record<FaultKind, number>>,
  };
  /** Processes whose clients make no new requests: they are being stopped. */
  readonly paused = new Set<SimProcess>();
  /** Faults that are on now. */
  #disturbances = 0;
  #primaryLineage: string | undefined;
  /** Messages that did not come once and in order. The agents have to notice each, unless its session ends first. */
  messagesSpoiled = 0;
  #quietSinceMs = 0;

  constructor(
    seed: number,
    options: {
      readonly replay: string;
      readonly print?: ((line: string) => void) | undefined;
      readonly draw: (random: SeededRandom) => LifePlan;
    },
  ) {
    this.world = new SimWorld(seed, { replay: options.replay, print: options.print });
    const { random } = this.world;
    this.plan = options.draw(random.fork("plan"));
    this.calls = new Calls(this.world);
    const contents = random.fork("contents");
    const drawContent = ({ sizeBytes }: PairDisk): Buffer => {
      const content = Buffer.alloc(sizeBytes);
      for (let at = 0; at < sizeBytes; at += 4096) {
        if (contents.chance(this.plan.filled)) content.set(this.bytes(contents, Math.min(4096, sizeBytes - at)), at);
      }
      return content;
    };
    const { disks } = this.plan.pair;
    const primary = disks.map(drawContent);
    // Sometimes the secondary starts with a copy, mostly with something else.
    const secondary = contents.chance(0.2) ? primary : disks.map(drawContent);
    const stream = this.plan.pair.mode === "mirror" ? new MirrorStream(this.plan.pair) : undefined;
    this.model = new PairModel(disks, primary, (member, event) => this.#happened(member, event), stream);
    this.pair = makePair(this.world, this.plan.pair, { primary, secondary }, this.model);
    this.model.watch(this.pair.primary);
    this.calls.isExcused = (process) => {
      const member = [this.pair.primary, this.pair.secondary].find(({ host }) => host.process === process);
      if (member === undefined) return false;
      const { status } = member;
      // On shared disks every change waits for the secondary.
      const waits = status?.mode === "shared" && status.peers[0]?.replication !== "Established";
      return waits || status?.protection.reason === "held";
    };
    this.world.network.profile = { ...this.world.network.profile, ...this.plan.network };
  }

  /** Bytes that nobody else has written, in all likelihood. They are never changed. */
  bytes(random: SeededRandom, length: number): Buffer {
    if (pool === undefined) {
      pool = Buffer.alloc(POOL_BYTES);
      new SeededRandom(1).fill(pool);
    }
    const at = random.below(POOL_BYTES - length);
    return pool.subarray(at, at + length);
  }

  /** What a call into the secondary may fail with because of its device; nothing when no device fails in this life. */
  get deviceCodes(): readonly ErrorCode[] {
    return this.plan.ioErrors ? ["io-error"] : [];
  }

  /**
   * What a reader of the secondary may be told where the primary of a shared disk may go on alone, and where the mark does
   * not name the secondary, durably: the primary writes it when it has heard of the commit.
   */
  get voidCodes(): readonly ErrorCode[] {
    const { mode, onPeerLoss } = this.plan.pair;
    if (mode !== "shared") return [];
    return onPeerLoss === "continue" || !this.#isNamed ? ["unprotected", "no-checkpoint"] : [];
  }

  /** Whether the mark of the shared disk, if there is one, says that the secondary's checkpoint stands. */
  get #isNamed(): boolean {
    const { secondary } = this.pair;
    if (this.plan.pair.isMarked !== true) return true;
    const content = secondary.host.disk.readDurable(MARK_PATH);
    if (content.length < SHARED_MARK_BYTES) return false;
    const decoded = decodeSharedMark(content.subarray(0, SHARED_MARK_BYTES));
    const agentId = secondary.status?.agentId ?? "";
    return decoded.kind === "mark" && decoded.mark.holders.includes(agentId);
  }

  disturb(on: boolean): void {
    this.#disturbances += on ? 1 : -1;
    this.#quietSinceMs = this.world.nowMs;
  }

  /** Something happened just now that may make the agents give each other up. */
  disturbed(): void {
    this.#quietSinceMs = this.world.nowMs;
  }

  /**
   * Looks whether the primary of a shared disk has gone on alone, which it may have died over without a word. From there
   * on the disk is overwritten without the secondary, which hears of it from the mark, or when it is back.
   */
  lookAtLineage(): void {
    if (this.plan.pair.mode !== "shared") return;
    const lineage = this.pair.primary.status?.lineage ?? undefined;
    if (lineage === undefined || lineage === this.#primaryLineage) return;
    if (this.#primaryLineage !== undefined) this.model.checkpointGivenUp();
    this.#primaryLineage = lineage;
  }

  /** A guest of the primary was told of its write. */
  acknowledged(disk: number, write: ModelWrite, by: PairMember): void {
    if (by !== this.pair.primary) return;
    if (by.status?.peers[0]?.replication === "Established") this.model.acknowledged(disk, write);
  }

  /** Notes the secondary's committed epoch as it is now. False when it is no secondary any more, or cannot be asked. */
  observeCommitted(): boolean {
    const { status } = this.pair.secondary;
    if (status?.role !== "Secondary") return false;
    this.model.observeCommitted(status.epoch.committed);
    return true;
  }

  #happened(member: PairMember, { type, data }: AgentEvent): void {
    if (type === "congested") this.counts.congested += 1;
    const code = typeof data.code === "string" ? data.code : "";
    const about = data.epoch ?? data.epochs ?? data.kind ?? data.message ?? "";
    this.world.note(`${member.name}: ${type} ${code} ${typeof about === "string" ? about : JSON.stringify(about)}`);
    if (type === "checkpoint-given-up" && member === this.pair.secondary) this.observeCommitted();
    if (member === this.pair.primary) this.lookAtLineage();
    if (type === "verify-difference") this.world.fail("a verify", new Error(`it reports ${JSON.stringify(data)}`));
    if (type === "guests-released") this.calls.restart(member.host.process);
    const isOfSpoiled = this.messagesSpoiled > 0 && /(?:^|")message \d+ of the peer came/.test(String(data.message));
    if (code === "internal" || (code === "protocol-error" && !isOfSpoiled)) {
      this.world.fail(`${member.name} reports ${type}`, new Error(String(data.message)));
    }
    const quietMs = this.#disturbances > 0 ? 0 : this.world.nowMs - this.#quietSinceMs;
    if (type === "peer-disconnected" && code === "peer-timeout" && quietMs > 3 * this.plan.pair.peerTimeoutMs) {
      this.world.fail(`${member.name} gave its peer up, and nothing was wrong`, new Error(String(data.message)));
    }
  }
}
