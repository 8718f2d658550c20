import { BUFFER_MEMORY_DEFAULT_BYTES } from "../proto/limits.ts";
import type { EventType } from "../proto/words.ts";
import { laidDown } from "../primary/guest-policy.ts";
import { NamedBitmaps } from "../primary/named-bitmaps.ts";
import { PrimaryRole } from "../primary/primary-role.ts";
import { overlayDirectory, removeOverlayFiles } from "../secondary/overlay-files.ts";
import type { PromotedDisk } from "../secondary/promoted-disk.ts";
import { recoverPromotion } from "../secondary/recover-promotion.ts";
import { SecondaryRole, type PromotedDisks } from "../secondary/secondary-role.ts";
import { VmStateStore } from "../secondary/vm-state-store.ts";
import type { OwnLease } from "../shared/arbiter/own-lease.ts";
import type { Child } from "../shared/block/block-device.ts";
import { imageUseOf, type DiskImage, type ImageSource } from "../shared/block/disk-image.ts";
import { keepLosses } from "../shared/block/lost-writes.ts";
import type { JobList } from "../shared/jobs/job-list.ts";
import { LostSyncs } from "../shared/journal/lost-syncs.ts";
import type { SharedMark } from "../shared/journal/shared-mark.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { CheckpointAges } from "../shared/replication/checkpoint-ages.ts";
import type { PeerTracking } from "../shared/replication/peer-tracking.ts";
import { siteOf } from "../shared/replication/site.ts";
import type { Pulse } from "../shared/replication/pulse.ts";
import type { AgentOptions } from "./agent-host.ts";
import { unflushedThrough } from "./agent-state.ts";
import { checkpointExportsOf } from "./checkpoint-exports.ts";
import { childrenContext } from "./children-context.ts";
import type { DiskExports } from "./disk-export.ts";
import { MirrorTargets } from "./mirror-targets.ts";
import { PeerTrackings } from "./peer-trackings.ts";
import { namedGeometries } from "./recorded-disks.ts";

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
export type OwnedChild = DiskImage | PromotedDisk;

export interface NamedChild {
  readonly name: string;
  readonly child: Child & OwnedChild;
}

/** Where a primary's role comes from. */
export interface PrimaryOrigin {
  /** Its disks are overlays that are not merged yet. */
  readonly isPromoted: boolean;
  /** The process begins with it. */
  readonly isStarting: boolean;
  /** The bitmaps about the peer, where they are open already. */
  readonly tracking: PeerTracking | undefined;
  /** Whom it dials for each of its places, where that is not as the record says. */
  readonly peerUrls?: readonly (string | null)[] | undefined;
}

/** What a role asks of whoever owns it. */
export interface RoleCalls {
  /** As of `ReplicaSessions`. */
  readonly takeOver: (lineage: string, siblings: readonly string[]) => void;
  /** The peer has taken the role that this side handed to it. */
  readonly handedOver: (peer: string) => void;
  /** A disk of the primary has another image. Returns the one before, which is to be closed. */
  readonly replaceImage: (index: number, image: DiskImage) => OwnedChild | undefined;
}

/** What an agent gives to the role that it has. */
export interface RoleSurroundings {
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
 * Makes an agent's roles out of their parts, from the record and the configuration, and exports their disks. Which role
 * there is, and when it changes, is `AgentRoles`'s.
 */
export class RoleParts {
  readonly vmStates: VmStateStore;
  readonly lostSyncs: LostSyncs;
  /** Whatever role has taken them. */
  readonly ages: CheckpointAges;
  readonly #options: RoleSurroundings;
  readonly #calls: RoleCalls;
  readonly #trackings: PeerTrackings;

  constructor(options: RoleSurroundings, calls: RoleCalls) {
    this.#options = options;
    this.#calls = calls;
    this.#trackings = new PeerTrackings(options);
    this.lostSyncs = new LostSyncs({ ...options.agent.host, state: options.state });
    this.ages = new CheckpointAges(options.agent.host.clock, options.state.record);
    this.vmStates = new VmStateStore({
      ...options.agent.host,
      stateDirectory: options.agent.config.stateDirectory,
      durability: () => options.state.record.durability,
    });
  }

  /** The secondary's role, with its views exported. `mayHaveLostWrites`: its images may lack what was written last. */
  openSecondary({ mayHaveLostWrites }: { readonly mayHaveLostWrites: boolean }): ActiveSecondary {
    const { agent, state, emit } = this.#options;
    const { host, config, token } = agent;
    const tracking = this.#trackings.open();
    const secondary: SecondaryRole = new SecondaryRole({
      storage: host.storage,
      images: this.#options.images,
      sharedMark: this.#options.sharedMark,
      clock: host.clock,
      ages: this.ages,
      random: host.random,
      log: host.log,
      emit,
      state,
      vmStates: this.vmStates,
      stateDirectory: config.stateDirectory,
      access: config.secondaryExport,
      tracking,
      site: () => siteOf(state.record, host.hostName),
      trackingOptions: () => this.#trackings.options(),
      takeOver: this.#calls.takeOver,
      judged: () => this.#options.changed(),
      token,
      peerTimeoutMs: config.peerTimeoutMs,
      windowBytes: config.windowBytes,
      pulse: this.#options.promises,
      bootId: host.bootId,
      retain: config.retain,
      maxCheckpointAgeMs: () => config.maxCheckpointAgeMs,
      overlayLimitBytes: config.overlayLimitBytes,
      bufferMemoryBytes: config.bufferMemoryBytes ?? BUFFER_MEMORY_DEFAULT_BYTES,
      mayHaveLostWrites,
      lostSyncs: this.lostSyncs,
      disksCreated: () => this.#exportViews(secondary),
    });
    this.#exportViews(secondary);
    return { role: "Secondary", secondary, tracking };
  }

