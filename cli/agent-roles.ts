import assert from "node:assert/strict";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { BUFFER_MEMORY_DEFAULT_BYTES, STATE_RETRY_MS } from "../proto/limits.ts";
import type { Hello } from "../proto/replication-messages.ts";
import type { StateRecord } from "../proto/state-record.ts";
import type { EventType } from "../proto/words.ts";
import { allFailed } from "../primary/mirror-record.ts";
import { mergeUnfinished } from "../shared/jobs/merge-unfinished.ts";
import { NamedBitmaps } from "../primary/named-bitmaps.ts";
import { PrimaryRole } from "../primary/primary-role.ts";
import type { GrownPeers } from "../primary/resizes.ts";
import { withoutCopies } from "../primary/recorded-quorum.ts";
import { MergeWork } from "../secondary/merge-work.ts";
import { overlayDirectory, removeOverlayFiles } from "../secondary/overlay-files.ts";
import type { PromotedDisk } from "../secondary/promoted-disk.ts";
import { recoverPromotion } from "../secondary/recover-promotion.ts";
import { SecondaryRole, type PromotedDisks, type Promotion } from "../secondary/secondary-role.ts";
import type { OwnLease } from "../shared/arbiter/own-lease.ts";
import { statesNeeded, VmStateStore } from "../secondary/vm-state-store.ts";
import type { Child } from "../shared/block/block-device.ts";
import { imageUseOf, type DiskImage, type ImageSource } from "../shared/block/disk-image.ts";
import { keepLosses } from "../shared/block/lost-writes.ts";
import { newId } from "../shared/host/random.ts";
import { sleep } from "../shared/host/sleep.ts";
import type { JobList } from "../shared/jobs/job-list.ts";
import { LostSyncs } from "../shared/journal/lost-syncs.ts";
import type { SharedMark } from "../shared/journal/shared-mark.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { demoted, historyFieldsOf } from "../shared/replication/lineage.ts";
import type { Link } from "../shared/replication/link.ts";
import { measureLink, type LinkFigures } from "../shared/replication/measure-link.ts";
import { onlyWith } from "../shared/replication/peer-slots.ts";
import { siteOf } from "../shared/replication/site.ts";
import type { Pulse } from "../shared/replication/pulse.ts";
import type { PeerTracking } from "../shared/replication/peer-tracking.ts";
import type { AgentOptions } from "./agent-host.ts";
import { mayHaveLostSyncs, unflushedThrough } from "./agent-state.ts";
import type { LiveSettings } from "./live-config.ts";
import { checkpointExportsOf } from "./checkpoint-exports.ts";
import { childrenContext } from "./children-context.ts";
import type { DiskExports } from "./disk-export.ts";
import { askPeer } from "./ask-peer.ts";
import { cleanMarkOf, namedGeometries } from "./recorded-disks.ts";
import { MirrorTargets } from "./mirror-targets.ts";
import { PeerTrackings } from "./peer-trackings.ts";
import { PeerConnectors } from "./peer-connectors.ts";
import { PeerBinding, refuse } from "./peer-binding.ts";
import type { Judged } from "./verdict-answer.ts";

export interface ActivePrimary {
  readonly role: "Primary";
  readonly primary: PrimaryRole;
  /** One for each disk, as it is at present. */
  readonly children: OwnedChild[];
}

export interface ActiveSecondary {
  readonly role: "Secondary";
  readonly secondary: SecondaryRole;
  readonly tracking: PeerTracking;
}

/** A local child that this agent has opened and closes. */
type OwnedChild = DiskImage | PromotedDisk;

export interface AgentRolesOptions {
  readonly agent: AgentOptions;
  readonly state: StateFile;
  readonly images: ImageSource;
  /** A disk has another image from now on. */
  readonly adopted: (disk: string, image: DiskImage) => void;
  /** Opens the copies beside the images: that one is away is told of the copy, and not of the disk. */
  readonly childImages: ImageSource;
  /** The mark beside shared disks, where there is a place for it. */
  readonly sharedMark: SharedMark | undefined;
  /** At the start this agent was the last one to write the mark. */
  readonly isMarkOwn: boolean;
  readonly exports: DiskExports;
  readonly jobs: JobList;
  /** With an arbiter: this agent's lease, and what its pings as a secondary promise. */
  readonly lease: OwnLease | undefined;
  readonly promises: Pulse | undefined;
  readonly emit: (type: EventType, data: Record<string, unknown>) => void;
  /** A handshake has come to a verdict, or a role has changed: who waits for that looks again. */
  readonly changed: () => void;
}

