/** An agent without disks or peers: it answers the control API as the test tells it to, and remembers what it was asked. */
import type {
  AgentControl,
  BitmapRequest,
  BitmapStatus,
  BITMAP_VERBS,
  CheckpointAnswer,
  CheckpointRequest,
  ChildAnswer,
  ChildRequest,
  CommitAnswer,
  CommitRequest,
  ConnectAnswer,
  ConnectRequest,
  MeasureLinkAnswer,
  MeasureLinkRequest,
  DiscardAnswer,
  DiscardRequest,
  FailoverAnswer,
  FailoverRequest,
  JobRequest,
  JobVerb,
  MirrorRequest,
  RejoinAnswer,
  RejoinRequest,
  StartAloneAnswer,
  StartAloneRequest,
  StoredVmState,
  StoredVmStateRequest,
  SwitchoverAnswer,
  SwitchoverRequest,
  VmStateAnswer,
  VmStateRequest,
  ReloadAnswer,
  ResizeAnswer,
  ForgetAnswer,
  ForgetRequest,
  ResizeRequest,
  ResyncAnswer,
  ResyncRequest,
  RollbackAnswer,
  RollbackRequest,
  WaitAnswer,
  VerifyRequest,
  WaitRequest,
} from "../../proto/control-api.ts";
import type { AgentEvent, JobSpeed, JobStatus, Status } from "../../proto/status.ts";
import { ColobusError } from "../../proto/errors.ts";
import { EventLog } from "../../shared/control/event-log.ts";
import { ManualClock } from "./manual-clock.ts";
import { differingVerify, exampleBitmap, protectedPrimary } from "./status-examples.ts";

export interface RecordedCall {
  readonly name: string;
  readonly request: unknown;
  readonly signal: AbortSignal | undefined;
}

export class FakeAgentControl implements AgentControl {
  readonly clock = new ManualClock();
  readonly log = new EventLog(this.clock);
  readonly calls: RecordedCall[] = [];
  currentStatus: Status = protectedPrimary();
  linkFigures: MeasureLinkAnswer = {
    url: "ws://127.0.0.1:7800",
    roundTripMs: 0.4,
    clockAheadMs: 0.1,
    bytesPerSecond: 400_000_000,
    sentBytes: 6_291_456,
  };
  /** The VM state that was sent last. */
  taken = Buffer.alloc(0);
  /** The VM state that is to be read. */
  stored: StoredVmState | undefined;
  /** What the waiting calls do before they answer: throw, or wait. */
  before: (call: RecordedCall) => Promise<void> | void = () => {};

  status(): Status {
    return this.currentStatus;
  }

  metrics(): string {
    return 'colobus_protected{vm="web"} 1\n';
  }

  async checkpoint(request: CheckpointRequest, signal: AbortSignal): Promise<CheckpointAnswer> {
    await this.#called("checkpoint", request, signal);
    const epoch = this.currentStatus.epoch.open;
    return request.prepare
      ? { epoch, state: "prepared", prepareMs: 0.8, commitMs: null }
      : { epoch, state: "committed", prepareMs: 0.8, commitMs: 0.5 };
  }

  async commit(request: CommitRequest, signal: AbortSignal): Promise<CommitAnswer> {
    await this.#called("commit", request, signal);
    if (!this.currentStatus.epoch.prepared.includes(request.epoch)) {
      throw new ColobusError(
        "epoch-unknown",
        `Epoch ${request.epoch} is not prepared.`,
        "colobus status lists the prepared ones.",
      );
    }
    return { epoch: request.epoch, state: "committed", commitMs: 0.5 };
  }

  async checkpointWithVmState(
    request: VmStateRequest,
    content: AsyncIterator<Uint8Array, unknown>,
    signal: AbortSignal,
  ): Promise<CheckpointAnswer> {
    await this.#called("checkpointWithVmState", request, signal);
    await this.#takeContent(content);
    const { open: epoch } = this.currentStatus.epoch;
    return { epoch, state: "committed", prepareMs: 1, commitMs: 1, vmstateBytes: this.taken.length };
  }

