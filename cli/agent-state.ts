import { dirname } from "node:path";
import { ColobusError } from "../proto/errors.ts";
import type { MirrorMark, StateRecord } from "../proto/state-record.ts";
import type { Durability } from "../proto/words.ts";
import { allFailed, leftAs } from "../primary/mirror-record.ts";
import { withoutCleanMarks, withoutCopies, withUntrackedCopies } from "../primary/recorded-quorum.ts";
import { overlayDirectory } from "../secondary/overlay-files.ts";
import { clusterGeometry } from "../shared/block/cluster-geometry.ts";
import { imageUseOf, type ImageSource, type ImageUse } from "../shared/block/disk-image.ts";
import { finishGrowths, withoutGrowth } from "../shared/block/growth.ts";
import { parseImageLocation } from "../shared/block/image-location.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import { newId, type Random } from "../shared/host/random.ts";
import type { Storage } from "../shared/host/storage.ts";
import { bitmapsLost } from "../shared/journal/bitmap-entry.ts";
import { StateFile } from "../shared/journal/state-file.ts";
import { onlyWith, withoutPeers } from "../shared/replication/peer-slots.ts";
import type { AgentConfig } from "./agent-config.ts";
import { syncLeft } from "./left-unsynced.ts";
import { initialQuorum } from "./quorum-options.ts";

export interface StateHost {
  readonly storage: Storage;
  readonly images: ImageSource;
  readonly random: Random;
  readonly clock: Clock;
  readonly bootId: string;
  readonly log: Log;
}

/**
 * Opens the agent's state, or begins one from the configuration. The record wins over the configuration's role and
 * peers; what would contradict it (another VM, disk or image) is refused.
 * Errors: `state-mismatch`, `image-missing` and the other errors of opening images, `image-busy` (another agent runs).
 */
export async function openAgentState(host: StateHost, config: AgentConfig): Promise<StateFile> {
  await makeDirectories(host.storage, config);
  const existing = StateFile.open(host.storage, config.stateDirectory);
  if (existing === undefined) {
    return StateFile.create(
      host.storage,
      config.stateDirectory,
      newRecord(host, config, await initialSizes(host.images, config)),
    );
  }
  try {
    assertSame(existing.record, config);
    if (config.adoptImages) await adoptImages(host, existing, config);
    else assertSameImages(existing.record, config);
    const isSuspect = await mayHaveLostData(existing.record, host);
    const isTorn = await mayBeTorn(existing.record, host);
    const lostBarriers = await hasLostBarriers(existing.record, host);
    // Also where nothing is believed: what a promotion has not merged yet is served.
    const isRaised = mayBeUnsynced(existing.record) && config.durability === "power";
    // What was read may be in the page cache alone, if the last process died before its fsync. Recovery removes
    // overlays by it, so it has to stand first.
    await existing.update((record) => {
      const believed = isSuspect ? suspect(record, newId(host.random)) : isTorn ? torn(record) : record;
      return {
        ...withDurability(withAssumption(believed, config), host, isRaised ? record.durability : config.durability),
        unflushedThrough: lostBarriers ? record.epochReserved : record.unflushedThrough,
        lostSyncs: stillLost(record, host.bootId),
        replaysOwed: [],
        disks: namedAsRecorded(believed.disks, config),
      };
    });
    await finishGrowths(existing, host.images, host.log);
    if (isRaised) await raiseDurability(host, existing, config.stateDirectory);
    if (isSuspect) {
      host.log.warn(
        { durability: "process" },
        "the host, or a server of an image, has died since this agent last ran, and it never fsyncs: everything is sent or compared again",
      );
    }
    if (isTorn) {
      host.log.warn(
        { mode: "mirror" },
        "the host, or a server of an image, has died, and what guests were told of was not fsynced here: this side is Inconsistent until its next sync",
      );
    }
  } catch (error) {
    await existing.close();
    throw error;
  }
  tellOverruled(existing.record, config, host.log);
  return existing;
}

/**
 * Whether the operator vouches for the images as they are at this start. An option that is merely still there says nothing of
 * what was written since it was first given; and what is not merged yet is in no image that can be copied.
 */
function withAssumption({ assumeInSync: before, ...record }: StateRecord, config: AgentConfig): StateRecord {
  if (config.role !== "Primary" || !config.assumeInSync) return record;
  return { ...record, assumeInSync: before === undefined && record.merge === null ? "counts" : "spent" };
}

