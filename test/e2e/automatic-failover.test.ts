/** A pair, or a primary with two secondaries, that a real etcd decides over. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { COMMAND } from "../../proto/nbd-protocol.ts";
import type { AgentEvent, Status } from "../../proto/status.ts";
import { type AgentUnderTest, AgentPair, HERE, MIB } from "../support/agent-pair.ts";
import type { ErrorDocument } from "../support/cli-runner.ts";
import { Etcd } from "../support/etcd.ts";
import { NbdGuest } from "../support/nbd-guest.ts";
import { NbdTestSocket, request } from "../support/nbd-client.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { inSync, threeAgents } from "../support/three-agents.ts";
import { SteadyGuest } from "../support/steady-guest.ts";

const SIZE = 4 * MIB;
const OUTSTANDING = 16;
const BLOCK = 4096;

function flagsFor(etcd: Etcd): string[] {
  return ["--peer-timeout", "1s", "--arbiter", etcd.url, "--arbiter-ttl", "3s"];
}

async function pairUnder(etcd: Etcd, ...flags: string[]): Promise<AgentPair> {
  return AgentPair.protected({
    disks: { vda: Buffer.alloc(SIZE, 0x11) },
    flags: [...flagsFor(etcd), "--durability", "process", ...flags],
    primaryFlags: ["--assume-in-sync"],
  });
}

/**
 * A pair that shares its disk, with a hook that kills the primary's process, in place of its host, once `allow` is called; before
 * that it says that the peer cannot be reached.
 */
async function sharingPairUnder(etcd: Etcd): Promise<{ pair: AgentPair; allow: () => void }> {
  const scratch = scratchDirectory();
  const hook = join(scratch, "fence.sh");
  const pidFile = join(scratch, "pid");
  writeFileSync(hook, `#!/bin/sh\n[ -e ${pidFile} ] || exit 5\nkill -9 $(cat ${pidFile}); exit 7\n`, { mode: 0o755 });
  const pair = await AgentPair.protected({
    disks: { vda: Buffer.alloc(SIZE, 0x11) },
    shared: {},
    flags: [...flagsFor(etcd), "--failover", "automatic", "--fence-peer", hook, "--shared-mark", join(scratch, "mark")],
    primaryFlags: ["--on-peer-loss", "continue"],
  });
  return { pair, allow: () => writeFileSync(pidFile, String(pair.primary.pid)) };
}

async function untilEvent(agent: AgentUnderTest, type: string): Promise<AgentEvent> {
  for (;;) {
    const found = (await agent.control.events(0)).find((event) => event.type === type);
    if (found !== undefined) return found;
    await new Promise((resolve) => {
      setTimeout(resolve, 20);
    });
  }
}

const isPrimary = ({ role }: Status): boolean => role === "Primary";
const isServing = ({ role, failover }: Status): boolean => role === "Primary" && failover.arbiter?.state === "own";

/** A write whose first half is in the agent's hands. */
async function beginWrite(path: string, index: number): Promise<{ socket: NbdTestSocket; rest: Buffer }> {
  const socket = await NbdTestSocket.connect({ path });
  await socket.open("vda");
  const whole = request({
    type: COMMAND.WRITE,
    cookie: index + 1,
    offset: index * BLOCK,
    payload: Buffer.alloc(BLOCK, 0xee),
  });
  const half = whole.length - BLOCK / 2;
  socket.write(whole.subarray(0, half));
  return { socket, rest: whole.subarray(half) };
}