  async receiveVmState(
    request: { readonly epoch?: number; readonly timeoutMs: number },
    content: AsyncIterator<Uint8Array, unknown>,
    signal: AbortSignal,
  ): Promise<VmStateAnswer> {
    await this.#called("receiveVmState", request, signal);
    await this.#takeContent(content);
    return { epoch: request.epoch ?? this.currentStatus.epoch.open, bytes: this.taken.length };
  }

  storedVmState(request: StoredVmStateRequest): StoredVmState {
    this.calls.push({ name: "storedVmState", request, signal: undefined });
    if (this.stored === undefined) throw new ColobusError("vmstate-missing", "No VM state is stored.", "Take one.");
    return this.stored;
  }

  async discard(request: DiscardRequest, signal: AbortSignal): Promise<DiscardAnswer> {
    await this.#called("discard", request, signal);
    return { discarded: request.epoch === undefined ? this.currentStatus.epoch.prepared : [request.epoch] };
  }

  async failover(request: FailoverRequest, signal: AbortSignal): Promise<FailoverAnswer> {
    await this.#called("failover", request, signal);
    const { role, mode, recoverable } = this.currentStatus;
    if (role === "Secondary" && recoverable === null) {
      throw new ColobusError(
        "no-checkpoint",
        "No checkpoint has been committed yet.",
        "Wait for the first sync to end.",
      );
    }
    const already = role === "Primary";
    return {
      already,
      dryRun: request.dryRun,
      startsVm: !already && !request.dryRun && request.startsVm === true,
      mode,
      epoch: recoverable?.epoch ?? 0,
      ageMs: recoverable?.ageMs ?? null,
      wouldLose: recoverable?.wouldLose ?? { writes: 0, bytes: 0, atLeast: false },
      discardedActiveBytes: request.discardActive ? 65_536 : 0,
      mergeBytes: already ? 0 : 67_108_864,
      jobs: already || request.dryRun ? [] : ["merge-1"],
    };
  }

  async rejoin(request: RejoinRequest, signal: AbortSignal): Promise<RejoinAnswer> {
    await this.#called("rejoin", request, signal);
    return { already: this.currentStatus.role === "Secondary", peer: request.peer, epoch: 42 };
  }

  async measureLink(request: MeasureLinkRequest, signal: AbortSignal): Promise<MeasureLinkAnswer> {
    await this.#called("measureLink", request, signal);
    return this.linkFigures;
  }

  async connect(request: ConnectRequest, signal: AbortSignal): Promise<ConnectAnswer> {
    await this.#called("connect", request, signal);
    return {
      dryRun: request.dryRun,
      connected: false,
      verdict: {
        kind: "split-brain",
        rule: "diverged",
        meaning: "This side and the peer were both written to since they parted.",
        peer: "b".repeat(32),
        source: null,
        extent: null,
        changedBytes: { here: 65_536, there: 1_048_576 },
      },
    };
  }

  async startAlone(request: StartAloneRequest): Promise<StartAloneAnswer> {
    await this.#called("startAlone", request, undefined);
    return { released: true };
  }

  async switchover(request: SwitchoverRequest, signal: AbortSignal): Promise<SwitchoverAnswer> {
    await this.#called("switchover", request, signal);
    return { role: "Secondary", lineage: "2".repeat(32) };
  }

  async reload(): Promise<ReloadAnswer> {
    await this.#called("reload", {}, undefined);
    return { applied: ["log-level"], needsRestart: ["window"] };
  }

  async resync(request: ResyncRequest, signal: AbortSignal): Promise<ResyncAnswer> {
    await this.#called("resync", request, signal);
    if (!request.giveUpCheckpoint) return { outcome: "resumed", job: "resync-1", givenUpEpoch: null };
    return { outcome: "given-up", job: null, givenUpEpoch: this.currentStatus.epoch.committed };
  }

  async changeChild(request: ChildRequest, signal: AbortSignal): Promise<ChildAnswer> {
    await this.#called("changeChild", request, signal);
    const { disk, name, image } = request;
    const local = { name: "local", kind: "image", path: `/images/${disk}.img`, state: "sound" } as const;
    const added = image === undefined ? [] : [{ name, kind: "image", path: image, state: "syncing" } as const];
    return { disk, children: [local, ...added] };
  }

