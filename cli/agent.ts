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
  DiscardAnswer,
  DiscardRequest,
  FailoverAnswer,
  FailoverRequest,
  ForgetAnswer,
  ForgetRequest,
  JobRequest,
  JobVerb,
  MirrorRequest,
  RejoinAnswer,
  RejoinRequest,
  StartAloneAnswer,
  StartAloneRequest,
  StoredVmState,
  StoredVmStateRequest,
  ReloadAnswer,
  ResizeAnswer,
  ResizeRequest,
  ResyncAnswer,
  ResyncRequest,
  RollbackAnswer,
  RollbackRequest,
  SwitchoverAnswer,
  SwitchoverRequest,
  VerifyRequest,
  VmStateAnswer,
  VmStateRequest,
  WaitAnswer,
  WaitRequest,
} from "../proto/control-api.ts";
import type { AgentEvent, JobSpeed, JobStatus, Status } from "../proto/status.ts";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { AGENT_VERSION } from "../proto/versions.ts";
import { type EventType, type Role, type WaitCondition } from "../proto/words.ts";
import { describeMirror } from "../primary/mirror-record.ts";
import type { PrimaryRole } from "../primary/primary-role.ts";
import type { SecondaryRole } from "../secondary/secondary-role.ts";
import { imageUseOf, type ImageSource } from "../shared/block/disk-image.ts";
import { FileImages } from "../shared/block/file-images.ts";
import { ImageServers } from "../shared/block/image-servers.ts";
import { EventLog } from "../shared/control/event-log.ts";
import { Deadline } from "../shared/host/deadline.ts";
import { JobList } from "../shared/jobs/job-list.ts";
import { SharedMark } from "../shared/journal/shared-mark.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { Link } from "../shared/replication/link.ts";
import type { AgentOptions } from "./agent-host.ts";
import { AgentMetrics } from "./agent-metrics.ts";
import { AgentRoles, beingStopped } from "./agent-roles.ts";
import { openAgentState, started } from "./agent-state.ts";
import { describeFailoverKind, openArbitration, type Arbitration } from "./arbitration.ts";
import { changeChild } from "./change-child.ts";
import { CheckpointChanges } from "./checkpoint-changes.ts";
import { DiskExports } from "./disk-export.ts";
import { Failovers } from "./failovers.ts";
import { describePlaces } from "./host-losses.ts";
import { assertEpochs } from "./no-epochs.ts";
import { ProtectionWatch } from "./protection-watch.ts";
import { resizeDisk } from "./resize-disk.ts";
import { RoleCommands } from "./role-commands.ts";
import type { RoleSurroundings } from "./role-parts.ts";
import { StallWatch } from "./stall-watch.ts";
import { StateWatch } from "./state-watch.ts";
import { StoredVmStates } from "./stored-vm-states.ts";
import { logTransition } from "./transition-log.ts";
import { describePrimary, describeSecondary, isReached } from "./role-status.ts";

/**
 * One agent: the disks of one VM in one role at a time, its exports, its jobs and its events. It is written against
 * interfaces and holds no socket: `agent-process.ts` gives it those of the machine, the simulator its own.
 */
