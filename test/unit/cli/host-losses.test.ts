import { describe, expect, it } from "vitest";
import { describePlaces, type OwnHost } from "../../../cli/host-losses.ts";
import type { HostStatus, PeerStatus, Status } from "../../../proto/status.ts";
import type { StateRecord } from "../../../proto/state-record.ts";
import { stateRecord } from "../../support/state-records.ts";
import { lonelySecondary, protectedPrimary, syncingPrimary } from "../../support/status-examples.ts";

const ALPHA: OwnHost = { here: "alpha", onPeerLoss: "continue", record: stateRecord() };

const [beta] = protectedPrimary().peers as [PeerStatus];
const gamma: PeerStatus = {
  ...beta,
  url: "wss://192.0.2.3:7000",
  address: "192.0.2.3:7000",
  agentId: "c3",
  host: "gamma",
};

/** What is said of the loss of each host: the word, or where a failover is and to which checkpoint. */
function losses(status: Status, own: Partial<OwnHost> = {}): Record<string, string> {
  const { hosts } = describePlaces(status, { ...ALPHA, ...own });
  return Object.fromEntries(hosts.map((host) => [host.name, said(host)]));
}

function said({ ifLost }: HostStatus): string {
  if (ifLost.outcome !== "failover") return ifLost.outcome;
  const atLeast = ifLost.wouldLose?.atLeast === true ? "at least " : "";
  return `failover on ${ifLost.failoverTo} to ${ifLost.epoch}, losing ${atLeast}${ifLost.wouldLose?.writes}`;
}

function withPeers(...peers: PeerStatus[]): Status {
  return { ...protectedPrimary(), peers };
}

const AUTOMATIC: Status["failover"] = { ...protectedPrimary().failover, kind: "automatic" };

/** What helps when a host is lost. */
function nextActionOf(host: string, status: Status, own: Partial<OwnHost> = {}): string | undefined {
  const { hosts } = describePlaces(status, { ...ALPHA, ...own });
  return hosts.find(({ name }) => name === host)?.ifLost.nextAction;
}

/** One disk with these copies on the primary's side. */
function withChildren(status: Status, ...children: Status["disks"][number]["children"]): Status {
  const [disk] = status.disks as [Status["disks"][number]];
  return { ...status, disks: [{ ...disk, children }] };
}

const local = { name: "local", kind: "image", path: "/srv/vda.raw", state: "sound" } as const;
const onStorage = { name: "b", kind: "image", path: "nbd://storage/vda", state: "sound" } as const;