/** What the command line says and does not count: an earlier start has said it, or commands have changed it meanwhile. */
function tellOverruled(record: StateRecord, config: AgentConfig, log: Log): void {
  const { role, peers, disks, assumeInSync } = record;
  if (assumeInSync === "spent") {
    log.warn(
      { option: "assume-in-sync" },
      "it is about the start at which it is first given: a blank secondary gets everything; take the option out",
    );
  }
  if (role !== config.role) {
    log.warn(
      { role, command: config.role },
      "the state directory records another role than the command line says; the record wins",
    );
  }
  const areSame = peers.length === config.peers.length && peers.every((url) => config.peers.includes(url));
  if (peers.length > 0 && config.peers.length > 0 && !areSame) {
    log.warn(
      { peers, command: config.peers },
      "the state directory records other peers than the command line says; the record wins",
    );
  }
  for (const { name, image } of disks) {
    const given = config.disks.find((disk) => disk.name === name)?.image;
    if (given === undefined || given === image) continue;
    log.warn(
      { disk: name, image, command: given },
      "a mirror has replaced the image that the command line says; the state directory has the new one, which wins",
    );
  }
}

/**
 * The barriers that a primary of shared disks may have placed without having them flushed: those before a loss of power,
 * unless the agent was stopped in good order.
 */
export function unflushedThrough(record: StateRecord, bootId: string): number {
  const lostPower = record.bootId !== bootId && record.disks.some(({ cleanMark }) => cleanMark === null);
  return lostPower ? record.epochReserved : record.unflushedThrough;
}

/** From here on an end that is not clean is this process's. */
export function started(whole: StateRecord, { bootId }: Pick<StateHost, "bootId">, config: AgentConfig): StateRecord {
  const { loweredOn: _, ...record } = whole;
  return {
    ...record,
    bootId,
    unflushedThrough: unflushedThrough(record, bootId),
    disks: record.disks.map(withoutCleanMarks),
    mirrors: leftAs(record.mirrors, new Map()),
    peers: record.peers.length > 0 ? record.peers : [...config.peers],
  };
}

/**
 * What the files were left with: a start that lowers it is not over before `started`. Until then nothing is written that a loss
 * of power could take, but for images that committed block buffers are applied to.
 */
function leftWith({ durability, loweredOn, mode }: StateRecord, { bootId }: Pick<StateHost, "bootId">): Durability {
  return loweredOn !== undefined && (mode !== "mc" || loweredOn === bootId) ? "power" : durability;
}

/** This start goes by `durability`, and a later one by what the files were left with, if this one fails. */
function withDurability(record: StateRecord, host: Pick<StateHost, "bootId">, durability: Durability): StateRecord {
  const { loweredOn: _, ...rest } = record;
  const isLowered = durability === "process" && leftWith(record, host) === "power";
  return { ...rest, durability, ...(isLowered ? { loweredOn: host.bootId } : {}) };
}

/** Whether an agent that never fsyncs has left anything that may be in the page cache alone. */
function mayBeUnsynced({ durability, disks }: StateRecord): boolean {
  return durability === "process" && disks.some(({ sizeBytes, cleanMark }) => sizeBytes !== null && cleanMark === null);
}

/**
 * From here on the record promises what is fsynced, so all that it refers to is, first: until then a loss of power makes this
 * side suspect. So does an fsync that fails, and on a primary the disk's later ones fail as well.
 */
async function raiseDurability(host: StateHost, state: StateFile, stateDirectory: string): Promise<void> {
  const faults = await syncLeft(host, state.record, stateDirectory);
  for (const { disk, reason } of faults) {
    host.log.warn({ disk, reason }, "what was never fsynced cannot be: everything is sent or compared again");
  }
  await state.update((record) => {
    const raised = withDurability(withUntrackedTargets(record), host, "power");
    if (faults.length === 0) return raised;
    const lost = record.role === "Primary" ? [...new Set(faults.flatMap(({ disk }) => disk ?? []))] : [];
    return {
      ...suspect(raised, newId(host.random)),
      lostSyncs: [...record.lostSyncs, ...lost.map((disk) => ({ disk, active: null }))],
    };
  });
}

/** Whether a side that never fsyncs ended with the power, or with a server of an image: what it held is anyone's guess then. */
async function mayHaveLostData(record: StateRecord, { bootId, images }: StateHost): Promise<boolean> {
  if (!mayBeUnsynced(record) || leftWith(record, { bootId }) === "power") return false;
  if (record.bootId !== bootId) return true;
  return record.mode !== "shared" && (record.replaysOwed.length > 0 || images.haveLostWrites(record.disks, "own"));
}

/** Whether images of mode `mirror` may lack a write, and have a later one, which no disk would after a crash. */
async function mayBeTorn(record: StateRecord, { bootId, images }: StateHost): Promise<boolean> {
  const isUnclean = record.disks.some(({ sizeBytes, cleanMark }) => sizeBytes !== null && cleanMark === null);
  if (record.acksUnsynced !== true || record.role !== "Secondary" || !isUnclean) return false;
  return record.bootId !== bootId || images.haveLostWrites(record.disks, "own");
}