describe.runIf(requirePeers("etcd"))("a pair with an arbiter", () => {
  it("fails over by itself when the primary is killed, and refuses the old one", async () => {
    const etcd = await Etcd.start();
    const pair = await pairUnder(etcd, "--failover", "automatic");
    const { primary, secondary } = pair;
    const guest = await NbdGuest.connect(join(primary.run, "nbd.sock"));
    await guest.write(0, Buffer.alloc(BLOCK, 0x22));
    await pair.checkpoint();
    const holder = await primary.until("the holder", ({ failover }) => failover.arbiter?.state === "own");
    expect(holder.failover.kind).toBe("automatic");
    await primary.crash();
    await secondary.until("promoted", isServing);
    const survivor = await NbdGuest.connect(join(secondary.run, "nbd.sock"));
    expect(await survivor.read(0, BLOCK)).toEqual(Buffer.alloc(BLOCK, 0x22));
    await survivor.write(BLOCK, Buffer.alloc(BLOCK, 0x33));
    // The old primary is back: the record says that another one serves.
    await primary.start();
    const held = await primary.until("refused", ({ protection }) => protection.state === "NotProtected");
    expect(held).toMatchObject({ role: "Primary", failover: { arbiter: { leaseMsLeft: 0 } } });
    expect(["held", "outdated"]).toContain(held.protection.reason);
    guest.close();
    survivor.close();
  });

  it("lets no write succeed that was outstanding while the primary was stopped for longer than its lease", async () => {
    const etcd = await Etcd.start();
    const { primary, secondary } = await pairUnder(etcd, "--failover", "automatic");
    const path = join(primary.run, "nbd.sock");
    const writes = await Promise.all(Array.from({ length: OUTSTANDING }, (_, index) => beginWrite(path, index)));
    const reader = await NbdGuest.connect(path);
    await reader.read(0, BLOCK); // what came before is in the agent's hands
    primary.freeze();
    const late = reader.read(0, BLOCK).then(
      () => "succeeded",
      () => "failed",
    );
    await secondary.until("promoted", isServing);
    const survivor = await NbdGuest.connect(join(secondary.run, "nbd.sock"));
    expect(await survivor.read(0, BLOCK)).toEqual(Buffer.alloc(BLOCK, 0x11));
    for (const { socket, rest } of writes) socket.write(rest);
    primary.thaw();
    const replies = await Promise.all(writes.map(({ socket }) => socket.readSimpleReply()));
    expect(replies.filter(({ error }) => error === 0)).toEqual([]);
    expect(await late).toBe("failed");
    expect(await survivor.read(0, OUTSTANDING * BLOCK)).toEqual(Buffer.alloc(OUTSTANDING * BLOCK, 0x11));
    for (const { socket } of writes) socket.destroy();
    reader.close();
    survivor.close();
  });

  it("goes on when only the arbiter is lost", async () => {
    const etcd = await Etcd.start();
    const pair = await pairUnder(etcd, "--failover", "automatic");
    const { primary, secondary } = pair;
    const guest = await SteadyGuest.start(primary, Buffer.alloc(SIZE, 0x11));
    await etcd.kill();
    await primary.until("without its lease", ({ failover }) => failover.arbiter?.leaseMsLeft === 0);
    await guest.writesMore(200);
    await pair.checkpoint();
    await guest.stop();
    expect((await secondary.status()).role).toBe("Secondary");
    const { failover, protection } = await primary.status();
    expect(failover.arbiter).toMatchObject({ state: "unreachable", lastError: { code: "arbiter-unreachable" } });
    expect(protection.state).toBe("Protected");
  });

  it("takes a shared disk over by itself once the primary is fenced, and not before", async () => {
    const etcd = await Etcd.start();
    const { pair, allow } = await sharingPairUnder(etcd);
    const { primary, secondary } = pair;
    const guest = await NbdGuest.connect(join(primary.run, "nbd.sock"));
    await guest.write(0, Buffer.alloc(BLOCK, 0x22));
    await pair.checkpoint();
    await guest.write(0, Buffer.alloc(BLOCK, 0x33));
    primary.freeze();
    const { data } = await untilEvent(secondary, "takeover-failed");
    expect(data).toMatchObject({ code: "fence-failed", message: expect.stringContaining("exit code 5") });
    expect((await secondary.status()).role).toBe("Secondary");
    allow();
    await secondary.until("promoted", isServing);
    const survivor = await NbdGuest.connect(join(secondary.run, "nbd.sock"));
    expect(await survivor.read(0, BLOCK)).toEqual(Buffer.alloc(BLOCK, 0x22));
    await survivor.write(BLOCK, Buffer.alloc(BLOCK, 0x44));
    await secondary.get("wait", "merged");
    await primary.untilEnded();
    await primary.start();
    await primary.until("outdated", ({ protection }) => protection.reason === "outdated");
    expect(pair.image("a").subarray(0, 3 * BLOCK)).toEqual(
      Buffer.concat([Buffer.alloc(BLOCK, 0x22), Buffer.alloc(BLOCK, 0x44), Buffer.alloc(BLOCK, 0x11)]),
    );
    guest.close();
    survivor.close();
  });

  it("has a restarted primary serve while its peer is away, hands the role over with the lease, and fails over by hand", async () => {
    const etcd = await Etcd.start();
    const { primary, secondary } = await pairUnder(etcd);
    await secondary.crash();
    await primary.crash();
    await primary.start();
    // The record says that the peer, which is away, was not promoted: nobody waits for it.
    const alone = await NbdGuest.connect(join(primary.run, "nbd.sock"));
    await alone.write(0, Buffer.alloc(BLOCK, 0x44));
    alone.close();
    await secondary.start();
    await primary.until("protected again", ({ protection }) => protection.state === "Protected");
    await primary.get("switchover");
    await secondary.until("serving", isServing);
    await primary.until("secondary", ({ role }) => role === "Secondary");
    await primary.until("protecting", ({ protection }) => protection.state === "Protected");
    await secondary.get("checkpoint");
    await secondary.crash();
    const outlook = expect.stringMatching(/^(promised|held|granted)$/) as string;
    expect(await primary.get("failover", "--dry-run")).toMatchObject({ dryRun: true, arbiter: { outlook } });
    await primary.get("failover");
    const { failover } = await primary.until("serving", isPrimary);
    expect(failover).toMatchObject({ kind: "manual", arbiter: { state: "own" } });
    expect(await secondary.ask<ErrorDocument>("status")).toMatchObject({ code: 3 });
  });
});

