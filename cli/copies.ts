/** Where the copies of a VM's disks are, as one of its agents knows it. */
import type { CopyStatus, DiskStatus, JobStatus, PeerStatus, Status } from "../proto/status.ts";
import { isInSync, type CopyState } from "../proto/words.ts";
import { parseImageLocation, type ImageLocation } from "../shared/block/image-location.ts";
import { isLoopback } from "../shared/host/loopback.ts";
import { hostOfAddress } from "../shared/replication/site.ts";

/** What copies are read from. */
export type KnownOfCopies = Pick<Status, "role" | "mode" | "agentId" | "epoch" | "peers" | "disks" | "jobs">;

/** The copies of each disk: those that this agent writes first. `here`: the host that it runs on. */
export function describeCopies(status: KnownOfCopies, here: string): CopyStatus[] {
  const { mode, peers, jobs } = status;
  return status.disks.flatMap((disk) => {
    const own = ownCopies(status, disk, here);
    if (mode === "shared") return own.map((copy) => sharedCopy(copy, peers));
    const mirrors = jobs.filter((job) => job.type === "mirror" && job.disk === disk.name && job.outcome === null);
    return [
      ...own,
      ...mirrors.map((job) => mirrorCopy(status, disk, job, here)),
      ...peers.map((peer) => peerCopy(status, disk, peer)),
    ];
  });
}

function ownCopies({ role, agentId, peers, epoch }: KnownOfCopies, disk: DiskStatus, here: string): CopyStatus[] {
  const own = { disk: disk.name, role, agentId } as const;
  if (role === "Secondary") {
    const image = disk.image;
    return [
      {
        ...own,
        name: null,
        host: hostOfImage(image, here, peers),
        image,
        state: disk.state === "Failed" ? "broken" : stateBy(peers[0]),
        dirtyBytes: null,
        epoch: orNull(epoch.committed),
      },
    ];
  }
  const images = disk.children.filter(({ kind }) => kind === "image");
  return images.map(({ name, path, state, dirtyBytes }) => ({
    ...own,
    name,
    host: hostOfImage(path, here, peers),
    image: path,
    state: disk.state === "Outdated" && state === "sound" ? "stale" : state,
    dirtyBytes: dirtyBytes ?? (state === "sound" ? 0 : null),
    epoch: null,
  }));
}

/** A shared disk is one copy, which both sides use. */
function sharedCopy(copy: CopyStatus, peers: readonly PeerStatus[]): CopyStatus {
  const state = copy.state === "broken" ? "broken" : "sound";
  return { ...copy, host: hostOfImage(copy.image, null, peers), state };
}

/** It counts when the disk has pivoted to it, and not before. */
function mirrorCopy(
  { role, agentId, peers }: KnownOfCopies,
  disk: DiskStatus,
  job: JobStatus,
  here: string,
): CopyStatus {
  return {
    disk: disk.name,
    name: job.id,
    role,
    agentId,
    host: hostOfImage(job.target, here, peers),
    image: job.target,
    state: "syncing",
    dirtyBytes: null,
    epoch: null,
  };
}

function peerCopy({ role, peers }: KnownOfCopies, { name: disk }: DiskStatus, peer: PeerStatus): CopyStatus {
  const known = peer.disks.find(({ name }) => name === disk);
  const image = known?.image ?? null;
  const common = {
    disk,
    name: null,
    agentId: peer.agentId,
    host: hostOfImage(image, peer.host, peers),
    image,
  } as const;
  if (role === "Secondary") {
    const state = peer.connection === "Connected" ? "sound" : "unknown";
    return { ...common, role: "Primary", state, dirtyBytes: null, epoch: null };
  }
  return {
    ...common,
    role: "Secondary",
    state: stateBy(peer),
    dirtyBytes: known?.dirtyBytes ?? null,
    epoch: peer.committed,
  };
}

/** The state of a secondary's copies, by what the session with it does. */
function stateBy(session: PeerStatus | undefined): CopyState {
  if (session === undefined) return "stale";
  const { replication } = session;
  if (isInSync(replication)) return "sound";
  return replication === "SyncSource" || replication === "SyncTarget" ? "syncing" : "stale";
}

/** The host of an image that an agent on `owner` names; null: not known. */
function hostOfImage(image: string | null, owner: string | null, peers: readonly PeerStatus[]): string | null {
  const location = image === null ? undefined : tryLocation(image);
  if (location?.kind !== "nbd" || location.address.kind === "unix") return owner;
  const { host } = location.address;
  if (isLoopback(host)) return owner;
  const peer = peers.find(
    ({ host: name, address, url }) =>
      name === host || [address, url].some((at) => at !== null && hostOfAddress(at) === host),
  );
  return peer?.host ?? host;
}

/** undefined: a peer of another release may name images in ways that are not known here. */
function tryLocation(image: string): ImageLocation | undefined {
  try {
    return parseImageLocation(image);
  } catch {
    return undefined;
  }
}

function orNull(epoch: number): number | null {
  return epoch === 0 ? null : epoch;
}