  async resize(request: ResizeRequest, signal: AbortSignal): Promise<ResizeAnswer> {
    await this.#called("resize", request, signal);
    const { disk, sizeBytes } = request;
    return { disk, sizeBytes, formerSizeBytes: sizeBytes / 2, grownPeers: 1 };
  }

  async forget(request: ForgetRequest, signal: AbortSignal): Promise<ForgetAnswer> {
    await this.#called("forget", request, signal);
    return { agentId: request.peer, url: null };
  }

  async rollback(request: RollbackRequest, signal: AbortSignal): Promise<RollbackAnswer> {
    await this.#called("rollback", request, signal);
    return { epoch: request.epoch, fromEpoch: this.currentStatus.epoch.committed };
  }

  async verify(request: VerifyRequest, signal: AbortSignal): Promise<JobStatus> {
    await this.#called("verify", request, signal);
    return differingVerify(request);
  }

  bitmaps(): BitmapStatus[] {
    return [
      exampleBitmap("vda", "backup"),
      { ...exampleBitmap("vda", "old"), state: "inconsistent", fault: "role-changed" },
    ];
  }

  async bitmap(
    verb: (typeof BITMAP_VERBS)[number],
    request: BitmapRequest,
    signal: AbortSignal,
  ): Promise<BitmapStatus> {
    await this.#called(`bitmap ${verb}`, request, signal);
    return { ...exampleBitmap(request.disk, request.name), ...(verb === "remove" ? {} : { dirtyBytes: 0 }) };
  }

  async wait(request: WaitRequest, signal: AbortSignal): Promise<WaitAnswer> {
    await this.#called("wait", request, signal);
    return { condition: request.condition };
  }

  jobs(): JobStatus[] {
    return this.currentStatus.jobs;
  }

  async mirror(request: MirrorRequest, signal: AbortSignal): Promise<JobStatus> {
    await this.#called("mirror", request, signal);
    const { disk, target } = request;
    return { ...this.#find("full-sync-1"), id: "mirror-2", type: "mirror", disk, target };
  }

  async job(id: string, verb: JobVerb, { force }: JobRequest = { force: false }): Promise<JobStatus> {
    await this.#called("job", force ? { id, verb, force } : { id, verb }, undefined);
    const state = { pause: "paused", resume: "running", cancel: "aborting", complete: "concluded" } as const;
    return { ...this.#find(id), state: state[verb] };
  }

  async setJobSpeed(id: string, speed: JobSpeed): Promise<JobStatus> {
    await this.#called("setJobSpeed", { id, bytesPerSecond: speed }, undefined);
    return { ...this.#find(id), speedLimit: speed };
  }

  events(afterSequence: number): AgentEvent[] {
    return this.log.since(afterSequence);
  }

  follow(listener: (event: AgentEvent) => void): () => void {
    return this.log.follow(listener);
  }

  #find(id: string): JobStatus {
    const job = this.currentStatus.jobs.find((other) => other.id === id);
    if (job === undefined) throw new ColobusError("job-unknown", `There is no job ${id}.`, "colobus jobs lists them.");
    return job;
  }

  async #takeContent(content: AsyncIterator<Uint8Array, unknown>): Promise<void> {
    const pieces: Uint8Array[] = [];
    for (let next = await content.next(); next.done !== true; next = await content.next()) pieces.push(next.value);
    this.taken = Buffer.concat(pieces);
  }

  async #called(name: string, request: unknown, signal: AbortSignal | undefined): Promise<void> {
    const call = { name, request, signal };
    this.calls.push(call);
    await this.before(call);
  }
}

/** Settles only when the client, or the server, gives the call up. */
export function untilAborted({ signal }: RecordedCall): Promise<void> {
  return new Promise((_resolve, reject) => {
    signal?.addEventListener("abort", () => reject(signal.reason as Error), { once: true });
  });
}