const mayTakeOver = ({ peers }: Status): (boolean | null)[] => peers.map((peer) => peer.mayTakeOver);

describe.runIf(requirePeers("etcd"))("a primary with two secondaries and an arbiter", () => {
  it("is succeeded by one of those that have what was committed, and all others follow that one", async () => {
    const etcd = await Etcd.start();
    const { a, b, c, urlOf } = await threeAgents({
      hosts: { a: HERE, b: HERE, c: HERE },
      content: Buffer.alloc(SIZE, 0x11),
      imageOf: (root, name) => join(root, name, "vda.img"),
      flagsOf: () => [...flagsFor(etcd), "--failover", "automatic", "--durability", "process"],
    });
    await Promise.all([a.start(), b.start(), c.start()]);
    await a.until("in sync with both", (status) => inSync(status) === 2);
    await a.get("checkpoint");
    await a.until("succeeded by either", (status) => mayTakeOver(status).every((may) => may === true));
    const guest = await NbdGuest.connect(join(a.run, "nbd.sock"));

    // C is lost, and lacks the next checkpoint: it may not take over, though it is there again.
    await c.crash();
    await guest.write(0, Buffer.alloc(BLOCK, 0x22));
    await a.get("checkpoint");
    expect(mayTakeOver(await a.status())).toEqual([true, false]);
    b.freeze();
    await a.crash();
    await c.start();
    const { data } = await untilEvent(c, "takeover-failed");
    expect(data).toMatchObject({ code: "lease-refused" });
    expect((await c.status()).role).toBe("Secondary");
    b.thaw();
    await b.until("promoted", isServing);
    await b.until("followed by c", (status) => inSync(status) === 1);
    guest.close();
    const survivor = await NbdGuest.connect(join(b.run, "nbd.sock"));
    expect(await survivor.read(0, 2 * BLOCK)).toEqual(
      Buffer.concat([Buffer.alloc(BLOCK, 0x22), Buffer.alloc(BLOCK, 0x11)]),
    );
    await survivor.write(BLOCK, Buffer.alloc(BLOCK, 0x33));
    await b.get("wait", "merged");
    await b.get("checkpoint");

    // The first primary follows as well, and both that have the checkpoint claim at once.
    await a.start();
    await a.until("outdated", ({ protection }) => protection.reason === "outdated");
    await a.get("rejoin", "--peer", urlOf("b"));
    await b.until("in sync with both", (status) => inSync(status) === 2);
    await b.get("checkpoint");
    await b.until("succeeded by either", (status) => mayTakeOver(status).every((may) => may === true));
    survivor.close();
    await b.crash();
    const winner = await Promise.race([a, c].map((one) => one.until("promoted", isServing).then(() => one)));
    const other = winner === a ? c : a;
    const last = await NbdGuest.connect(join(winner.run, "nbd.sock"));
    const taken = Buffer.concat([Buffer.alloc(BLOCK, 0x22), Buffer.alloc(BLOCK, 0x33), Buffer.alloc(BLOCK, 0x11)]);
    expect(await last.read(0, 3 * BLOCK)).toEqual(taken);
    // B has dialled C, where A finds it; A was not dialled.
    if (winner === a) await winner.until("followed by c", (status) => inSync(status) === 1);
    else expect(await untilEvent(other, "takeover-failed")).toMatchObject({ data: { code: "lease-refused" } });
    expect((await other.status()).role).toBe("Secondary");
    last.close();
  });
});
