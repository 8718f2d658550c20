import assert from "node:assert/strict";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { STATE_RETRY_MS } from "../proto/limits.ts";
import type { Hello } from "../proto/replication-messages.ts";
import type { StateRecord } from "../proto/state-record.ts";
import { laidDown } from "../primary/guest-policy.ts";
import { dialledPeers } from "../primary/place-orders.ts";
import { allFailed } from "../primary/mirror-record.ts";
import type { Job } from "../shared/jobs/job.ts";
import { mergeUnfinished } from "../shared/jobs/merge-unfinished.ts";
import type { PrimaryRole } from "../primary/primary-role.ts";
import type { GrownPeers } from "../primary/resizes.ts";
import { withoutCopies } from "../primary/recorded-quorum.ts";
import { MergeWork } from "../secondary/merge-work.ts";
import type { PromotedDisk } from "../secondary/promoted-disk.ts";
import type { PromotedDisks, Promotion, SecondaryRole } from "../secondary/secondary-role.ts";
import { statesNeeded, type VmStateStore } from "../secondary/vm-state-store.ts";
import type { DiskImage } from "../shared/block/disk-image.ts";
import { newId } from "../shared/host/random.ts";
import { sleep } from "../shared/host/sleep.ts";
import { tellNobody, type WaitsFor } from "../shared/host/waits-for.ts";
import { demoted, givenUpFor, historyFieldsOf } from "../shared/replication/lineage.ts";
import type { Link } from "../shared/replication/link.ts";
import { measureLink, type LinkFigures } from "../shared/replication/measure-link.ts";
import { onlyWith } from "../shared/replication/peer-slots.ts";
import type { PeerTracking } from "../shared/replication/peer-tracking.ts";
import { mayHaveLostSyncs } from "./agent-state.ts";
import type { LiveSettings } from "./live-config.ts";
import { askPeer } from "./ask-peer.ts";
import { cleanMarkOf } from "./recorded-disks.ts";
import { PeerConnectors } from "./peer-connectors.ts";
import { PeerBinding, refuse } from "./peer-binding.ts";
import {
  RoleParts,
  type ActivePrimary,
  type ActiveSecondary,
  type NamedChild,
  type OwnedChild,
  type PrimaryOrigin,
  type RoleSurroundings,
} from "./role-parts.ts";
import type { Judged } from "./verdict-answer.ts";

/**
 * Owns the one role that an agent has at a time: the connection that it dials, and the change from one role to the other.
 * What a role is made of is `RoleParts`'s. The state record decides; memory follows it.
 */
export class AgentRoles {
  readonly #options: RoleSurroundings;
  readonly #parts: RoleParts;
  #active: ActivePrimary | ActiveSecondary;
  readonly #connectors: PeerConnectors;
  #promoted: readonly PromotedDisk[] = [];
  /** The merge of those, while it is under way or is just done. */
  #merging: Job | undefined;
  #promotedEpoch = 0;
  #wasPromotedHere = false;
  /** A change of roles is under way: the next one waits for it. */
  #changing: Promise<unknown> = Promise.resolve();
  #stopping = false;
  #isStarting = true;
  readonly #binding: PeerBinding;

