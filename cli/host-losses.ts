/** What becomes of a VM when one of the hosts is lost that something of it is on. */
import type { CopyStatus, HostStatus, Status } from "../proto/status.ts";
import type { StateRecord } from "../proto/state-record.ts";
import { isInSync, type PeerLossPolicy } from "../proto/words.ts";
import { lackedCheckpoint } from "../shared/replication/lineage.ts";
import { describeCopies, type KnownOfCopies } from "./copies.ts";

type IfLost = HostStatus["ifLost"];
type WouldLose = NonNullable<IfLost["wouldLose"]>;

/** What the answer is read from. */
type KnownOfHosts = KnownOfCopies & Pick<Status, "protection" | "recoverable" | "failover" | "copies">;

/** The host of the agent that answers. */
export interface OwnHost {
  readonly here: string;
  readonly onPeerLoss: PeerLossPolicy;
  readonly record: Pick<StateRecord, "disks" | "told" | "committed">;
}

/** One secondary, as far as it is known. */
interface Replica {
  readonly host: string | null;
  /** The hosts of its images. */
  readonly imageHosts: readonly (string | null)[];
  readonly isInSync: boolean;
  readonly isConnected: boolean;
  /** It lacks a checkpoint that was told to be committed, and knows so, or is barred: it is promoted by force only. */
  readonly isBehind: boolean;
  /** The arbiter's record does not let it take over: it may lack what another one has, whatever it has committed. */
  readonly isBarred: boolean;
  /** The checkpoint that a failover there returns to, and what it drops; undefined: none. */
  readonly returns: { readonly epoch: number; readonly wouldLose: WouldLose } | undefined;
}

interface Scene {
  readonly status: KnownOfHosts;
  readonly own: OwnHost;
  readonly primaryHost: string | null;
  readonly replicas: readonly Replica[];
  /** Copies that the primary writes. */
  readonly copies: readonly CopyStatus[];
}

/** Where the copies are, and what the loss of each host would mean. */
export function describePlaces(status: Omit<KnownOfHosts, "copies">, own: OwnHost): Pick<Status, "copies" | "hosts"> {
  const copies = describeCopies(status, own.here);
  return { copies, hosts: describeHosts({ ...status, copies }, own) };
}

/** Empty where this side is behind, or has diverged: then another one has to be asked. */
function describeHosts(status: KnownOfHosts, own: OwnHost): HostStatus[] {
  const { reason } = status.protection;
  if (reason === "outdated" || reason === "split-brain") return [];
  const { role, peers, copies } = status;
  const scene: Scene = {
    status,
    own,
    primaryHost: role === "Primary" ? own.here : (peers[0]?.host ?? null),
    replicas: role === "Primary" ? peersAsReplicas(status) : [selfAsReplica(status, own)],
    copies: copies.filter((copy) => copy.role === "Primary" || status.mode === "shared"),
  };
  const hosts = [own.here, ...peers.map(({ host }) => host), ...copies.map(({ host }) => host)];
  return [...new Set(hosts.filter((host) => host !== null))].map((name) => ({
    name,
    isHere: name === own.here,
    ifLost: describeLossOf(name, scene),
  }));
}

function describeLossOf(lost: string, scene: Scene): IfLost {
  const { status, own, replicas } = scene;
  const left = replicas.filter((replica) => survives(replica, lost));
  if (goesOn(lost, scene)) {
    const isReplicaLost = left.length < replicas.length;
    const nextAction = describeReturn(lost, scene, isReplicaLost);
    if (left.some((replica) => replica.isInSync && !replica.isBehind && replica.returns !== undefined))
      return plain("protected", nextAction);
    const isFrozen = isReplicaLost && own.onPeerLoss === "freeze" && !left.some(({ isConnected }) => isConnected);
    if (!isFrozen || status.role !== "Primary") return plain("unprotected", nextAction);
    return plain("frozen", "`colobus start-alone`, when the secondary is surely not Primary.");
  }
  const best = newestOf(left);
  if (best?.returns !== undefined) {
    const nextAction = describeFailoverTo(best, scene);
    return { outcome: "failover", failoverTo: best.host, ...best.returns, nextAction };
  }
  const sound = scene.copies.filter(({ state, host }) => state === "sound" && host !== lost);
  return status.disks.every(({ name }) => sound.some(({ disk }) => disk === name))
    ? plain("copies", "Start a primary with an empty state directory on the copies that are left.")
    : plain("lost", left.some(({ isConnected }) => isConnected) ? FIRST_CHECKPOINT : NOBODY_ELSE);
}

const FIRST_CHECKPOINT = "Nothing can be done then: wait for the first checkpoint, `colobus wait committed`.";
const NOBODY_ELSE = "Nothing can be done then: set up a secondary on another host now.";

/** Whether the primary and enough of its copies are left. */
function goesOn(lost: string, { primaryHost, status, own, copies }: Scene): boolean {
  if (primaryHost === lost) return false;
  return status.disks.every(({ name }) => {
    const left = copies.filter(
      ({ disk, host, state }) => disk === name && host !== lost && (state === "sound" || state === "unknown"),
    );
    return left.length >= votesOf(name, status, own);
  });
}

