/**
 * A real VM survives the loss of its host, twice: `colobus protect` on host A, a failover to B, where it goes on and is
 * protected again, and a failover back. COLOBUS_VM_PAIRS=10 makes twenty of it. There the VM runs while its
 * memory is written, where that is possible; back it is paused. Another has a file system on a second disk, and each host a network of its own.
 * The QEMU of a third answers nobody for a while.
 */
import { once } from "node:events";
import { copyFileSync, readdirSync, readFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { ProtectedVm } from "../../cli/protected-vm.ts";
import { VM_DOWNTIME_LIMIT_MS } from "../../proto/limits.ts";
import { NodeClock } from "../../shared/host/node-clock.ts";
import { QmpClient } from "../../shared/host/qmp-client.ts";
import { AgentPair, makeImage, MIB, type AgentUnderTest } from "../support/agent-pair.ts";
import { CountingVm, nextHash, requireCountingGuest, writeInitramfs, type Step } from "../support/counting-guest.ts";
import { loseAnswer } from "../support/losing-qmp.ts";
import { tool } from "../support/nbd-tools.ts";
import { canMakeNamespaces, NetworkNamespaces } from "../support/network-namespaces.ts";
import { requirePeers } from "../support/peers.ts";
import { ProtectProcess } from "../support/protect-process.ts";
import { scratchDirectory } from "../support/scratch.ts";

const PAIRS = Number(process.env["COLOBUS_VM_PAIRS"] ?? 1);
const STEPS = 3;
/** One that is not answered, two whose connections wait in QEMU's queue, and two that find it full. */
const HANGING_ROUNDS = 5;
/** One in twenty was lost to a migration that QEMU was not done with when it told of its end. */
const ROUNDS_ON_END = 100;
/** The moment of the loss is drawn from so long: a round takes about half of it. */
const LOSS_WITHIN_MS = 2_000;

/** A VM that counts, with its disk on a pair that is protected. */
async function countingVm(): Promise<{ vm: CountingVm; primary: AgentUnderTest; root: string }> {
  const { primary, root } = await AgentPair.protected({ disks: { vda: 4 * MIB } });
  writeInitramfs(join(root, "initramfs"));
  const vm = new CountingVm({ directory: root, name: "a", diskUris: [primary.uri()], waits: false });
  await vm.untilSteps(STEPS);
  return { vm, primary, root };
}

/** Loses the VM and its agent at some moment, and has the other side go on. Returns the VM there. */
async function loseHost(
  vm: CountingVm,
  source: AgentUnderTest,
  target: AgentUnderTest,
  create: () => CountingVm | Promise<CountingVm>,
  ...flags: string[]
): Promise<CountingVm> {
  const protect = new ProtectProcess(vm, source, ...flags);
  await protect.untilCommitted();
  const lossMs = Math.random() * LOSS_WITHIN_MS;
  await new Promise((resolve) => {
    setTimeout(resolve, lossMs);
  });
  await Promise.all([vm.kill(), source.crash()]);
  protect.kill();
  const before = vm.steps();
  const acknowledged = protect.committed.at(-1);
  await target.until("alone", ({ peers }) => peers[0]?.connection === "Connecting");
  const { epoch } = await target.get<{ epoch: number }>("failover");
  expect(epoch).toBeGreaterThanOrEqual(acknowledged?.epoch ?? Infinity);
  const after = await create();
  await after.untilListening();
  await target.get("vmstate", "--qmp", after.qmp);
  const [first] = await after.untilSteps(STEPS);
  expectToFollow(first, before);
  const told = `lost after ${Math.round(lossMs)} ms, back to step ${first?.n}; pauses`;
  process.stderr.write(`${[told, ...flags].join(" ")}: ${protect.pauses}\n`);
  return after;
}

/**
 * A protection that is killed while a state is written leaves the VM running, or the next one has it run again, and the
 * checkpoint before in force. The next protection goes on, and one that ends leaves the VM running.
 */
async function expectToOutlive(vm: CountingVm, { root, primary: source, secondary: target }: AgentPair): Promise<void> {
  const protect = new ProtectProcess(vm, source, "--background-snapshot", "auto");
  await protect.untilCommitted();
  await untilStateWritten(join(root, "b", "state", "vmstate"));
  protect.kill();
  const committed = protect.committed.at(-1)?.epoch ?? Infinity;
  const next = new ProtectProcess(vm, source, "--background-snapshot", "auto");
  const before = vm.steps().length;
  expect((await target.status()).recoverable?.epoch).toBeGreaterThanOrEqual(committed);
  await next.untilCommitted();
  expect(next.committed[0]?.epoch).toBeGreaterThan(committed);
  expect(await next.stop()).toBe(0);
  await vm.untilSteps(before + 2);
  process.stderr.write(`killed while a state was written: ${next.pauses}\n`);
}

/** Resolves when a state that is not there yet begins to arrive. */
async function untilStateWritten(directory: string): Promise<void> {
  const known = new Set(readdirSync(directory));
  while (readdirSync(directory).every((name) => known.has(name))) {
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
  }
}

/** The restored guest goes on from a step that the lost one has made; it checks its disk against its memory itself. */
function expectToFollow(first: Step | undefined, before: readonly Step[]): void {
  expect(first?.n).toBeGreaterThan(1);
  const known = before.find(({ n }) => n + 1 === first?.n);
  // The lost VM may have made a step that its console did not get to tell.
  if (known !== undefined) expect(first?.hash).toBe(nextHash(known));
  else expect(first?.n).toBeLessThanOrEqual((before.at(-1)?.n ?? 0) + 2);
}

/** An image with an ext4 of this size. */
async function makeFileSystem(sizeBytes: number): Promise<Buffer> {
  const path = join(scratchDirectory(), "ext4");
  makeImage(path, sizeBytes);
  await tool("mkfs.ext4", "-q", "-b", "1024", path);
  return readFileSync(path);
}

/** What a host would find that mounts this copy: the journal is replayed, and nothing else is to be mended. */
async function expectSoundFileSystem(path: string): Promise<void> {
  await tool("e2fsck", "-E", "journal_only", "-p", path);
  await tool("fsck.ext4", "-fn", path);
}

/** While nobody else uses the VM's socket. */
async function execute({ qmp: socket }: CountingVm, command: string, args?: Record<string, unknown>): Promise<unknown> {
  const qmp = await QmpClient.connect({ socket, clock: new NodeClock(), timeoutMs: 60_000 });
  return qmp.execute(command, args).finally(() => qmp.close());
}

function migrationParameters(vm: CountingVm): Promise<unknown> {
  return execute(vm, "query-migrate-parameters");
}

/** Has QEMU write the state of the VM, which is paused, to nobody. */
async function writeState(vm: CountingVm): Promise<void> {
  await execute(vm, "migrate", { uri: "exec:cat > /dev/null" });
  for (let status: unknown; status !== "completed";) {
    ({ status } = (await execute(vm, "query-migrate")) as { status?: unknown });
    expect(status).not.toBe("failed");
  }
}

/** Listens at `path`; resolves with the first connection, of which nothing is read before it is told to. */
async function receiveLate(path: string): Promise<Socket> {
  const server = createServer({ pauseOnConnect: true });
  server.listen({ path });
  onTestFinished(() => void server.close());
  const [socket] = (await once(server, "connection")) as [Socket];
  onTestFinished(() => void socket.destroy());
  return socket;
}

describe.runIf(requireCountingGuest())("a protected VM", () => {
  it.each(Array.from({ length: PAIRS }, (_, index) => index + 1))(
    "goes on on the other host from the last checkpoint, there and back, pair %i",
    async () => {
      const pair = await AgentPair.protected({ disks: { vda: 4 * MIB }, flags: ["--peer-timeout", "1s"] });
      const { primary, secondary, root } = pair;
      writeInitramfs(join(root, "initramfs"));
      const onA = new CountingVm({ directory: root, name: "a", diskUris: [primary.uri()], waits: false });
      await onA.untilSteps(STEPS);
      await expectToOutlive(onA, pair);
      const onB = await loseHost(
        onA,
        primary,
        secondary,
        () => new CountingVm({ directory: root, name: "b", diskUris: [secondary.uri()], waits: true }),
        "--background-snapshot",
        "auto",
      );

      await primary.start();
      await primary.get("rejoin", "--peer", `ws://127.0.0.1:${pair.port}`);
      await secondary.until("protected", ({ protection }) => protection.state === "Protected");
      const back = await loseHost(
        onB,
        secondary,
        primary,
        () => new CountingVm({ directory: root, name: "a2", diskUris: [primary.uri()], waits: true }),
        "--background-snapshot",
        "off",
      );
      await back.kill();
    },
    300_000,
  );

  it.runIf(requirePeers("mkfs.ext4", "e2fsck", "fsck.ext4", "nbdcopy", "ip") && canMakeNamespaces())(
    "goes on with two disks, one with a file system that is sound at the checkpoint and later",
    async () => {
      const network = new NetworkNamespaces();
      const pair = await AgentPair.protected({
        disks: { vda: 4 * MIB, vdb: await makeFileSystem(16 * MIB) },
        flags: ["--peer-timeout", "1s", "--insecure"],
        hosts: network,
      });
      const { primary, secondary, root } = pair;
      writeInitramfs(join(root, "initramfs"));
      const disksOf = (agent: AgentUnderTest): string[] => [agent.uri("vda"), agent.uri("vdb")];
      const { launcher } = network.a;
      const onA = new CountingVm({ directory: root, name: "a", diskUris: disksOf(primary), launcher, waits: false });
      await onA.untilSteps(STEPS);
      const copy = join(root, "copy");
      const onB = await loseHost(onA, primary, secondary, async () => {
        await tool("nbdcopy", secondary.uri("vdb"), copy);
        await expectSoundFileSystem(copy);
        const { launcher: there } = network.b;
        return new CountingVm({
          directory: root,
          name: "b",
          diskUris: disksOf(secondary),
          launcher: there,
          waits: true,
        });
      });
      await onB.kill();
      await secondary.get("wait", "merged");
      await secondary.stop();
      copyFileSync(pair.imagePath("b", "vdb"), copy);
      await expectSoundFileSystem(copy);
    },
    300_000,
  );

  it("is protected again when its QEMU answers again, which migrates as before in the end", async () => {
    const { vm, primary } = await countingVm();
    const before = await migrationParameters(vm);
    const protect = new ProtectProcess(vm, primary, "--timeout", "10s");
    await protect.untilCommitted();
    await vm.whileStopped(async () => {
      for (let round = 0; round < HANGING_ROUNDS; round += 1) await protect.untilNext("failed");
    });
    await protect.untilNext("committed");
    expect(await protect.stop()).toBe(0);
    expect(await migrationParameters(vm)).toEqual(before);
    await vm.untilSteps(vm.steps().length + STEPS);
  }, 300_000);

  it("loses no checkpoint of many, one behind the other", async () => {
    const { vm, primary } = await countingVm();
    const protect = new ProtectProcess(vm, primary, "--interval", "1ms");
    while (protect.rounds.length < ROUNDS_ON_END) await protect.untilNext("committed");
    expect(await protect.stop()).toBe(0);
    expect(protect.rounds.filter(({ state }) => state !== "committed")).toEqual([]);
    await vm.untilSteps(vm.steps().length + STEPS);
  }, 300_000);

  it("is let run where a protection has paused it, and not where another has, though its state was written", async () => {
    const { vm } = await countingVm();
    const connect = (): Promise<ProtectedVm> =>
      ProtectedVm.connect({ socket: vm.qmp, clock: new NodeClock(), timeoutMs: 10_000 });
    await execute(vm, "stop");
    await writeState(vm);
    await (await connect()).release();
    expect(await execute(vm, "query-status")).toMatchObject({ status: "postmigrate" });
    await execute(vm, "cont");
    // As a protection that is killed leaves it.
    await execute(vm, "migrate-set-parameters", { "downtime-limit": VM_DOWNTIME_LIMIT_MS - 1 });
    await execute(vm, "stop");
    await writeState(vm);
    const next = await connect();
    await vm.untilSteps(vm.steps().length + STEPS);
    await next.release();
  }, 300_000);

  it("has one checkpoint more when another has paused it, stays paused, and is protected again when it runs", async () => {
    const { vm, primary } = await countingVm();
    await execute(vm, "stop");
    const before = vm.steps();
    const whilePaused = new ProtectProcess(vm, primary);
    await whilePaused.untilWaiting();
    expect(await whilePaused.stop()).toBe(0);
    expect(whilePaused.rounds.map(({ state }) => state)).toEqual(["committed", "waiting"]);
    expect(vm.steps()).toEqual(before);

    expect(await execute(vm, "query-status")).toMatchObject({ status: "postmigrate" });
    const next = new ProtectProcess(vm, primary);
    await next.untilWaiting();
    expect(await next.stop()).toBe(0);
    expect(vm.steps()).toEqual(before);

    await execute(vm, "cont");
    const whileRunning = new ProtectProcess(vm, primary);
    await whileRunning.untilCommitted();
    expect(await whileRunning.stop()).toBe(0);
    await vm.untilSteps(before.length + STEPS);
  }, 300_000);

  it("ends its protection when its QEMU is killed", async () => {
    const { vm, primary } = await countingVm();
    const protect = new ProtectProcess(vm, primary);
    await protect.untilCommitted();
    await vm.kill();
    expect(await protect.ended).toMatchObject({ code: 1, stdout: expect.stringContaining("vm-unreachable") });
  }, 300_000);

  it("goes on when its QEMU has begun to write its state, and only the answer is lost", async () => {
    const { vm, root } = await countingVm();
    const socket = join(root, "losing.qmp");
    await loseAnswer("migrate", vm.qmp, socket);
    const state = join(root, "state.sock");
    const written = receiveLate(state);

    const guest = await ProtectedVm.connect({ socket, clock: new NodeClock(), timeoutMs: 10_000 });
    expect(await guest.pause()).toBe("here");
    await expect(guest.beginSave(state)).rejects.toMatchObject({ code: "timed-out" });
    const out = await written;
    await guest.resume();
    out.resume();
    await guest.untilIdle();
    await guest.recover();
    await vm.untilSteps(vm.steps().length + STEPS);
    await guest.release();
  }, 300_000);
});