  /** Takes up the recorded role. Errors: those of opening the images. */
  constructor(options: RoleSurroundings) {
    this.#options = options;
    this.#binding = new PeerBinding({
      ...options.agent.host,
      state: options.state,
      secondaries: options.agent.config.secondaries ?? 1,
    });
    this.#connectors = this.#newConnectors();
    this.#parts = new RoleParts(options, {
      takeOver: (lineage, siblings) => this.#takeOver(lineage, siblings),
      handedOver: (peer) => this.#handedOver(peer),
      replaceImage: (index, image) => this.#replaceImage(index, image),
    });
    const { record } = options.state;
    this.vmStates.keepOnly(statesNeeded(record));
    this.#active =
      record.role === "Primary"
        ? this.#openPrimary()
        : this.#parts.openSecondary({ mayHaveLostWrites: mayHaveLostSyncs(record, options.agent.host.bootId) });
    this.#isStarting = false;
  }

  get active(): ActivePrimary | ActiveSecondary {
    return this.#active;
  }

  get activeRole(): PrimaryRole | SecondaryRole {
    return this.#active.role === "Primary" ? this.#active.primary : this.#active.secondary;
  }

  get vmStates(): VmStateStore {
    return this.#parts.vmStates;
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
    this.redial();
  }

  accept(link: Link, ended?: (wasReady: boolean) => void, url?: string): void {
    const refusal = this.#stopping ? beingStopped() : this.#binding.refusalOf(link);
    if (refusal !== undefined) refuse(link, refusal, () => ended?.(false));
    else if (this.#active.role === "Primary") this.#active.primary.accept(link, ended, url);
    else this.#active.secondary.accept(link, ended);
  }

  /** Keeps a link to each peer that the record names, of which a secondary has one; or to `url` alone, until the next time. */
  redial(url?: string): void {
    if (this.#stopping) return;
    const { peers, role } = this.#options.state.record;
    const recorded = role === "Primary" ? peers : peers.slice(0, 1);
    this.#connectors.dial(url === undefined ? recorded : [url]);
  }

  /**
   * Asks the peer at `url` what the two would do; nothing follows from the answer on either side. With `asIf` it is what
   * they would do if the record were changed so. Errors: as `probePeer`.
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
    return this.activeRole.hello();
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
   * Errors: `io-error`, `shutting-down`; it is still Secondary then. Where the primary's role cannot be opened behind its
   * record, those of the storage: it serves nobody until it is started again.
   */
  promote(request: Omit<Parameters<SecondaryRole["promote"]>[0], "lineage">, lineage?: string): Promise<Promotion> {
    return this.#change(async () => {
      const active = this.#active;
      assert(active.role === "Secondary", "only a secondary is promoted");
      const { agent, state, exports } = this.#options;
      const { host, config } = agent;
      // The first place is the former primary's, whether this side dials that or not.
      const siblings = (request.siblings ?? []).slice(0, (config.secondaries ?? 1) - 1);
      const dialled = state.record.peers.length === 0 ? [null] : state.record.peers;
      const peerUrls = siblings.length === 0 ? undefined : [...new Set([...dialled, ...siblings])];
      const promotion = await active.secondary.promote({
        ...request,
        siblings,
        lineage: lineage ?? newId(host.random),
      });
      try {
        await active.tracking.close();
        this.#active = this.#servePromotion(promotion, promotion.tracking, peerUrls);
        this.#wasPromotedHere = true;
        this.#active.primary.start();
      } catch (error) {
        exports.withdrawAll(asColobusError(error));
        throw error;
      } finally {
        promotion.letGo(exports.disks());
      }
      if (siblings.length > 0) this.redial();
      this.#options.emit("failover", { epoch: promotion.epoch });
      this.#options.emit("role-changed", { role: "Primary" });
      this.#startMerge();
      this.#options.changed();
      return promotion;
    });
  }

  /**
   * The primary becomes Secondary, with what its images hold now as its checkpoint; without any where an image cannot be
   * flushed. Its clients are sent away. Of what is known of its peers, only what is about the `newer` side is kept; `peer`:
   * whom alone it dials from then on. While the record cannot be written it serves nobody, and tries again.
   * Errors: `merge-unfinished`, `shutting-down`; those of opening the images, after which it serves nobody until it is
   * started again.
   */
  demote(request: {
    readonly discardsOwn: boolean;
    readonly newer: string;
    readonly peer?: string | undefined;
  }): Promise<void> {
    return this.#change(async () => {
      const active = this.#active;
      if (active.role === "Secondary") return;
      const { state, agent, exports, emit } = this.#options;
      if (state.record.merge !== null) throw mergeUnfinished();
      // What it has not removed yet of overlays is removed below, before there are others of the same names.
      this.#merging?.conclude();
      await this.#merging?.finished();
      this.#connectors.hangUp();
      const reason = laidDown();
      active.primary.refuseGuests(reason);
      exports.withdrawAll(reason);
      agent.dropClients();
      const { openEpoch } = active.primary.checkpoints;
      const fault = await active.primary.stop(0, { isDemoted: true, waitsFor: tellNobody });
      this.#closeChildren(active, state.record.mode === "shared");
      this.#promoted = [];
      if (fault !== undefined) agent.host.log.warn({ reason: fault }, "this side's last state could not be flushed");
      // A shared disk is the new primary's: what it holds now is nobody's checkpoint.
      const checkpoint =
        fault === undefined && state.record.mode !== "shared"
          ? this.#parts.ages.take(openEpoch, [])
          : { epoch: 0, atMs: 0 };
      await this.#untilDone(() => this.#parts.settleOverlays());
      const notPrimary = new ColobusError("not-primary", "this side is not Primary any more");
      const atMs = agent.host.clock.wallMs();
      const dialled = request.peer === undefined ? {} : { peers: [request.peer] };
      await this.#untilDone(() =>
        state.update((whole) => {
          const alone = { ...onlyWith(whole, request.newer), disks: whole.disks.map(withoutCopies), ...dialled };
          const record = demoted(allFailed(alone, atMs, notPrimary), checkpoint, request.discardsOwn);
          return request.discardsOwn ? givenUpFor(record, request.newer) : record;
        }),
      );
      this.vmStates.keepOnly(statesNeeded(state.record));
      this.#active = this.#parts.openSecondary({ mayHaveLostWrites: fault !== undefined });
      emit("role-changed", { role: "Secondary" });
      if (!this.#stopping) this.redial();
      this.#options.changed();
    });
  }

  /**
   * Carries out an order that `primary` was given, behind every change that was begun before: it judges by what those have
   * left. Errors: those of the order; `not-primary` when the role has changed meanwhile; `shutting-down`.
   */
  inTurn<T>(primary: PrimaryRole, order: () => Promise<T>): Promise<T> {
    return this.#change(async () => {
      const active = this.#active;
      if (active.role === "Primary" && active.primary === primary) return order();
      throw new ColobusError("not-primary", "this side is not Primary any more", "See `colobus status` on both sides.");
    });
  }

  /**
   * Makes a disk of `primary` longer, which the secondaries of `grown` have done already. Errors: as `Resizes.grow`, and
   * `inTurn`.
   */
  grow(primary: PrimaryRole, disk: number, sizeBytes: number, grown: GrownPeers): Promise<void> {
    return this.inTurn(primary, async () => {
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

  /** The agent is being stopped: no change of roles begins any more, and no link is taken. What has begun goes on. */
  beginStop(): void {
    this.#stopping = true;
  }

  /** Ends the role: sessions are left, disks are flushed and closed. Errors: what kept that from being clean; all is closed then too. */
  async stop(drainMs: number, waitsFor: WaitsFor): Promise<void> {
    this.beginStop();
    this.#parts.lostSyncs.stop();
    this.#connectors.hangUp();
    waitsFor("a change of the role");
    await this.#changing;
    waitsFor("VM states");
    await this.vmStates.settled();
    const active = this.#active;
    if (active.role === "Secondary") return active.secondary.close(waitsFor);
    const fault = await active.primary.stop(drainMs, { isDemoted: false, waitsFor });
    // The peer was promoted on a shared disk: nothing that this side holds back may be written to it any more.
    const isDiskOfPeer = this.#options.state.record.mode === "shared" && active.primary.isOutdated;
    if (fault !== undefined || isDiskOfPeer) {
      this.#closeChildren(active, isDiskOfPeer);
      if (fault !== undefined) throw fault;
      return;
    }
    try {
      const marks: string[] = [];
      for (const child of active.children) marks.push(await child.changeMark());
      await this.#options.state.update((record) => ({
        ...record,
        disks: record.disks.map((disk, index) => ({ ...disk, cleanMark: cleanMarkOf(record, marks[index]) })),
        mirrors: active.primary.mirrors.leftAs(record.mirrors),
      }));
    } finally {
      this.#closeChildren(active, false);
    }
  }

  /** To be awaited before the record forgets how the images were left. Errors: `io-error`. */
  async begin(): Promise<void> {
    if (this.#active.role !== "Primary") return;
    const { copies, mirrors } = this.#active.primary;
    await copies.begin();
    await mirrors.recordFound();
  }

  /** Leaves the images as they are, for an agent that has not started: nothing is served, nor written. */
  abandon(): void {
    const active = this.#active;
    if (active.role === "Primary") this.#closeChildren(active, true);
    else active.secondary.abandon();
  }

  /** `abandons`: without writing what they hold back. */
  #closeChildren({ children }: ActivePrimary, abandons: boolean): void {
    for (const child of children) {
      if (abandons && child.abandon !== undefined) child.abandon();
      else child.close();
    }
  }

  #change<T>(change: () => Promise<T>): Promise<T> {
    const result = this.#changing.then(() => {
      // It would write beside what `stop` closes, and to images that it calls clean.
      if (this.#stopping) throw beingStopped();
      return change();
    });
    this.#changing = result.catch(() => undefined); // the caller has the error
    return result;
  }

  #newConnectors(): PeerConnectors {
    const { host } = this.#options.agent;
    return new PeerConnectors({
      ...host,
      dialer: (url) => this.#binding.guard(host.dialer(url)),
      isWanted: (url) => {
        const active = this.#active;
        return active.role === "Primary"
          ? active.primary.secondaries.isLinkWanted(url)
          : active.secondary.isLinkWanted(url);
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

  /** Does `work`, as soon as the state directory can be written. Errors: why not, when the agent is stopped meanwhile. */
  async #untilDone(work: () => Promise<unknown>): Promise<void> {
    for (;;) {
      try {
        await work();
        return;
      } catch (error) {
        if (this.#stopping) throw error;
      }
      await sleep(this.#options.agent.host.clock, STATE_RETRY_MS);
    }
  }

  #openPrimary(): ActivePrimary {
    if (this.#options.state.record.merge !== null) return this.#servePromotion(this.#parts.recoverPromotion());
    return this.#openPrimaryOver(this.#parts.openImages());
  }

  /** `tracking`: the bitmaps about the peer, where they are open already; `peerUrls`: as of `PrimaryOrigin`. */
  #servePromotion(
    promotion: PromotedDisks,
    tracking?: PeerTracking,
    peerUrls?: readonly (string | null)[],
  ): ActivePrimary {
    this.#promoted = promotion.disks.map(({ disk }) => disk);
    this.#promotedEpoch = promotion.epoch;
    return this.#openPrimaryOver(
      promotion.disks.map(({ name, disk }) => ({ name, child: disk })),
      { tracking, peerUrls },
    );
  }

  #openPrimaryOver(
    children: readonly NamedChild[],
    { tracking, peerUrls }: Partial<Pick<PrimaryOrigin, "tracking" | "peerUrls">> = {},
  ): ActivePrimary {
    const isPromoted = this.#promoted.length > 0;
    return this.#parts.openPrimary(children, { isPromoted, isStarting: this.#isStarting, tracking, peerUrls });
  }

  #replaceImage(index: number, image: DiskImage): OwnedChild | undefined {
    const active = this.#active;
    assert(active.role === "Primary", "a primary's disk has got another image");
    this.#promoted = []; // their merge is finished: a mirror needs that
    return active.children.splice(index, 1, image)[0];
  }

  /** Errors: `shutting-down`, so that the other side's guests go on at once. */
  #takeOver(lineage: string, siblings: readonly string[]): void {
    if (this.#stopping) throw beingStopped();
    this.promote({ discardActive: false, isHandedOver: true, siblings }, lineage).catch((error: unknown) =>
      this.#options.agent.host.log.error({ reason: asColobusError(error) }, "the role could not be taken over"),
    );
  }

  #handedOver(peer: string): void {
    const places = this.#active.role === "Primary" ? this.#active.primary.places : [];
    // Where it dials this side, whom this side dials stays as it is.
    const url = dialledPeers(places).find(({ agentId }) => agentId === peer)?.url;
    this.demote({ discardsOwn: false, newer: peer, peer: url }).catch((error: unknown) =>
      this.#options.agent.host.log.error({ reason: asColobusError(error) }, "the role could not be laid down"),
    );
  }

  #startMerge(): void {
    const { jobs, state, emit, agent } = this.#options;
    const { log } = agent.host;
    const merged = (): void => {
      emit("merged", { epoch: this.#promotedEpoch });
      // Until it is written other agents keep off the disk, and the next overwrite, or checkpoint, writes it as well: that
      // may have been meanwhile.
      this.#options.sharedMark
        ?.endMerge(log)
        .catch((error: unknown) =>
          log.warn({ reason: asColobusError(error) }, "the mark of the shared disk is not written"),
        );
    };
    const work = new MergeWork({ disks: this.#promoted, state, log, speed: agent.config.resyncSpeed, merged });
    this.#merging = jobs.start(work, work.begins);
  }
}

/** Why nothing begins any more. */
export function beingStopped(): ColobusError {
  return new ColobusError("shutting-down", "the agent is being stopped", "Try again later.");
}
