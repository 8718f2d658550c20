import type {
  AgentControl,
  AgentEvent,
  CheckpointAnswer,
  CheckpointRequest,
  CommitAnswer,
  CommitRequest,
  DiscardAnswer,
  DiscardRequest,
  FailoverAnswer,
  FailoverRequest,
  JobStatus,
  JobVerb,
  ResyncAnswer,
  ResyncRequest,
  RollbackAnswer,
  RollbackRequest,
  Status,
  WaitAnswer,
  WaitRequest,
} from "../proto/control-api.ts";
import { ColobusError } from "../proto/errors.ts";
import { AGENT_VERSION } from "../proto/versions.ts";
import type { EventType, Role, WaitCondition } from "../proto/words.ts";
import { PrimaryRole } from "../primary/primary-role.ts";
import { MergeWork } from "../secondary/merge-work.ts";
import { overlayDirectory, removeOverlayFiles } from "../secondary/overlay-files.ts";
import type { PromotedDisk } from "../secondary/promoted-disk.ts";
import { recoverPromotion } from "../secondary/recover-promotion.ts";
import { SecondaryRole, type Promotion } from "../secondary/secondary-role.ts";
import type { Child } from "../shared/block/block-device.ts";
import type { Image } from "../shared/block/image.ts";
import { openRecordedImage } from "../shared/block/recorded-image.ts";
import { EventLog } from "../shared/control/event-log.ts";
import type { Clock } from "../shared/host/clock.ts";
import { Deadline } from "../shared/host/deadline.ts";
import type { Log } from "../shared/host/log.ts";
import type { Random } from "../shared/host/random.ts";
import type { Storage } from "../shared/host/storage.ts";
import { JobList } from "../shared/jobs/job-list.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { Dialer, Link } from "../shared/replication/link.ts";
import type { AgentConfig } from "./agent-config.ts";
import { newId, openAgentState } from "./agent-state.ts";
import { CheckpointChanges } from "./checkpoint-changes.ts";
import { checkpointExportsOf } from "./checkpoint-exports.ts";
import { DiskExports } from "./disk-export.ts";

/** What an agent is given by the machine that it runs on, or by the simulator. */
export interface AgentHost {
  readonly storage: Storage;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly bootId: string;
  readonly pid: number;
  readonly dialer: (url: string) => Dialer;
}

export interface AgentOptions {
  readonly host: AgentHost;
  readonly config: AgentConfig;
  readonly token: Buffer | undefined;
  /** The URI under which clients reach an export. */
  readonly exportUri: (name: string) => string;
}

interface ActivePrimary {
  readonly role: "Primary";
  readonly primary: PrimaryRole;
  readonly children: readonly OwnedChild[];
}

type ActiveRole = ActivePrimary | { readonly role: "Secondary"; readonly secondary: SecondaryRole };

/** A local child that this agent has opened and closes. */
type OwnedChild = Image | PromotedDisk;

/**
 * One agent: the disks of one VM in one role at a time, its exports, its jobs and its events. It is written against
 * interfaces and holds no socket: `agent-process.ts` gives it those of the machine, the simulator its own.
 */
export class Agent implements AgentControl {
  readonly exports = new DiskExports();
  readonly #options: AgentOptions;
  readonly #state: StateFile;
  readonly #events: EventLog;
  readonly #jobs: JobList;
  #active: ActiveRole;
  #promoted: readonly PromotedDisk[] = [];
  #promotedEpoch = 0;
  #lastProtection = "";
  #stopping = false;
  #failingOver: Promise<FailoverAnswer> | undefined;
  readonly #changes: CheckpointChanges;