describe("the loss of a host", () => {
  it("of a pair stops the VM, or leaves it unprotected", () => {
    expect(losses(protectedPrimary())).toEqual({
      alpha: "failover on beta to 42, losing 3",
      beta: "unprotected",
    });
  });

  it("freezes the writes where the policy says so, and nobody else is there", () => {
    expect(losses(protectedPrimary(), { onPeerLoss: "freeze" })).toMatchObject({ beta: "frozen" });
    expect(losses(withPeers(beta, gamma), { onPeerLoss: "freeze" })).toMatchObject({ beta: "protected" });
  });

  it("leaves a VM with a second secondary protected", () => {
    expect(losses(withPeers(beta, gamma))).toEqual({
      alpha: "failover on beta to 42, losing 3",
      beta: "protected",
      gamma: "protected",
    });
  });

  it("is made up for by the secondary with the newest checkpoint, and of those by one that lacks nothing", () => {
    const behind: PeerStatus = { ...beta, connection: "Connecting", replication: "Off", committed: 40 };
    expect(losses(withPeers(behind, gamma))).toMatchObject({
      alpha: "failover on gamma to 42, losing 3",
      gamma: "unprotected",
    });
    const syncing: PeerStatus = { ...beta, replication: "SyncSource" };
    expect(losses(withPeers(syncing, gamma))).toMatchObject({ alpha: "failover on gamma to 42, losing 3" });
    // What was written since an older checkpoint nobody has counted.
    expect(losses(withPeers(behind))).toMatchObject({ alpha: "failover on beta to 40, losing at least 3" });
  });

  it("is made up for by force only where the one that is left is connected and lacks the newest checkpoint", () => {
    const behind: PeerStatus = { ...gamma, committed: 40 };
    const status = withPeers(beta, behind);
    expect(losses(status)).toMatchObject({ alpha: "failover on beta to 42, losing 3", beta: "unprotected" });
    const { hosts } = describePlaces({ ...withPeers(behind), recoverable: null }, ALPHA);
    expect(hosts.find(({ name }) => name === "alpha")?.ifLost).toMatchObject({
      outcome: "failover",
      epoch: 40,
      nextAction: "On gamma: `colobus failover --force`.",
    });
  });

  it("is made up for by one that the arbiter's record lets take over, or else by force", () => {
    const outdated: PeerStatus = { ...beta, mayTakeOver: false };
    const successor: PeerStatus = { ...gamma, mayTakeOver: true };
    expect(losses(withPeers(outdated, successor))).toEqual({
      alpha: "failover on gamma to 42, losing 3",
      beta: "protected",
      gamma: "unprotected",
    });
    // It has committed one more, which was never told.
    const newer = { ...withPeers({ ...outdated, committed: 43 }, successor), failover: AUTOMATIC };
    expect(losses(newer)).toMatchObject({ alpha: "failover on gamma to 42, losing 3" });
    expect(nextActionOf("alpha", newer)).toContain("takes over by itself");
    const barred = { ...withPeers(outdated), failover: AUTOMATIC };
    expect(losses(barred)).toMatchObject({ alpha: "failover on beta to 42, losing 3", beta: "unprotected" });
    expect(nextActionOf("alpha", barred)).toBe("On beta: `colobus failover --force`.");
  });

  it("is for a secondary that lacks what was told to make up for by force only, connected or not", () => {
    const alone = { ...lonelySecondary(), failover: AUTOMATIC };
    expect(nextActionOf("beta", alone)).toContain("this side takes over by itself, unless");
    expect(nextActionOf("beta", alone, { record: stateRecord({ told: 43, committed: { epoch: 42, atMs: 0 } }) })).toBe(
      "Here: `colobus failover --force`.",
    );
  });

  it("of both agents at once leaves nothing", () => {
    expect(losses(withPeers({ ...beta, host: "alpha" }))).toEqual({ alpha: "lost" });
  });

  it("that has an image of the secondary's takes the secondary along", () => {
    const scattered: PeerStatus = {
      ...beta,
      disks: [
        { name: "vda", image: "/srv/vda.raw", dirtyBytes: 0 },
        { name: "vdb", image: "nbd://192.0.2.3/vdb", dirtyBytes: 0 },
      ],
    };
    expect(losses(withPeers(scattered))).toEqual({
      "alpha": "failover on beta to 42, losing 3",
      "beta": "unprotected",
      "192.0.2.3": "unprotected",
    });
    // The host of an address is the one that the peer there is on.
    expect(losses(withPeers(scattered, gamma))).toEqual({
      alpha: "failover on beta to 42, losing 3",
      beta: "protected",
      gamma: "unprotected",
    });
  });

  it("that has a copy of the primary's costs nothing while enough sound ones are left", () => {
    const status = withChildren(protectedPrimary(), local, onStorage);
    expect(losses(status)).toMatchObject({ storage: "protected", alpha: "failover on beta to 42, losing 3" });
    const disks = [{ name: "vda", quorum: { voteThreshold: 2 } }] as unknown as StateRecord["disks"];
    expect(losses(status, { record: stateRecord({ disks }) })).toMatchObject({
      storage: "failover on beta to 42, losing 3",
    });
    expect(losses(withChildren(protectedPrimary(), { ...local, state: "broken" }, onStorage))).toMatchObject({
      storage: "failover on beta to 42, losing 3",
    });
  });

  it("without any checkpoint leaves the sound copies on other hosts", () => {
    const unsynced = { ...syncingPrimary().peers[0] } as PeerStatus;
    const status = { ...withChildren(syncingPrimary(), local, onStorage), peers: [unsynced] };
    expect(losses(status)).toMatchObject({ alpha: "copies", beta: "unprotected" });
    const lagging = withChildren(status, local, { ...onStorage, state: "syncing" });
    expect(losses(lagging)).toMatchObject({ alpha: "lost" });
  });

  it("of the primary's is for the secondary to make up for", () => {
    const secondary = { ...lonelySecondary(), disks: lonelySecondary().disks.map((disk) => ({ ...disk })) };
    expect(losses(secondary)).toEqual({ alpha: "unprotected", beta: "failover on alpha to 42, losing at least 17" });
    expect(losses({ ...secondary, recoverable: null })).toMatchObject({ beta: "lost" });
  });

  it("is not spoken of by a side that is behind, or has diverged", () => {
    for (const reason of ["outdated", "split-brain"] as const) {
      const protection = { state: "NotProtected", reason, nextAction: "" } as const;
      expect(losses({ ...protectedPrimary(), protection })).toEqual({});
    }
  });

  it("of a shared disk's host leaves nothing, whoever has a checkpoint of it", () => {
    const [disk] = protectedPrimary().disks as [Status["disks"][number]];
    const status: Status = {
      ...protectedPrimary(),
      mode: "shared",
      disks: [{ ...disk, children: [{ ...local, path: "nbd://san/vda" }] }],
    };
    expect(losses(status)).toEqual({
      alpha: "failover on beta to 42, losing 3",
      beta: "unprotected",
      san: "lost",
    });
  });
});

describe("the copies of a disk", () => {
  it("are those of the primary, its children and its mirrors, and each secondary's", () => {
    const [job] = syncingPrimary().jobs as [Status["jobs"][number]];
    const status = withChildren(withPeers(beta, { ...gamma, connection: "Connecting", replication: "Off" }), local, {
      ...onStorage,
      state: "syncing",
      dirtyBytes: 4096,
    });
    const mirror = { ...job, id: "mirror-1", type: "mirror", disk: "vda", target: "/mnt/new.raw" } as const;
    const { copies } = describePlaces({ ...status, jobs: [mirror] }, ALPHA);
    expect(
      copies.map(({ name, role, host, state, dirtyBytes, epoch }) => [role, name, host, state, dirtyBytes, epoch]),
    ).toEqual([
      ["Primary", "local", "alpha", "sound", 0, null],
      ["Primary", "b", "storage", "syncing", 4096, null],
      ["Primary", "mirror-1", "alpha", "syncing", null, null],
      ["Secondary", null, "beta", "sound", 0, 42],
      ["Secondary", null, "gamma", "stale", 0, 42],
    ]);
  });

  it("of a secondary without its primary are what it can return to", () => {
    const { copies } = describePlaces(lonelySecondary(), ALPHA);
    expect(copies.map(({ role, host, state, epoch }) => [role, host, state, epoch])).toEqual([
      ["Secondary", "alpha", "stale", 42],
      ["Primary", "beta", "unknown", null],
    ]);
  });
});