/**
 * Owns the one role that an agent has at a time: what it is made of, the connection that it dials, and the change from
 * one role to the other. The state record decides; memory follows it.
 */
export class AgentRoles {
  readonly vmStates: VmStateStore;
  readonly #options: AgentRolesOptions;
  #active: ActivePrimary | ActiveSecondary;
  readonly #connectors: PeerConnectors;
  #promoted: readonly PromotedDisk[] = [];
  #promotedEpoch = 0;
  #wasPromotedHere = false;
  /** A change of roles is under way: the next one waits for it. */
  #changing: Promise<unknown> = Promise.resolve();
  #stopping = false;
  #isStarting = true;
  readonly #lostSyncs: LostSyncs;
  readonly #binding: PeerBinding;
  readonly #trackings: PeerTrackings;

  /** Takes up the recorded role. Errors: those of opening the images. */
  constructor(options: AgentRolesOptions) {
    this.#options = options;
    this.#binding = new PeerBinding({
      ...options.agent.host,
      state: options.state,
      secondaries: options.agent.config.secondaries ?? 1,
    });
    this.#connectors = this.#newConnectors();
    this.#trackings = new PeerTrackings(options);
    this.#lostSyncs = new LostSyncs({ ...options.agent.host, state: options.state });
    const { record } = options.state;
    this.vmStates = new VmStateStore({
      ...options.agent.host,
      stateDirectory: options.agent.config.stateDirectory,
      durability: () => options.state.record.durability,
    });
    this.vmStates.keepOnly(statesNeeded(record));
    this.#active =
      record.role === "Primary"
        ? this.#openPrimary()
        : this.#openSecondary({ mayHaveLostWrites: mayHaveLostSyncs(record, options.agent.host.bootId) });
    this.#isStarting = false;
  }

  get active(): ActivePrimary | ActiveSecondary {
    return this.#active;
  }

  /** The disks that a promotion of this process, or one whose merge it has taken up, serves. */
  get promoted(): readonly PromotedDisk[] {
    return this.#promoted;
  }

  /** Whether the disks are surely as they were at the committed checkpoint: no guest has written to what was promoted. */
  get isUntouched(): boolean {
    const active = this.#active;
    return active.role === "Secondary" || (this.#wasPromotedHere && !active.primary.checkpoints.hasCountedWrites);
  }

  /** The part of the configuration that may change has changed. */
  settingsChanged(settings: LiveSettings): void {
    if (this.#active.role === "Primary") this.#active.primary.settingsChanged(settings);
  }

  start(): void {
    if (this.#active.role === "Primary") this.#active.primary.start();
    if (this.#promoted.length > 0) this.#startMerge();
    this.#dial();
  }

  accept(link: Link, ended?: (wasOpen: boolean) => void, url?: string): void {
    const refusal = this.#stopping
      ? new ColobusError("shutting-down", "the agent is being stopped", "Try again later.")
      : this.#binding.refusalOf(link);
    if (refusal !== undefined) refuse(link, refusal, () => ended?.(false));
    else if (this.#active.role === "Primary") this.#active.primary.accept(link, ended, url);
    else this.#active.secondary.accept(link, ended);
  }

  /** Dials `url` alone from now on; undefined: whom it dialled before, again. */
  async redial(url?: string): Promise<void> {
    const { state } = this.#options;
    if (url !== undefined) await state.update((record) => ({ ...record, peers: [url] }));
    this.#dial();
  }

  /**
   * Asks the recorded peer what the two would do; nothing follows from the answer on either side. There is a peer to
   * dial. With `asIf` it is what they would do if the record were changed so. Errors: as `probePeer`.
   */
  probe(
    url: string,
    signal: AbortSignal,
    { asIf }: { readonly asIf?: (record: StateRecord) => StateRecord } = {},
  ): Promise<Judged> {
    const { host, config, token } = this.#options.agent;
    const dialer = host.dialer(url);
    const { peerTimeoutMs } = config;
    // Of a peer that is to be another one no certificate is bound.
    const options = { ...host, token, peerTimeoutMs, signal, dialer: asIf ? dialer : this.#binding.guard(dialer) };
    const said = (): Partial<Hello> => (asIf === undefined ? {} : historyFieldsOf(asIf(this.#options.state.record)));
    return askPeer(options, () => ({ ...this.#hello, ...said() }));
  }

  get #hello(): Hello {
    return this.#active.role === "Primary" ? this.#active.primary.hello() : this.#active.secondary.hello();
  }

  /** Measures the link to the peer at `url`. Errors: as `measureLink`. */
  measureLink(url: string, signal: AbortSignal): Promise<LinkFigures> {
    const { host, config, token } = this.#options.agent;
    const { peerTimeoutMs } = config;
    const dialer = this.#binding.guard(host.dialer(url));
    return measureLink({ ...host, dialer, hello: this.#hello, token, peerTimeoutMs, signal });
  }

  /**
   * The secondary becomes Primary, from its last committed checkpoint, and serves at once; the merge follows behind.
   * Errors: `io-error`; it is still Secondary then.
   */
  promote(request: Omit<Parameters<SecondaryRole["promote"]>[0], "lineage">, lineage?: string): Promise<Promotion> {
    return this.#change(async () => {
      const active = this.#active;
      assert(active.role === "Secondary", "only a secondary is promoted");
      const { host } = this.#options.agent;
      const promotion = await active.secondary.promote({
        ...request,
        lineage: lineage ?? newId(host.random),
      });
      await active.tracking.close();
      this.#active = this.#servePromotion(promotion, promotion.tracking);
      this.#wasPromotedHere = true;
      this.#active.primary.start();
      this.#options.emit("failover", { epoch: promotion.epoch });
      this.#options.emit("role-changed", { role: "Primary" });
      this.#startMerge();
      this.#options.changed();
      return promotion;
    });
  }

  /**
   * The primary becomes Secondary, with what its images hold now as its checkpoint; without any where an image cannot be
   * flushed. Its clients are sent away. Of what is known of its peers, only what is about the `newer` side is kept. While the record cannot be written it serves nobody, and tries again.
   * Errors: `merge-unfinished`; those of opening the images, after which it serves nobody until it is started again.
   */
  demote(request: { readonly discardsOwn: boolean; readonly newer: string }): Promise<void> {
    return this.#change(async () => {
      const active = this.#active;
      if (active.role === "Secondary") return;
      const { state, agent, exports, emit } = this.#options;
      if (state.record.merge !== null) throw mergeUnfinished();
      this.#connectors.hangUp();
      active.primary.refuseGuests(new ColobusError("handed-over", "this side is not Primary any more"));
      exports.withdrawAll();
      agent.dropClients();
      const { openEpoch } = active.primary.checkpoints;
      const fault = await active.primary.stop(0, { isDemoted: true });
      this.#closeChildren(active);
      this.#promoted = [];
      if (fault !== undefined) agent.host.log.warn({ reason: fault }, "this side's last state could not be flushed");
      // A shared disk is the new primary's: what it holds now is nobody's checkpoint.
      const checkpoint =
        fault === undefined && state.record.mode !== "shared"
          ? { epoch: openEpoch, atMs: agent.host.clock.wallMs() }
          : { epoch: 0, atMs: 0 };
      const notPrimary = new ColobusError("not-primary", "this side is not Primary any more");
      const atMs = agent.host.clock.wallMs();
      await this.#record((whole) =>
        demoted(
          allFailed({ ...onlyWith(whole, request.newer), disks: whole.disks.map(withoutCopies) }, atMs, notPrimary),
          checkpoint,
          request.discardsOwn,
        ),
      );
      this.vmStates.keepOnly(statesNeeded(state.record));
      this.#active = this.#openSecondary({ mayHaveLostWrites: fault !== undefined });
      emit("role-changed", { role: "Secondary" });
      if (!this.#stopping) this.#dial();
      this.#options.changed();
    });
  }

  /**
   * Makes a disk of `primary` longer, which the secondaries of `grown` have done already. Errors: as `Resizes.grow`;
   * `not-primary` when the role has changed meanwhile, or ends.
   */
  grow(primary: PrimaryRole, disk: number, sizeBytes: number, grown: GrownPeers): Promise<void> {
    return this.#change(async () => {
      const active = this.#active;
      if (active.role !== "Primary" || active.primary !== primary || this.#stopping) {
        throw new ColobusError(
          "not-primary",
          "this side is not Primary any more",
          "See `colobus status` on both sides.",
        );
      }
      await primary.resizes.grow(disk, sizeBytes, grown);
      const { state, exports } = this.#options;
      const replicated = primary.disks[disk];
      if (replicated !== undefined) {
        exports.put(replicated.name, state.record.vm, primary.exported(replicated), false);
      }
    });
  }

  /** Requests that wait for the peer fail from now on. */
  leave(): void {
    if (this.#active.role === "Primary") this.#active.primary.leave();
  }

  /** Ends the role: sessions are left, disks are flushed and closed. */
  async stop(drainMs: number): Promise<void> {
    this.#stopping = true;
    this.#lostSyncs.stop();
    this.#connectors.hangUp();
    await this.#changing;
    await this.vmStates.settled();
    const active = this.#active;
    if (active.role === "Secondary") return active.secondary.close();
    const fault = await active.primary.stop(drainMs);
    if (fault !== undefined || this.#isDiskOfPeer) {
      this.#closeChildren(active);
      if (fault !== undefined) throw fault;
      return;
    }
    const marks: string[] = [];
    for (const child of active.children) marks.push(await child.changeMark());
    await this.#options.state.update((record) => ({
      ...record,
      disks: record.disks.map((disk, index) => ({ ...disk, cleanMark: cleanMarkOf(record, marks[index]) })),
    }));
    for (const child of active.children) child.close();
  }

  /** The peer was promoted on the shared disk: nothing that this side holds back may be written to it any more. */
  get #isDiskOfPeer(): boolean {
    const { mode, outdated } = this.#options.state.record;
    return mode === "shared" && outdated;
  }

  #closeChildren({ children }: ActivePrimary): void {
    for (const child of children) {
      if (this.#isDiskOfPeer && child.abandon !== undefined) child.abandon();
      else child.close();
    }
  }

  #change<T>(change: () => Promise<T>): Promise<T> {
    const result = this.#changing.then(change);
    this.#changing = result.catch(() => undefined); // the caller has the error
    return result;
  }

  /** Keeps a link to each recorded peer: a secondary has one. */
  #dial(): void {
    if (this.#stopping) return;
    const { peers, role } = this.#options.state.record;
    this.#connectors.dial(role === "Primary" ? peers : peers.slice(0, 1));
  }

  #newConnectors(): PeerConnectors {
    const { host } = this.#options.agent;
    return new PeerConnectors({
      ...host,
      dialer: (url) => this.#binding.guard(host.dialer(url)),
      isWanted: (url) => {
        const active = this.#active;
        return active.role === "Primary"
          ? !active.primary.secondaries.isConnectedTo(url)
          : !active.secondary.isConnected;
      },
      connected: (link, ended, url) => this.accept(link, ended, url),
      failed: (reason, url) => {
        this.#binding.told(reason, url);
        const active = this.#active;
        if (active.role === "Primary") active.primary.secondaries.dialFailed(reason, url);
        else active.secondary.dialFailed(reason);
      },
    });
  }

  /** Changes the record, as soon as it can be written. Errors: why not, when the agent is stopped meanwhile. */
  async #record(change: (record: StateRecord) => StateRecord): Promise<void> {
    const { state, agent } = this.#options;
    for (;;) {
      try {
        await state.update(change);
        return;
      } catch (error) {
        if (this.#stopping) throw error;
      }
      await sleep(agent.host.clock, STATE_RETRY_MS);
    }
  }

  #openSecondary(options: { readonly mayHaveLostWrites: boolean }): ActiveSecondary {
    const { agent, state, emit } = this.#options;
    const { host, config, token } = agent;
    const tracking = this.#trackings.open();
    const secondary: SecondaryRole = new SecondaryRole({
      storage: host.storage,
      images: this.#options.images,
      sharedMark: this.#options.sharedMark,
      clock: host.clock,
      random: host.random,
      log: host.log,
      emit,
      state,
      vmStates: this.vmStates,
      stateDirectory: config.stateDirectory,
      access: config.secondaryExport,
      tracking,
      peerUrl: state.record.peers[0] ?? null,
      site: () => siteOf(state.record, host.hostName),
      trackingOptions: () => this.#trackings.options(),
      takeOver: (lineage) => this.#takeOver(lineage),
      judged: () => this.#options.changed(),
      token,
      peerTimeoutMs: config.peerTimeoutMs,
      windowBytes: config.windowBytes,
      pulse: this.#options.promises,
      bootId: host.bootId,
      retain: config.retain,
      overlayLimitBytes: config.overlayLimitBytes,
      bufferMemoryBytes: config.bufferMemoryBytes ?? BUFFER_MEMORY_DEFAULT_BYTES,
      mayHaveLostWrites: options.mayHaveLostWrites,
      lostSyncs: this.#lostSyncs,
      disksCreated: () => this.#exportViews(secondary),
    });
    this.#exportViews(secondary);
    return { role: "Secondary", secondary, tracking };
  }

  #exportViews(secondary: SecondaryRole): void {
    const { agent, state, exports } = this.#options;
    const { secondaryExport } = agent.config;
    if (secondaryExport === "off") return;
    for (const { name } of state.record.disks) {
      const disk = secondary.disks.find((candidate) => candidate.name === name);
      if (disk !== undefined) exports.put(name, state.record.vm, disk.view, secondaryExport === "read-only");
    }
    if (state.record.mode !== "mirror") exports.serveCheckpoints(checkpointExportsOf(secondary));
  }

  #openPrimary(): ActivePrimary {
    const { agent, state } = this.#options;
    const { host, config } = agent;
    const { record } = state;
    if (record.merge !== null) {
      const promotion = recoverPromotion({
        ...host,
        images: this.#options.images,
        stateDirectory: config.stateDirectory,
        record,
        lostSyncs: this.#lostSyncs,
      });
      return this.#servePromotion(promotion);
    }
    const children: { name: string; child: DiskImage }[] = [];
    try {
      for (const disk of record.disks) {
        removeOverlayFiles(host.storage, overlayDirectory(config.stateDirectory, disk.name));
        const child = this.#options.images.open(disk, imageUseOf(record));
        keepLosses(child, disk, this.#lostSyncs);
        children.push({ name: disk.name, child });
      }
    } catch (error) {
      for (const { child } of children) child.close();
      throw error;
    }
    return this.#primaryOver(children);
  }

  get #mayHaveHadPeer(): boolean {
    const { agent, state } = this.#options;
    return !state.isNew && (agent.acceptsPeers || state.record.peers.length + agent.config.peers.length > 0);
  }

  /**
   * Whether the peer may have been promoted by force on the disks that the two share, while this side was away: where they
   * have a disk each that is found out when they meet, and here two would write one disk by then. Only a mark can tell.
   */
  get #mayBeSuperseded(): boolean {
    const { sharedMark, isMarkOwn } = this.#options;
    return this.#isStarting && sharedMark !== undefined && !isMarkOwn && this.#mayHaveHadPeer;
  }

  /** `tracking`: the bitmaps about the peer, where they are open already. */
  #servePromotion(promotion: PromotedDisks, tracking?: PeerTracking): ActivePrimary {
    this.#promoted = promotion.disks.map(({ disk }) => disk);
    this.#promotedEpoch = promotion.epoch;
    return this.#primaryOver(
      promotion.disks.map(({ name, disk }) => ({ name, child: disk })),
      tracking,
    );
  }

  #primaryOver(
    children: readonly { readonly name: string; readonly child: Child & OwnedChild }[],
    tracking?: PeerTracking,
  ): ActivePrimary {
    const { agent, state, emit, jobs, exports } = this.#options;
    const { host, config, token } = agent;
    const bitmaps = new NamedBitmaps({ ...this.#trackings.options(), ...config, disks: namedGeometries(state.record) });
    const primary = new PrimaryRole({
      bitmaps,
      clock: host.clock,
      random: host.random,
      log: host.log,
      emit,
      state,
      jobs,
      children,
      trackings: this.#trackings.openAll(tracking),
      // Copies beside the images are a primary's whose disks are its own images, and not overlays over them.
      copies:
        state.record.mode === "shared" || this.#promoted.length > 0
          ? undefined
          : childrenContext(this.#options, this.#lostSyncs),
      peerUrls: state.record.peers,
      site: () => siteOf(state.record, host.hostName),
      mayHaveHadPeer: this.#mayHaveHadPeer,
      mayBeSuperseded: this.#mayBeSuperseded,
      handedOver: (peer) => this.#handedOver(peer),
      judged: () => this.#options.changed(),
      token,
      ack: config.ack,
      peerTimeoutMs: config.peerTimeoutMs,
      windowBytes: config.windowBytes,
      onPeerLoss: config.onPeerLoss,
      onCongestion: config.onCongestion,
      get resyncSpeed() {
        return config.resyncSpeed;
      },
      assumeInSync: config.assumeInSync,
      sharedMark: this.#options.sharedMark,
      unflushedThrough: unflushedThrough(state.record, host.bootId),
      get checkpointEveryMs() {
        return config.checkpointEveryMs;
      },
      get maxCheckpointAgeMs() {
        return config.maxCheckpointAgeMs;
      },
      lease: this.#options.lease,
      mirrorTargets: new MirrorTargets({
        ...this.#options,
        lostSyncs: this.#lostSyncs,
        replaceImage: (index, image) => this.#replaceImage(index, image),
      }),
      settleEveryMs: config.settleEveryMs,
    });
    exports.serveCheckpoints(undefined);
    exports.serveContexts((disk) => bitmaps.contextsOf(disk));
    for (const disk of primary.disks) exports.put(disk.name, state.record.vm, primary.exported(disk), false);
    return { role: "Primary", primary, children: children.map(({ child }) => child) };
  }

  /** A disk of the primary has another image. Returns the one before, which is to be closed. */
  #replaceImage(index: number, image: DiskImage): OwnedChild | undefined {
    const active = this.#active;
    assert(active.role === "Primary", "a primary's disk has got another image");
    this.#promoted = []; // their merge is finished: a mirror needs that
    return active.children.splice(index, 1, image)[0];
  }

  /** The primary hands its role to this side. */
  #takeOver(lineage: string): void {
    this.promote({ discardActive: false, isHandedOver: true }, lineage).catch((error: unknown) =>
      this.#options.agent.host.log.error({ reason: asColobusError(error) }, "the role could not be taken over"),
    );
  }

  /** The peer has taken the role that this side handed to it. */
  #handedOver(peer: string): void {
    this.demote({ discardsOwn: false, newer: peer }).catch((error: unknown) =>
      this.#options.agent.host.log.error({ reason: asColobusError(error) }, "the role could not be laid down"),
    );
  }

  #startMerge(): void {
    const { jobs, state, emit, agent } = this.#options;
    const work = new MergeWork(this.#promoted, state, () => {
      emit("merged", { epoch: this.#promotedEpoch });
      // Until it is written other agents keep off the disk, and the next overwrite, or checkpoint, writes it as well.
      this.#options.sharedMark
        ?.write("unprotected")
        .catch((error: unknown) =>
          agent.host.log.warn({ reason: asColobusError(error) }, "the mark of the shared disk is not written"),
        );
    });
    jobs.start(work, { speed: agent.config.resyncSpeed, held: false });
  }
}