/** There is no state to return to; what the primary knows of this side's copy stands, for it was told of what is durable. */
function torn(record: StateRecord): StateRecord {
  return { ...record, committed: { epoch: 0, atMs: 0 }, prepared: [], retained: [], acksUnsynced: false };
}

/**
 * Whether a server that wrote a shared disk for a primary was killed: what it held of barriers whose flush was not done is
 * gone then, as after a loss of power. Of one that somebody else runs nobody here knows. Waits until a server that still
 * writes has ended.
 */
async function hasLostBarriers(record: StateRecord, { images }: StateHost): Promise<boolean> {
  const isUnclean = record.disks.some(({ cleanMark }) => cleanMark === null);
  if (record.mode !== "shared" || record.role !== "Primary" || !isUnclean) return false;
  const isServed = record.disks.some(({ image }) => parseImageLocation(image).kind === "nbd");
  return isServed || record.replaysOwed.length > 0 || images.haveLostWrites(record.disks, "shared");
}

/** Since the host has booted, readers see what its devices have; nobody knows when another host has. */
function stillLost({ bootId, lostSyncs, disks }: StateRecord, newBootId: string): StateRecord["lostSyncs"] {
  if (bootId === newBootId) return lostSyncs;
  const isElsewhere = (name: string): boolean => {
    const location = parseImageLocation(disks.find((disk) => disk.name === name)?.image ?? "");
    return location.kind === "nbd" && location.address.kind === "tcp";
  };
  return lostSyncs.filter(({ disk, active }) => active === null && isElsewhere(disk));
}

/**
 * Whether the last process has died, and its host has not: an fsync that failed in it may have lost what the page cache
 * still shows, and later ones would succeed without it. Where no primary has ever sent anything, nothing was written.
 */
export function mayHaveLostSyncs(record: StateRecord, bootId: string): boolean {
  const { pairing, lineage, history } = record;
  // A rollback, or the end of a primary's role, may leave no pairing behind, and the images as they are.
  const isUntouched = pairing === null && lineage === null && history.heard.length === 0;
  return (
    leftWith(record, { bootId }) === "power" &&
    record.bootId === bootId &&
    !isUntouched &&
    record.disks.some(({ cleanMark }) => cleanMark === null)
  );
}

/**
 * A secondary is Inconsistent then; under its new id no primary's record of what it lacks means anything. What a primary
 * knew of its secondary's copy is void as well.
 */
function suspect(whole: StateRecord, agentId: string): StateRecord {
  const record = withUntrackedTargets(bitmapsLost(whole, "power-lost"));
  // A shared disk is flushed for each checkpoint, and what the secondary holds leads back to the last one.
  if (record.mode === "shared" && record.role === "Primary") return record;
  const untracked = withoutPeers(record);
  if (record.role === "Primary") return untracked;
  return { ...untracked, agentId, committed: { epoch: 0, atMs: 0 }, prepared: [], retained: [] };
}

/** Copies beside the images, and targets of mirrors, may lack what their bitmaps do not name. */
function withUntrackedTargets(record: StateRecord): StateRecord {
  return { ...record, disks: record.disks.map(withUntrackedCopies), mirrors: record.mirrors.map(withoutBitmap) };
}

function withoutBitmap(mark: MirrorMark): MirrorMark {
  return { ...mark, isTracked: false };
}

/** Where the command line names a disk's recorded image, it means no other one any more. */
function namedAsRecorded(disks: StateRecord["disks"], config: AgentConfig): StateRecord["disks"] {
  return disks.map((disk) => {
    if (!config.disks.some(({ name, image }) => name === disk.name && image === disk.image)) return disk;
    const { formerImage: _, ...named } = disk;
    return named;
  });
}

/** The state directory and the overlays' directories in it; durable, so that no file in them can vanish with them. */
async function makeDirectories(storage: Storage, config: AgentConfig): Promise<void> {
  const { stateDirectory } = config;
  storage.makeDirectory(stateDirectory);
  storage.makeDirectory(`${stateDirectory}/disks`);
  for (const { name } of config.disks) storage.makeDirectory(overlayDirectory(stateDirectory, name));
  for (const directory of [`${stateDirectory}/disks`, stateDirectory, dirname(stateDirectory)]) {
    await storage.syncDirectory(directory);
  }
}

function newRecord(host: StateHost, config: AgentConfig, sizes: readonly (number | null)[]): StateRecord {
  const record: StateRecord = {
    agentId: newId(host.random),
    vm: config.vm,
    mode: config.mode,
    role: config.role,
    history: { origin: "created", shared: false, ancestors: [], heard: [] },
    pairing: null,
    tracks: null,
    outdated: false,
    discardsOwn: false,
    handOver: null,
    durability: config.durability,
    clusterBytes: config.clusterBytes,
    lineage: config.role === "Primary" ? newId(host.random) : null,
    peers: [...config.peers],
    disks: config.disks.map(({ name, image }, index) => ({
      name,
      image,
      sizeBytes: sizes[index] ?? null,
      cleanMark: null,
      ...initialQuorum(config, name),
    })),
    epochReserved: 0,
    unflushedThrough: 0,
    committed: { epoch: 0, atMs: 0 },
    prepared: [],
    retained: [],
    merge: null,
    lostSyncs: [],
    replaysOwed: [],
    mirrors: [],
    bootId: host.bootId,
  };
  return withAssumption(record, config);
}