/** How many sound copies of a disk a primary needs. A secondary does not know of its primary's. */
function votesOf(disk: string, { role }: KnownOfHosts, { record }: OwnHost): number {
  const quorum = record.disks.find(({ name }) => name === disk)?.quorum;
  return role === "Primary" ? (quorum?.voteThreshold ?? 1) : 1;
}

function survives({ host, imageHosts }: Replica, lost: string): boolean {
  return host !== lost && !imageHosts.includes(lost);
}

/** Of those that an arbiter lets, or of all where it lets none: the one with the newest checkpoint, and of those one that is in sync. */
function newestOf(replicas: readonly Replica[]): Replica | undefined {
  const rank = ({ returns, isInSync: isWhole }: Replica): number => (returns?.epoch ?? 0) * 2 + (isWhole ? 1 : 0);
  const ranked = replicas.toSorted((left, right) => rank(right) - rank(left));
  return ranked.find(({ isBarred, returns }) => !isBarred && returns !== undefined) ?? ranked[0];
}

function peersAsReplicas(status: KnownOfHosts): Replica[] {
  const { peers, copies, recoverable, mode } = status;
  const sinceNewest = recoverable?.wouldLose ?? { writes: 0, bytes: 0, atLeast: true };
  return peers.map((peer) => {
    const isWhole = isInSync(peer.replication);
    // What was written since an older checkpoint is not counted, nor what a mirror has missed.
    const isExact = peer.committed === recoverable?.epoch && (mode !== "mirror" || isWhole);
    const wouldLose = isExact ? sinceNewest : { ...sinceNewest, atLeast: true };
    const shared = mode === "shared" ? copies : copies.filter((copy) => isOf(copy, peer.agentId));
    const lacks = mode !== "mirror" && peer.connection === "Connected" && peer.committed !== recoverable?.epoch;
    const isBarred = peer.mayTakeOver === false;
    return {
      host: peer.host,
      imageHosts: shared.map(({ host }) => host),
      isInSync: isWhole,
      isConnected: peer.connection === "Connected",
      isBehind: lacks || isBarred,
      isBarred,
      returns: peer.committed === null ? undefined : { epoch: peer.committed, wouldLose },
    };
  });
}

function selfAsReplica(status: KnownOfHosts, { here, record }: OwnHost): Replica {
  const { copies, peers, recoverable, disks, mode, agentId } = status;
  const [peer] = peers;
  const canServe = disks.every(({ state }) => state === "UpToDate" || state === "Consistent");
  const own = mode === "shared" ? copies : copies.filter((copy) => isOf(copy, agentId));
  return {
    host: here,
    imageHosts: own.map(({ host }) => host),
    isInSync: peer !== undefined && isInSync(peer.replication),
    isConnected: peer?.connection === "Connected",
    isBehind: lackedCheckpoint(record) !== undefined,
    isBarred: false, // a secondary asks the arbiter only when it hears no primary
    returns:
      recoverable === null || !canServe ? undefined : { epoch: recoverable.epoch, wouldLose: recoverable.wouldLose },
  };
}

function isOf(copy: CopyStatus, agentId: string | null): boolean {
  return copy.role === "Secondary" && copy.agentId === agentId;
}

function plain(outcome: IfLost["outcome"], nextAction: string): IfLost {
  return { outcome, failoverTo: null, epoch: null, wouldLose: null, nextAction };
}

function describeReturn(lost: string, { status, copies }: Scene, isReplicaLost: boolean): string {
  if (status.role === "Secondary") return "See `colobus status` on the primary.";
  const hasCopy = copies.some(({ host, name }) => host === lost && name !== null);
  const steps = [
    "When it is back it is brought what it lacks.",
    ...(isReplicaLost
      ? ["If it is gone for good, have another secondary take its place: `colobus connect --accept-new-peer`."]
      : []),
    ...(hasCopy ? ["A copy that is gone for good: `colobus child replace`."] : []),
  ];
  return steps.join(" ");
}

function describeFailoverTo({ host, isBehind }: Replica, { status, replicas }: Scene): string {
  const { failover, mode, role } = status;
  const isAutomatic = failover.kind === "automatic" && !isBehind;
  if (role === "Secondary" && isAutomatic) {
    return "Nothing: this side takes over by itself, unless the arbiter has it as outdated; `colobus failover --dry-run` tells.";
  }
  if (isAutomatic) return "Nothing: the secondary takes over by itself, if it has `--failover automatic` as well.";
  const where = role === "Secondary" ? "Here" : `On ${host ?? "the secondary's host"}`;
  const fenced = mode === "shared" ? ", when the lost host surely writes no more" : "";
  const others = replicas.length > 1 ? " On the other secondaries: `colobus rejoin`." : "";
  const forced = isBehind ? " --force" : "";
  return `${where}: \`colobus failover${forced}\`${fenced}.${others}`;
}