export class Agent implements AgentControl {
  readonly exports = new DiskExports(() => this.#state.record.disks.map(({ name }) => name));
  readonly #options: AgentOptions;
  readonly #state: StateFile;
  readonly #events: EventLog;
  readonly #metrics = new AgentMetrics();
  readonly #jobs: JobList;
  readonly #roles: AgentRoles;
  readonly #roleCommands: RoleCommands;
  readonly #arbitration: Arbitration | undefined;
  #stopping = false;
  /** Aborts when the agent is about to stop: hooks are ended. */
  readonly #leaving = new AbortController();
  readonly #failovers: Failovers;
  readonly #changes: CheckpointChanges;
  readonly #stateWatch: StateWatch;
  readonly #protectionWatch: ProtectionWatch;
  readonly #stallWatch: StallWatch;
  readonly #vmStates: StoredVmStates;
  readonly #imageServers: ImageServers;

  private constructor(
    options: AgentOptions,
    state: StateFile,
    images: ImageSource,
    { sharedMark, isMarkOwn }: Pick<RoleSurroundings, "sharedMark" | "isMarkOwn">,
  ) {
    this.#options = options;
    this.#state = state;
    this.#events = new EventLog(options.host.clock);
    this.#events.follow((event) => this.#metrics.count(event));
    this.#events.follow((event) => logTransition(options.host.log, event));
    this.#stateWatch = new StateWatch({ ...options.host, state, emit: (type, data) => this.#emit(type, data) });
    this.#stallWatch = new StallWatch({ ...options.host, emit: (type, data) => this.#emit(type, data) });
    this.#imageServers = new ImageServers({ ...options.host, emit: (type, data) => this.#emit(type, data) });
    this.#protectionWatch = new ProtectionWatch({
      ...options.host,
      describe: () => this.#ownFaults() ?? this.#roles.activeRole.describeProtection(),
      checkpointAgeMs: () => this.#roles.activeRole.describeRecoverable()?.ageMs,
      maxCheckpointAgeMs: () => options.config.maxCheckpointAgeMs,
      changed: (protection) => this.#emit("protection-changed", { ...protection }),
    });
    this.#changes = new CheckpointChanges({
      clock: options.host.clock,
      secondary: (command) => this.#secondary(command),
      settled: () => this.#failovers.ended(),
    });
    this.#jobs = new JobList(options.host.clock, (job) =>
      this.#emit("job-changed", { id: job.id, type: job.type, state: job.state, error: job.error?.toJSON() ?? null }),
    );
    this.#failovers = new Failovers({
      ...options.host,
      state,
      jobs: this.#jobs,
      get fence() {
        return options.fence;
      },
      signal: this.#leaving.signal,
      roles: () => this.#roles,
      takeover: () => this.#arbitration?.takeover,
      promoted: (epoch) => void this.#startVm(epoch),
      settled: () => this.#changes.settled(),
    });
    const emit = (type: EventType, data: Record<string, unknown>): void => this.#emit(type, data);
    this.#arbitration = openArbitration(options, state, emit, {
      candidate: () => this.#candidate(),
      assertFit: (secondary) => this.#failovers.assertFit(secondary),
      failOver: () => this.#failovers.takeOver(),
    });
    this.#roles = new AgentRoles({
      agent: options,
      state,
      images: this.#imageServers.watching(images),
      adopted: (disk, image) => this.#imageServers.watch(disk, image),
      childImages: images,
      sharedMark,
      isMarkOwn,
      exports: this.exports,
      jobs: this.#jobs,
      lease: this.#arbitration?.lease,
      promises: this.#arbitration?.takeover.promise.pulse,
      emit,
      changed: () => this.#roleCommands.changed(),
    });
    this.#vmStates = new StoredVmStates({
      store: this.#roles.vmStates,
      record: () => state.record,
      isUntouched: () => this.#roles.isUntouched,
    });
    const { clock, random } = options.host;
    this.#roleCommands = new RoleCommands({ roles: this.#roles, state, exports: this.exports, clock, random });
  }

  /** Opens the state and the disks, and takes up the recorded role. Errors name what is wrong and what to do. */
  static async open(options: AgentOptions): Promise<Agent> {
    const { host, config } = options;
    const images = host.images ?? new FileImages(host.storage, host.log);
    let state: StateFile;
    try {
      state = await openAgentState({ ...host, images }, config);
    } catch (error) {
      images.release();
      throw error;
    }
    let agent: Agent;
    try {
      const sharedMark = openSharedMark(options, state);
      await sharedMark?.assertNobodyMerges(host.log);
      if (state.record.role === "Secondary") await sharedMark?.withdraw(host.log);
      else if (state.record.merge === null) await sharedMark?.endMerge(host.log);
      const isMarkOwn = (await sharedMark?.isOwn(host.log)) ?? false;
      await images.prepare(state.record.disks, imageUseOf(state.record));
      agent = new Agent(options, state, images, { sharedMark, isMarkOwn });
    } catch (error) {
      images.release();
      await state.close();
      throw error;
    }
    // Only now is everything recovered that another boot id, or the last clean stop, decides about.
    try {
      await agent.#roles.begin();
      await state.update((record) => started(record, host, config));
    } catch (error) {
      agent.#roles.abandon();
      await state.close();
      throw error;
    }
    agent.#start();
    return agent;
  }

  get role(): Role {
    return this.#roles.active.role;
  }

  /** Takes a link that a peer has opened. */
  accept(link: Link): void {
    this.#roles.accept(link);
  }

  /**
   * The agent is about to stop: requests that would wait for the peer fail from now on, so that their clients can be sent away;
   * nobody is fenced or promoted any more, and no VM is started.
   */
  leave(): void {
    this.#leaving.abort(beingStopped());
    this.#roles.leave();
  }

  /**
   * Ends the role: sessions are left, disks are flushed and closed; `waitsFor` is told what that waits for, once failovers,
   * commands and jobs have ended. Exports must have no client left. Errors: what kept that from being clean, an image's flush
   * or the state record; nothing is open then either, and the next start recovers as after a crash.
   */
  async stop(drainMs: number, waitsFor: (what: string) => void = () => {}): Promise<void> {
    if (this.#stopping) return;
    this.#stopping = true;
    this.#roles.beginStop();
    this.#leaving.abort(beingStopped());
    this.#emit("agent-stopping", {});
    this.exports.withdrawAll(beingStopped());
    this.#arbitration?.takeover.stop();
    try {
      await this.#failovers.ended(); // the role is settled now
      await this.#changes.settled();
      await this.#jobs.stop(beingStopped());
      this.#stateWatch.stop();
      this.#protectionWatch.stop();
      this.#stallWatch.stop();
      this.#imageServers.stop();
      await this.#roles.stop(drainMs, waitsFor);
    } finally {
      await this.#state.close();
    }
  }

  status(): Status {
    const { record } = this.#state;
    const { config, host } = this.#options;
    const { active } = this.#roles;
    const view =
      active.role === "Primary"
        ? describePrimary(active.primary, this.#roles.promoted)
        : describeSecondary(active.secondary);
    const status = {
      role: record.role,
      vm: record.vm,
      mode: record.mode,
      agentId: record.agentId,
      agentVersion: AGENT_VERSION,
      pid: host.pid,
      lineage: record.lineage,
      durability: record.durability,
      ack: config.ack,
      clusterBytes: record.clusterBytes,
      ...view,
      failover: describeFailoverKind(this.#options, this.#arbitration),
      peers: view.peers.map((peer) => ({
        ...peer,
        lastError: peer.lastError ?? this.#imageServers.fault?.toJSON() ?? null,
      })),
      protection: this.#ownFaults() ?? view.protection,
      jobs: this.jobs(),
      exports: this.exports.list().map((diskExport) => ({
        name: diskExport.name,
        uri: this.#options.exportUri(diskExport.name),
        readOnly: diskExport.readOnly,
        clients: this.exports.clientsOf(diskExport.name),
      })),
      vmstate: this.#vmStates.describe(),
      eventLoopDelay: this.#stallWatch.describe(),
    };
    const own = { here: host.hostName, onPeerLoss: config.onPeerLoss, record };
    return { ...status, ...describePlaces(status, own) };
  }

  metrics(): string {
    return this.#metrics.render(this.status(), this.exports.disks(), this.#options.host.processFigures?.());
  }

  async checkpoint(request: CheckpointRequest, signal: AbortSignal): Promise<CheckpointAnswer> {
    assertEpochs(this.#state.record.mode, "checkpoint");
    if (request.vmstate === true && !request.prepare) {
      throw new ColobusError(
        "usage",
        "a checkpoint that awaits its VM state cannot be committed at once",
        "Ask with `prepare`, send the state, and commit then.",
      );
    }
    return this.#primary("checkpoint").checkpoints.checkpoint(request, signal);
  }

  async checkpointWithVmState(
    request: VmStateRequest,
    content: AsyncIterator<Uint8Array, unknown>,
    signal: AbortSignal,
  ): Promise<CheckpointAnswer> {
    assertEpochs(this.#state.record.mode, "checkpoint");
    return this.#primary("checkpoint").vmStates.checkpoint(request, content, signal);
  }

  async receiveVmState(
    request: { readonly epoch?: number; readonly timeoutMs: number },
    content: AsyncIterator<Uint8Array, unknown>,
    signal: AbortSignal,
  ): Promise<VmStateAnswer> {
    assertEpochs(this.#state.record.mode, "checkpoint");
    return this.#primary("checkpoint").vmStates.receive(request, content, signal);
  }

  storedVmState(request: StoredVmStateRequest): StoredVmState {
    return this.#vmStates.open(request);
  }

  async commit(request: CommitRequest, signal: AbortSignal): Promise<CommitAnswer> {
    assertEpochs(this.#state.record.mode, "commit");
    return this.#primary("commit").vmStates.commit(request, signal);
  }

  async discard(request: DiscardRequest, signal: AbortSignal): Promise<DiscardAnswer> {
    assertEpochs(this.#state.record.mode, "discard");
    return this.#primary("discard").vmStates.discard(request, signal);
  }

  failover(request: FailoverRequest, signal: AbortSignal): Promise<FailoverAnswer> {
    return this.#failovers.run(request, signal);
  }

  rejoin(request: RejoinRequest, signal: AbortSignal): Promise<RejoinAnswer> {
    return this.#roleCommands.rejoin(request, signal);
  }

  connect(request: ConnectRequest, signal: AbortSignal): Promise<ConnectAnswer> {
    return this.#roleCommands.connect(request, signal);
  }

  measureLink: AgentControl["measureLink"] = (request, signal) => this.#roleCommands.measureLink(request, signal);

  startAlone(request: StartAloneRequest): Promise<StartAloneAnswer> {
    return this.#roleCommands.startAlone(request);
  }

  switchover(request: SwitchoverRequest, signal: AbortSignal): Promise<SwitchoverAnswer> {
    return this.#roleCommands.switchover(request, signal);
  }

  async reload(): Promise<ReloadAnswer> {
    const { reload, config } = this.#options;
    if (reload === undefined) throw new ColobusError("not-applicable", "this agent has no configuration to read anew");
    const { answer, settings } = await reload();
    Object.assign(config, settings);
    if (settings.resyncSpeed !== undefined) {
      for (const job of this.#jobs.all()) if (job.state !== "concluded") job.setSpeed(settings.resyncSpeed);
    }
    this.#roles.settingsChanged(settings);
    this.#emit("config-reloaded", { ...answer });
    return answer;
  }

  async resync(request: ResyncRequest, signal: AbortSignal): Promise<ResyncAnswer> {
    return request.giveUpCheckpoint ? this.#changes.giveUp(request, signal) : this.#primary("resync").resync();
  }

  async rollback(request: RollbackRequest, signal: AbortSignal): Promise<RollbackAnswer> {
    assertEpochs(this.#state.record.mode, "rollback");
    return this.#changes.rollBack(request, signal);
  }

  async verify(request: VerifyRequest, signal: AbortSignal): Promise<JobStatus> {
    const job = this.#primary("verify").verify(request);
    if (request.wait) {
      const deadline = new Deadline(this.#options.host.clock, request.timeoutMs, signal);
      try {
        await deadline.race(job.finished(), `${job.id} goes on`);
      } finally {
        deadline.end();
      }
    }
    return job.describe();
  }

  resize(request: ResizeRequest, signal: AbortSignal): Promise<ResizeAnswer> {
    const { host, dropClients } = this.#options;
    return resizeDisk(
      { primary: this.#primary("resize"), roles: this.#roles, dropClients },
      request,
      host.clock,
      signal,
    );
  }

  forget(request: ForgetRequest, signal: AbortSignal): Promise<ForgetAnswer> {
    return this.#roleCommands.forget(request, signal);
  }

  changeChild(request: ChildRequest, signal: AbortSignal): Promise<ChildAnswer> {
    return changeChild(this.#primary("child"), request, this.#options, signal);
  }

  bitmaps(): BitmapStatus[] {
    return this.#primary("bitmap").bitmaps.list();
  }

  async bitmap(
    verb: (typeof BITMAP_VERBS)[number],
    { disk, name, timeoutMs }: BitmapRequest,
    signal: AbortSignal,
  ): Promise<BitmapStatus> {
    const deadline = new Deadline(this.#options.host.clock, timeoutMs, signal);
    try {
      return await deadline.race(this.#primary("bitmap").bitmaps[verb](disk, name), `bitmap ${verb} goes on`);
    } finally {
      deadline.end();
    }
  }

  async wait(request: WaitRequest, signal: AbortSignal): Promise<WaitAnswer> {
    const deadline = new Deadline(this.#options.host.clock, request.timeoutMs, signal);
    let unfollow = (): void => undefined;
    const reached = new Promise<void>((resolve) => {
      const look = (): void => {
        if (this.#isReached(request.condition)) resolve();
      };
      unfollow = this.#events.follow(look);
      look();
      // The end of one that failed is no event.
      void this.#failovers.ended().then(look);
    });
    try {
      await deadline.race(reached, `"${request.condition}" is not reached yet`);
      return { condition: request.condition };
    } finally {
      unfollow();
      deadline.end();
    }
  }

  jobs(): JobStatus[] {
    const jobs = this.#jobs.all().map((job) => job.describe());
    const others = this.#state.record.mirrors.filter((mark) => !jobs.some(({ id }) => id === mark.id));
    return [...others.map(describeMirror), ...jobs];
  }

  async mirror(request: MirrorRequest, signal: AbortSignal): Promise<JobStatus> {
    return (await this.#primary("mirror").mirrors.begin(request, signal)).describe();
  }

  async job(id: string, verb: JobVerb, request?: JobRequest): Promise<JobStatus> {
    const job = this.#jobs.get(id);
    job.apply(verb, request);
    await job.kept();
    return job.describe();
  }

  async setJobSpeed(id: string, speed: JobSpeed): Promise<JobStatus> {
    const job = this.#jobs.get(id);
    job.setSpeed(speed);
    await job.kept();
    return job.describe();
  }

  events(afterSequence: number): AgentEvent[] {
    return this.#events.since(afterSequence);
  }

  follow(listener: (event: AgentEvent) => void): () => void {
    return this.#events.follow(listener);
  }

  #start(): void {
    this.#emit("agent-started", { role: this.role, version: AGENT_VERSION });
    this.#roles.start();
    this.#stallWatch.start();
    this.#arbitration?.takeover.start();
  }

  /** The secondary that may be promoted now, as far as this agent is concerned. */
  #candidate(): SecondaryRole | undefined {
    const { active } = this.#roles;
    return active.role === "Secondary" && !this.#failovers.isRunning && !this.#leaving.signal.aborted
      ? active.secondary
      : undefined;
  }

  /** Has the operator's command start the VM, if there is one. The promotion stands, whatever becomes of it. */
  async #startVm(epoch: number): Promise<void> {
    const { startVm, exportUri } = this.#options;
    if (startVm === undefined) return;
    const { vm, disks } = this.#state.record;
    const uris = disks.map(({ name }) => exportUri(name));
    const { signal } = this.#leaving;
    try {
      signal.throwIfAborted();
      await startVm({ vm, epoch, uris, vmstateBytes: this.#vmStates.describe()?.bytes }, signal);
      this.#emit("vm-started", { epoch });
    } catch (error) {
      this.#emit("vm-start-failed", asColobusError(error).toJSON());
    }
  }

  #emit(type: EventType, data: Record<string, unknown>): void {
    this.#events.emit(type, data);
    // Events come while the constructor is still opening the role.
    (this.#roleCommands as RoleCommands | undefined)?.changed();
    const isOpen = (this.#roles as AgentRoles | undefined) !== undefined;
    if (type !== "protection-changed" && isOpen && !this.#stopping) this.#protectionWatch.look();
  }

  /** Why the VM is not protected, where that is in this agent, whatever its role. */
  #ownFaults(): Status["protection"] | undefined {
    return this.#stateWatch.describeProtection() ?? this.#imageServers.describeProtection();
  }

  #isReached(condition: WaitCondition): boolean {
    // Behind it there is a merge.
    if (condition === "merged" && this.#failovers.isRunning) return false;
    return isReached(condition, this.status(), this.#state.record);
  }

  /** For what changes it. Errors: `not-secondary`; `shutting-down`: what it changes may be closed already. */
  #secondary(command: string): SecondaryRole {
    if (this.#stopping) throw beingStopped();
    const { active } = this.#roles;
    if (active.role === "Secondary") return active.secondary;
    throw new ColobusError(
      "not-secondary",
      `"${command}" is for a secondary, and this agent is Primary`,
      "Run it against the secondary's --run directory.",
    );
  }

  #primary(command: string): PrimaryRole {
    const { active } = this.#roles;
    if (active.role === "Primary") return active.primary;
    throw new ColobusError(
      "not-primary",
      `"${command}" is for the primary, and this agent is Secondary`,
      "Run it against the primary's --run directory.",
    );
  }
}

/** The mark beside shared disks, where the configuration has a place for it. */
function openSharedMark({ host, config }: AgentOptions, state: StateFile): SharedMark | undefined {
  if (config.sharedMark === undefined) return undefined;
  return new SharedMark(host.storage, config.sharedMark, () => state.record.agentId);
}