/**
 * Takes the images as they are and where the command line says, but for one that a mirror has replaced: nothing is known any
 * more of what a secondary has.
 * Errors: `not-primary` on a secondary, whose overlays belong to the recorded images; `merge-unfinished`.
 */
async function adoptImages(host: StateHost, state: StateFile, config: AgentConfig): Promise<void> {
  if (state.record.role !== "Primary") {
    throw new ColobusError(
      "not-primary",
      "--adopt-image is for a primary, and this agent is recorded as Secondary",
      "Start a secondary with an empty state directory for a full sync.",
    );
  }
  if (state.record.merge !== null) {
    throw new ColobusError(
      "merge-unfinished",
      "--adopt-image is for a primary whose merge of its failover is finished",
      "Start it without --adopt-image, with the images as they were, and let `colobus wait merged` return.",
    );
  }
  const disks: StateRecord["disks"] = [];
  for (const disk of state.record.disks) {
    const given = config.disks.find(({ name }) => name === disk.name)?.image;
    // A command line of before a mirror means the image that has taken the former one's place, as at every other start.
    const image = given === undefined || given === disk.formerImage ? disk.image : given;
    disks.push({
      ...withoutGrowth(withoutCopies(disk)),
      name: disk.name,
      image,
      sizeBytes: await measure(host.images, image, imageUseOf(state.record), config),
      cleanMark: null,
    });
  }
  const reason = new ColobusError("image-changed", "the agent was started with --adopt-image");
  await state.update((record) =>
    allFailed(
      { ...bitmapsLost(onlyWith(record, undefined), "image-adopted"), disks, tracks: null, lostSyncs: [] },
      host.clock.wallMs(),
      reason,
    ),
  );
}

/** The images' sizes; null where one is to be created at the primary's size. */
async function initialSizes(images: ImageSource, config: AgentConfig): Promise<(number | null)[]> {
  const mayCreate = config.createImages && config.role === "Secondary";
  const use = config.mode === "shared" && config.role === "Secondary" ? "foreign" : imageUseOf(config);
  const sizes: (number | null)[] = [];
  for (const { image } of config.disks) {
    sizes.push(mayCreate && images.canCreate(image) ? null : await measure(images, image, use, config));
  }
  return sizes;
}

/** The size of an image that a record is to have. Errors: those of opening it; `usage`: it has more clusters than a start takes. */
async function measure(
  images: ImageSource,
  image: string,
  use: ImageUse,
  { clusterBytes }: Pick<AgentConfig, "clusterBytes">,
): Promise<number> {
  return clusterGeometry(await images.measure(image, use), clusterBytes).sizeBytes;
}

/** Errors: `state-mismatch`: what no start changes is not as recorded. */
function assertSame(record: StateRecord, config: AgentConfig): void {
  const differing = (what: string, recorded: unknown, given: unknown): ColobusError =>
    new ColobusError(
      "state-mismatch",
      `the state directory ${config.stateDirectory} records ${what} ${String(recorded)}, and the command line says ${String(given)}`,
      "Start with what is recorded, or with another --state directory.",
    );
  if (record.vm !== config.vm) throw differing("VM", record.vm, config.vm);
  if (record.mode !== config.mode) throw differing("mode", record.mode, config.mode);
  if (record.clusterBytes !== config.clusterBytes) {
    throw differing("cluster size", record.clusterBytes, config.clusterBytes);
  }
  const names = (disks: readonly { name: string }[]): string =>
    disks
      .map((disk) => disk.name)
      .sort()
      .join(", ");
  if (names(record.disks) !== names(config.disks)) {
    throw differing("the disks", names(record.disks), names(config.disks));
  }
}

/** Errors: `image-changed`: a disk is to have another image than recorded. */
function assertSameImages(record: StateRecord, config: AgentConfig): void {
  for (const disk of record.disks) {
    const given = config.disks.find((candidate) => candidate.name === disk.name);
    if (given !== undefined && given.image !== disk.image && given.image !== disk.formerImage) {
      throw new ColobusError(
        "image-changed",
        `disk ${disk.name} is recorded with image ${disk.image}, and the command line says ${given.image}`,
        "Start with the recorded image; a primary takes another one with --adopt-image, and sends everything again.",
      );
    }
  }
}