  private constructor(options: AgentOptions, state: StateFile) {
    this.#options = options;
    this.#state = state;
    this.#events = new EventLog(options.host.clock);
    this.#changes = new CheckpointChanges({
      clock: options.host.clock,
      secondary: (command) => this.#secondary(command),
      settled: async () => this.#failingOver?.catch(() => undefined), // who asked for the failover has its error
    });
    this.#jobs = new JobList(options.host.clock, (job) =>
      this.#emit("job-changed", { id: job.id, type: job.type, state: job.state, error: job.error?.toJSON() ?? null }),
    );
    this.#active = state.record.role === "Primary" ? this.#openPrimary() : this.#openSecondary();
  }

  /** Opens the state and the disks, and takes up the recorded role. Errors name what is wrong and what to do. */
  static async open(options: AgentOptions): Promise<Agent> {
    const { host, config } = options;
    const state = await openAgentState(host, config);
    let agent: Agent;
    try {
      agent = new Agent(options, state);
    } catch (error) {
      await state.close();
      throw error;
    }
    // Only now is everything recovered that another boot id, or the last clean stop, decides about.
    await state.update((record) => ({
      ...record,
      bootId: host.bootId,
      inSyncPeer: null,
      disks: record.disks.map((disk) => ({ ...disk, cleanMark: null })),
      peers: record.peers.length > 0 ? record.peers : [...config.peers],
    }));
    agent.#start();
    return agent;
  }

  get role(): Role {
    return this.#active.role;
  }

  /** Takes a link that a peer has opened. */
  accept(link: Link): void {
    if (this.#active.role === "Secondary" && !this.#stopping) {
      this.#active.secondary.accept(link);
      return;
    }
    link.start({ message: () => undefined, closed: () => undefined });
    link.close(
      this.#stopping
        ? new ColobusError("shutting-down", "the agent is being stopped", "Try again later.")
        : new ColobusError(
            "role-conflict",
            "this agent is Primary, and so takes no primary's stream",
            "See `colobus status` on both.",
          ),
    );
  }

  /** Ends the role: sessions are left, disks are flushed and closed. Exports must have no client left. */
  async stop(drainMs: number): Promise<void> {
    if (this.#stopping) return;
    this.#stopping = true;
    this.#emit("agent-stopping", {});
    this.exports.withdrawAll();
    await this.#failingOver?.catch(() => undefined); // who asked for the failover has its error; the role is settled now
    await this.#changes.settled();
    await this.#jobs.stop(new ColobusError("shutting-down", "the agent is being stopped"));
    if (this.#active.role === "Primary") {
      await this.#active.primary.stop(drainMs);
      const marks = this.#active.children.map((child) => child.changeMark());
      await this.#state.update((record) => ({
        ...record,
        disks: record.disks.map((disk, index) => ({ ...disk, cleanMark: marks[index] ?? null })),
      }));
      for (const child of this.#active.children) child.close();
    } else await this.#active.secondary.close();
    await this.#state.close();
  }

  status(): Status {
    const { record } = this.#state;
    const { config, host } = this.#options;
    const active = this.#active;
    const view =
      active.role === "Primary" ? this.#describePrimary(active.primary) : describeSecondary(active.secondary);
    return {
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
      jobs: this.jobs(),
      exports: this.exports.list().map((diskExport) => ({
        name: diskExport.name,
        uri: this.#options.exportUri(diskExport.name),
        readOnly: diskExport.readOnly,
        clients: this.exports.clientsOf(diskExport.name),
      })),
    };
  }

  async checkpoint(request: CheckpointRequest, signal: AbortSignal): Promise<CheckpointAnswer> {
    return this.#primary("checkpoint").checkpoint(request, signal);
  }

  async commit(request: CommitRequest, signal: AbortSignal): Promise<CommitAnswer> {
    return this.#primary("commit").commit(request.epoch, request.timeoutMs, signal);
  }

  async discard(request: DiscardRequest, signal: AbortSignal): Promise<DiscardAnswer> {
    return this.#primary("discard").discard(request.epoch, request.timeoutMs, signal);
  }

  async failover(request: FailoverRequest, signal: AbortSignal): Promise<FailoverAnswer> {
    const active = this.#active;
    if (active.role === "Primary") return this.#alreadyPrimary(request.dryRun);
    const { secondary } = active;
    secondary.assertPromotable(request.force);
    if (request.dryRun) return this.#describeFailover(secondary, request);
    const deadline = new Deadline(this.#options.host.clock, request.timeoutMs, signal);
    try {
      await deadline.race(this.#changes.settled(), "the failover waits for another command to end");
      secondary.assertPromotable(request.force);
      this.#failingOver ??= this.#promote(secondary, request).finally(() => {
        this.#failingOver = undefined;
      });
      return await deadline.race(this.#failingOver, "the failover has begun and goes on");
    } finally {
      deadline.end();
    }
  }

  async resync(request: ResyncRequest, signal: AbortSignal): Promise<ResyncAnswer> {
    return request.giveUpCheckpoint ? this.#changes.giveUp(request, signal) : this.#primary("resync").resync();
  }

  async rollback(request: RollbackRequest, signal: AbortSignal): Promise<RollbackAnswer> {
    return this.#changes.rollBack(request, signal);
  }

  async wait(request: WaitRequest, signal: AbortSignal): Promise<WaitAnswer> {
    const deadline = new Deadline(this.#options.host.clock, request.timeoutMs, signal);
    let unfollow = (): void => undefined;
    const reached = new Promise<void>((resolve) => {
      unfollow = this.#events.follow(() => {
        if (this.#isReached(request.condition)) resolve();
      });
      if (this.#isReached(request.condition)) resolve();
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
    return this.#jobs.all().map((job) => job.describe());
  }

  async job(id: string, verb: JobVerb): Promise<JobStatus> {
    const job = this.#jobs.get(id);
    job.apply(verb);
    return Promise.resolve(job.describe());
  }

  async setJobSpeed(id: string, bytesPerSecond: number): Promise<JobStatus> {
    const job = this.#jobs.get(id);
    job.setSpeedLimit(bytesPerSecond);
    return Promise.resolve(job.describe());
  }

  events(afterSequence: number): AgentEvent[] {
    return this.#events.since(afterSequence);
  }

  follow(listener: (event: AgentEvent) => void): () => void {
    return this.#events.follow(listener);
  }

  #start(): void {
    this.#emit("agent-started", { role: this.role, version: AGENT_VERSION });
    if (this.#active.role !== "Primary") return;
    this.#active.primary.start();
    if (this.#promoted.length > 0) this.#startMerge();
  }

  #emit(type: EventType, data: Record<string, unknown>): void {
    this.#events.emit(type, data);
    if (type !== "protection-changed") this.#watchProtection();
  }

  /** Emits an event when the protection has changed since the last event. */
  #watchProtection(): void {
    const active = this.#active as ActiveRole | undefined; // events come while the constructor is still opening the role
    if (active === undefined || this.#stopping) return;
    const protection =
      active.role === "Primary" ? active.primary.describeProtection() : active.secondary.describeProtection();
    const line = `${protection.state} ${protection.reason ?? ""}`;
    if (line === this.#lastProtection) return;
    this.#lastProtection = line;
    this.#emit("protection-changed", { ...protection });
  }

  #openSecondary(): ActiveRole {
    const { host, config, token } = this.#options;
    const secondary: SecondaryRole = new SecondaryRole({
      storage: host.storage,
      clock: host.clock,
      random: host.random,
      log: host.log,
      emit: (type, data) => this.#emit(type, data),
      state: this.#state,
      stateDirectory: config.stateDirectory,
      access: config.secondaryExport,
      token,
      peerTimeoutMs: config.peerTimeoutMs,
      windowBytes: config.windowBytes,
      bootId: host.bootId,
      retain: config.retain,
      overlayLimitBytes: config.overlayLimitBytes,
      disksCreated: () => this.#exportViews(secondary),
    });
    this.#exportViews(secondary);
    return { role: "Secondary", secondary };
  }

  #exportViews(secondary: SecondaryRole): void {
    const { secondaryExport } = this.#options.config;
    if (secondaryExport === "off") return;
    for (const { name } of this.#state.record.disks) {
      const disk = secondary.disks.find((candidate) => candidate.name === name);
      if (disk !== undefined) this.exports.put(name, this.#state.record.vm, disk.view, secondaryExport === "read-only");
    }
    this.exports.serveCheckpoints(checkpointExportsOf(secondary));
  }

  #openPrimary(): ActiveRole {
    const { host, config } = this.#options;
    const { record } = this.#state;
    if (record.merge !== null) {
      const promotion = recoverPromotion({ ...host, stateDirectory: config.stateDirectory, record });
      return this.#servePromotion(promotion);
    }
    const children: { name: string; child: Image }[] = [];
    try {
      for (const disk of record.disks) {
        removeOverlayFiles(host.storage, overlayDirectory(config.stateDirectory, disk.name));
        children.push({ name: disk.name, child: openRecordedImage(host.storage, disk) });
      }
    } catch (error) {
      for (const { child } of children) child.close();
      throw error;
    }
    return this.#primaryOver(children);
  }

  #servePromotion(promotion: Promotion): ActivePrimary {
    this.#promoted = promotion.disks.map(({ disk }) => disk);
    this.#promotedEpoch = promotion.epoch;
    return this.#primaryOver(promotion.disks.map(({ name, disk }) => ({ name, child: disk })));
  }

  #primaryOver(children: readonly { readonly name: string; readonly child: Child & OwnedChild }[]): ActivePrimary {
    const { host, config, token } = this.#options;
    const { record } = this.#state;
    const peers = record.peers.length > 0 ? record.peers : config.role === "Primary" ? config.peers : [];
    const primary = new PrimaryRole({
      clock: host.clock,
      random: host.random,
      log: host.log,
      emit: (type, data) => this.#emit(type, data),
      state: this.#state,
      jobs: this.#jobs,
      children,
      dialer: peers[0] === undefined ? undefined : host.dialer(peers[0]),
      token,
      ack: config.ack,
      peerTimeoutMs: config.peerTimeoutMs,
      windowBytes: config.windowBytes,
      inSyncPeer: record.inSyncPeer,
      assumeInSync: config.assumeInSync,
      checkpointEveryMs: config.checkpointEveryMs,
      maxCheckpointAgeMs: config.maxCheckpointAgeMs,
    });
    this.exports.serveCheckpoints(undefined);
    for (const disk of primary.disks) this.exports.put(disk.name, record.vm, disk, false);
    return { role: "Primary", primary, children: children.map(({ child }) => child) };
  }

  async #promote(secondary: SecondaryRole, request: FailoverRequest): Promise<FailoverAnswer> {
    const described = this.#describeFailover(secondary, request);
    const promotion = await secondary.promote({
      discardActive: request.discardActive,
      lineage: newId(this.#options.host.random),
    });
    const promoted = this.#servePromotion(promotion);
    this.#active = promoted;
    promoted.primary.start();
    this.#emit("failover", { epoch: promotion.epoch });
    this.#emit("role-changed", { role: "Primary" });
    this.#startMerge();
    // A commit that was under way when the session ended has come before the promotion.
    const { epoch } = promotion;
    const { ageMs, wouldLose } = secondary.describeRecoverable() ?? described;
    const mergeBytes = this.#promoted.reduce((sum, disk) => sum + disk.mergeTotalBytes, 0);
    return { ...described, dryRun: false, epoch, ageMs, wouldLose, mergeBytes, jobs: this.jobs().map(({ id }) => id) };
  }

  #startMerge(): void {
    this.#jobs.start(
      new MergeWork(this.#promoted, this.#state, () => this.#emit("merged", { epoch: this.#promotedEpoch })),
    );
  }

  #describeFailover(secondary: SecondaryRole, request: FailoverRequest): FailoverAnswer {
    const recoverable = secondary.describeRecoverable();
    const disks = secondary.describeDisks();
    return {
      already: false,
      dryRun: request.dryRun,
      epoch: recoverable?.epoch ?? 0,
      ageMs: recoverable?.ageMs ?? null,
      wouldLose: recoverable?.wouldLose ?? { writes: 0, bytes: 0, atLeast: true },
      discardedActiveBytes: request.discardActive ? disks.reduce((sum, disk) => sum + disk.activeBytes, 0) : 0,
      mergeBytes: secondary.mergeBytes,
      jobs: [],
    };
  }

  #alreadyPrimary(dryRun: boolean): FailoverAnswer {
    return {
      already: true,
      dryRun,
      epoch: this.#state.record.committed.epoch,
      ageMs: null,
      wouldLose: { writes: 0, bytes: 0, atLeast: false },
      discardedActiveBytes: 0,
      mergeBytes: this.#promoted.reduce((sum, disk) => sum + disk.mergeTotalBytes - disk.mergedBytes, 0),
      jobs: this.jobs()
        .filter(({ type }) => type === "merge")
        .map(({ id }) => id),
    };
  }

  #describePrimary(primary: PrimaryRole): RoleStatus {
    const disks = primary.describeDisks().map((disk, index) => {
      const promoted = this.#promoted[index];
      return promoted === undefined
        ? disk
        : { ...disk, hiddenBytes: promoted.hiddenBytes, activeBytes: promoted.activeBytes };
    });
    return {
      epoch: primary.epochs,
      peers: primary.describePeers(),
      disks,
      protection: primary.describeProtection(),
      recoverable: primary.describeRecoverable(),
    };
  }

  #isReached(condition: WaitCondition): boolean {
    const { epoch, peers, jobs, role } = this.status();
    switch (condition) {
      case "connected":
        return peers.some((peer) => peer.connection === "Connected");
      case "synced":
        return peers.some((peer) => peer.replication === "Established");
      case "committed":
        return epoch.committed > 0;
      case "merged":
        return role === "Primary" && this.#state.record.merge === null && jobs.every(isNoOpenMerge);
    }
  }

  #secondary(command: string): SecondaryRole {
    if (this.#active.role === "Secondary") return this.#active.secondary;
    throw new ColobusError(
      "not-secondary",
      `"${command}" is for a secondary, and this agent is Primary`,
      "Run it against the secondary's --run directory.",
    );
  }

  #primary(command: string): PrimaryRole {
    if (this.#active.role === "Primary") return this.#active.primary;
    throw new ColobusError(
      "not-primary",
      `"${command}" is for the primary, and this agent is Secondary`,
      "Run it against the primary's --run directory.",
    );
  }
}

type RoleStatus = Pick<Status, "epoch" | "peers" | "disks" | "protection" | "recoverable">;

function describeSecondary(secondary: SecondaryRole): RoleStatus {
  const { checkpoints } = secondary;
  return {
    epoch: {
      open: checkpoints.openEpoch,
      prepared: [...checkpoints.prepared],
      committed: checkpoints.committed.epoch,
      retained: [...checkpoints.kept.retained],
    },
    peers: [secondary.describePeer()],
    disks: secondary.describeDisks(),
    protection: secondary.describeProtection(),
    recoverable: secondary.describeRecoverable(),
  };
}

function isNoOpenMerge(job: JobStatus): boolean {
  return job.type !== "merge" || job.state === "concluded";
}