  #exportViews(secondary: SecondaryRole): void {
    const { agent, state, exports } = this.#options;
    const { secondaryExport } = agent.config;
    if (secondaryExport === "off") {
      exports.removeAll(laidDown()); // it may have been Primary
      return;
    }
    for (const { name } of state.record.disks) {
      const disk = secondary.disks.find((candidate) => candidate.name === name);
      if (disk !== undefined) exports.put(name, state.record.vm, disk.view, secondaryExport === "read-only");
    }
    if (state.record.mode !== "mirror") exports.serveCheckpoints(checkpointExportsOf(secondary));
  }

  /** The recorded images. Errors: those of opening one; none is open then. */
  openImages(): NamedChild[] {
    const { agent, state, images } = this.#options;
    const { host, config } = agent;
    const { record } = state;
    const children: { name: string; child: DiskImage }[] = [];
    try {
      for (const disk of record.disks) {
        removeOverlayFiles(host.storage, overlayDirectory(config.stateDirectory, disk.name));
        const child = images.open(disk, imageUseOf(record));
        keepLosses(child, disk, this.lostSyncs);
        children.push({ name: disk.name, child });
      }
    } catch (error) {
      for (const { child } of children) child.close();
      throw error;
    }
    return children;
  }

  /**
   * Nothing is left of the overlays of an earlier promotion when the promise resolves, and under `power` no crash brings any
   * back: a log of mode `mc` would be applied over what was written since. Nothing of them may be open. Errors: `io-error`.
   */
  async settleOverlays(): Promise<void> {
    const { agent, state } = this.#options;
    const { storage } = agent.host;
    for (const { name } of state.record.disks) {
      const directory = overlayDirectory(agent.config.stateDirectory, name);
      removeOverlayFiles(storage, directory);
      if (state.record.durability === "power") await storage.syncDirectory(directory);
    }
  }

  /** The disks of a promotion whose merge an earlier process has not finished. */
  recoverPromotion(): PromotedDisks {
    const { agent, state, images } = this.#options;
    const { host, config } = agent;
    const { record } = state;
    return recoverPromotion({
      ...host,
      images,
      stateDirectory: config.stateDirectory,
      record,
      lostSyncs: this.lostSyncs,
    });
  }

  /** The primary's role over these children, with its disks exported. */
  openPrimary(
    children: readonly NamedChild[],
    { isPromoted, isStarting, tracking, peerUrls }: PrimaryOrigin,
  ): ActivePrimary {
    const { agent, state, emit, jobs, exports } = this.#options;
    const { host, config, token } = agent;
    const bitmaps = new NamedBitmaps({ ...this.#trackings.options(), ...config, disks: namedGeometries(state.record) });
    const primary = new PrimaryRole({
      bitmaps,
      clock: host.clock,
      ages: this.ages,
      random: host.random,
      log: host.log,
      emit,
      state,
      jobs,
      children,
      trackings: this.#trackings.openAll(tracking),
      // Copies beside the images are a primary's whose disks are its own images, and not overlays over them.
      copies: state.record.mode === "shared" || isPromoted ? undefined : childrenContext(this.#options, this.lostSyncs),
      peerUrls: peerUrls ?? state.record.peers,
      site: () => siteOf(state.record, host.hostName),
      mayHaveHadPeer: this.#mayHaveHadPeer,
      mayBeSuperseded: isStarting && this.#mayBeSuperseded,
      handedOver: this.#calls.handedOver,
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
      // What an earlier role has written is named by no bitmap.
      assumeInSync: state.record.assumeInSync === "counts" && isStarting,
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
        lostSyncs: this.lostSyncs,
        replaceImage: this.#calls.replaceImage,
      }),
      settleEveryMs: config.settleEveryMs,
    });
    exports.serveCheckpoints(undefined);
    exports.serveContexts((disk) => bitmaps.contextsOf(disk));
    for (const disk of primary.disks) exports.put(disk.name, state.record.vm, primary.exported(disk), false);
    return { role: "Primary", primary, children: children.map(({ child }) => child) };
  }

  get #mayHaveHadPeer(): boolean {
    const { agent, state } = this.#options;
    return !state.isNew && (agent.acceptsPeers || state.record.peers.length + agent.config.peers.length > 0);
  }

  /**
   * Whether, at a start, the peer may have been promoted by force on the disks that the two share, while this side was away:
   * where they have a disk each that is found out when they meet, and here two would write one disk by then. Only a mark can
   * tell.
   */
  get #mayBeSuperseded(): boolean {
    const { sharedMark, isMarkOwn } = this.#options;
    return sharedMark !== undefined && !isMarkOwn && this.#mayHaveHadPeer;
  }
}
