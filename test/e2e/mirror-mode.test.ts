/** Mode `mirror` as operators and guests see it: no epochs, and a failover that returns every acknowledged write. */
import { describe, expect, it } from "vitest";
import { EXIT } from "../../proto/errors.ts";
import { SeededRandom } from "../sim/seeded-random.ts";
import { AgentPair, MIB, type PairOptions } from "../support/agent-pair.ts";
import { expectSame, NbdClient, qemuIo, readDisk } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { StampingGuest } from "../support/stamping-guest.ts";

const SIZE = 8 * MIB;
const INITIAL = Buffer.alloc(SIZE, 0x11);
const MIRROR: PairOptions = {
  disks: { vda: INITIAL },
  flags: ["--mode", "mirror"],
  primaryFlags: ["--assume-in-sync"],
};
const WRITES_MIN = 200;

/** What the disk holds after writes of one byte value at offset and length each. */
function written(...writes: readonly (readonly [value: number, offset: number, length: number])[]): Buffer {
  const content = Buffer.from(INITIAL);
  for (const [value, offset, length] of writes) content.fill(value, offset, offset + length);
  return content;
}

async function untilAlone(pair: AgentPair): Promise<void> {
  await pair.secondary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
}

describe.runIf(requirePeers("qemu-io", "nbdcopy", "python3:nbd"))("mode mirror", () => {
  it("returns every acknowledged write of all disks after kill -9 of the primary under writes, and swaps back", async () => {
    const pair = await AgentPair.protected({ disks: { vda: SIZE, vdb: SIZE }, flags: ["--mode", "mirror"] });
    const { primary, secondary, port } = pair;
    const random = new SeededRandom(7);
    const guests = ["vda", "vdb"].map((disk) => ({ disk, guest: new StampingGuest(random.fork(disk), SIZE) }));
    const clients = await Promise.all(guests.map(({ disk }) => NbdClient.connect(primary.uri(disk))));
    const writing = Promise.all(
      guests.map(async ({ guest }, index) => clients[index] !== undefined && guest.write(clients[index], () => false)),
    );
    await primary.until("busy", () => guests.every(({ guest }) => guest.acknowledged >= WRITES_MIN));
    await primary.crash();
    await writing;
    await untilAlone(pair);
    const answer = await secondary.get("failover");
    expect(answer).toMatchObject({ already: false, mode: "mirror", wouldLose: { writes: 0 } });
    for (const { disk, guest } of guests) guest.check(await readDisk(secondary.uri(disk)));

    await secondary.get("wait", "merged");
    await primary.start();
    await primary.get("rejoin", "--peer", `ws://127.0.0.1:${port}`);
    await secondary.until("protected", ({ protection }) => protection.state === "Protected");
    for (const { disk } of guests) expectSame(await readDisk(primary.uri(disk)), await readDisk(secondary.uri(disk)));
    await secondary.get("switchover");
    await primary.until("protected", ({ role, protection }) => role === "Primary" && protection.state === "Protected");
    for (const { disk, guest } of guests) guest.check(await readDisk(primary.uri(disk)));
  });

  it("shows the disk as it is, and in the middle of a resync returns what it was before", async () => {
    const pair = await AgentPair.protected(MIRROR);
    const { primary, secondary } = pair;
    await qemuIo(primary.uri(), "write -P 0x22 1M 64k");
    const before = written([0x22, MIB, 65_536]);
    expectSame(await readDisk(secondary.uri()), before);
    expectSame(pair.image("b"), before);
    expect((await secondary.status()).disks).toMatchObject([{ state: "UpToDate", hiddenBytes: 0 }]);

    await secondary.crash();
    await qemuIo(primary.uri(), "write -P 0x33 0 8M");
    await primary.crash();
    primary.setFlag("--resync-speed", "256KiB");
    await primary.start();
    await secondary.start();
    await secondary.until("half resynced", ({ disks }) => (disks[0]?.hiddenBytes ?? 0) >= MIB / 2);
    expect((await primary.status()).protection).toMatchObject({ state: "NotProtected", reason: "resync" });
    expectSame(await readDisk(secondary.uri()), before);
    await primary.crash();
    await untilAlone(pair);
    await secondary.get("failover");
    expectSame(await readDisk(secondary.uri()), before);
    await secondary.get("wait", "merged");
    expectSame(pair.image("b"), before);
  });

  it("drops the originals of a resync at its end", async () => {
    const pair = await AgentPair.protected(MIRROR);
    const { primary, secondary } = pair;
    await secondary.stop();
    await qemuIo(primary.uri(), "write -P 0x33 2M 2M");
    await secondary.start();
    await pair.untilProtected();
    const present = written([0x33, 2 * MIB, 2 * MIB]);
    expectSame(await readDisk(secondary.uri()), present);
    await secondary.until("free of originals", ({ disks }) => disks[0]?.hiddenBytes === 0);
    await secondary.crash();
    await secondary.start();
    expectSame(await readDisk(secondary.uri()), present);
  });

  it("refuses what is about checkpoints, and says what its state is", async () => {
    const pair = await AgentPair.protected(MIRROR);
    const { primary, secondary } = pair;
    for (const command of [["checkpoint"], ["commit", "1"], ["discard"], ["protect", "--disks-only"]]) {
      const { code, json } = await primary.ask<{ error: { code: string; action: string } }>(...command);
      expect({ command, code, error: json.error.code }).toEqual({ command, code: EXIT.failed, error: "no-epochs" });
      expect(json.error.action).toMatch(/colobus status/);
    }
    const { code, json } = await secondary.ask<{ error: { code: string } }>("rollback", "1");
    expect({ code, error: json.error.code }).toEqual({ code: EXIT.failed, error: "no-epochs" });
    expect(await primary.status()).toMatchObject({
      mode: "mirror",
      ack: "applied",
      protection: { state: "Protected" },
      recoverable: { wouldLose: { writes: 0, bytes: 0, atLeast: false } },
      peers: [{ replication: "Established" }],
    });
    expect(await secondary.status()).toMatchObject({
      recoverable: { wouldLose: { writes: 0, bytes: 0, atLeast: false } },
      peers: [{ replication: "Established", lagBytes: 0 }],
    });
    expect((await secondary.status()).exports.map(({ name }) => name)).toEqual(["vda"]);
    expect((await secondary.cli("status")).stdout).toMatch(/failover +to the last stable write, /);
  });
});
