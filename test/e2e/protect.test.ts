/**
 * A real VM survives the loss of its host, twice: `colobus protect` on host A, a failover to B, where it goes on and is
 * protected again, and a failover back. COLOBUS_VM_PAIRS=10 makes twenty of it.
 */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { ProtectionRound } from "../../cli/protection.ts";
import { AgentPair, MIB, type AgentUnderTest } from "../support/agent-pair.ts";
import { ColobusProcess } from "../support/cli-runner.ts";
import { CountingVm, nextHash, requireCountingGuest, writeInitramfs, type Step } from "../support/counting-guest.ts";

const PAIRS = Number(process.env["COLOBUS_VM_PAIRS"] ?? 1);
const STEPS = 3;
/** The moment of the loss is drawn from so long: a round takes about half of it. */
const LOSS_WITHIN_MS = 2_000;

type Committed = Extract<ProtectionRound, { state: "committed" }>;

class ProtectProcess {
  readonly #process: ColobusProcess;

  constructor(vm: CountingVm, agent: AgentUnderTest) {
    const args = ["protect", "--qmp", vm.qmp, "--interval", "1s", "--json", "--run", agent.run];
    this.#process = new ColobusProcess(args);
  }

  get committed(): Committed[] {
    const lines = this.#process.stdout.split("\n").filter((line) => line.endsWith("}"));
    return lines
      .map((line) => JSON.parse(line) as ProtectionRound)
      .filter((round): round is Committed => round.state === "committed");
  }

  async untilCommitted(): Promise<void> {
    await Promise.race([
      this.#process.untilPrinted('"committed"'),
      this.#process.ended.then(({ stderr }) => Promise.reject(new Error(`protect has ended: ${stderr}`))),
    ]);
  }

  kill(): void {
    this.#process.child.kill("SIGKILL");
  }

  async stop(): Promise<number | null> {
    this.#process.child.kill("SIGTERM");
    return (await this.#process.ended).code;
  }
}

/** Loses the VM and its agent at some moment, and has the other side go on. Returns the VM there. */
async function loseHost(
  vm: CountingVm,
  source: AgentUnderTest,
  target: AgentUnderTest,
  create: () => CountingVm,
): Promise<CountingVm> {
  const protect = new ProtectProcess(vm, source);
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
  const after = create();
  await after.untilListening();
  await target.get("vmstate", "--qmp", after.qmp);
  const [first] = await after.untilSteps(STEPS);
  expectToFollow(first, before);
  const rounds = protect.committed.map(
    ({ pauseMs, vmstateBytes }) => `${Math.round(pauseMs)} ms of ${vmstateBytes} bytes`,
  );
  process.stderr.write(`lost after ${Math.round(lossMs)} ms, back to step ${first?.n}; pauses: ${rounds.join(", ")}\n`);
  return after;
}

/** A protection that ends leaves the VM running. */
async function expectToRunOn(vm: CountingVm, agent: AgentUnderTest): Promise<void> {
  const protect = new ProtectProcess(vm, agent);
  await protect.untilCommitted();
  expect(await protect.stop()).toBe(0);
  await vm.untilSteps(vm.steps().length + 2);
}

/** The restored guest goes on from a step that the lost one has made; it checks its disk against its memory itself. */
function expectToFollow(first: Step | undefined, before: readonly Step[]): void {
  expect(first?.n).toBeGreaterThan(1);
  const known = before.find(({ n }) => n + 1 === first?.n);
  // The lost VM may have made a step that its console did not get to tell.
  if (known !== undefined) expect(first?.hash).toBe(nextHash(known));
  else expect(first?.n).toBeLessThanOrEqual((before.at(-1)?.n ?? 0) + 2);
}

describe.runIf(requireCountingGuest())("a protected VM", () => {
  it.each(Array.from({ length: PAIRS }, (_, index) => index + 1))(
    "goes on on the other host from the last checkpoint, there and back, pair %i",
    async () => {
      const pair = await AgentPair.protected({ disks: { vda: 4 * MIB }, flags: ["--peer-timeout", "1s"] });
      const { primary, secondary, root } = pair;
      writeInitramfs(join(root, "initramfs"));
      const onA = new CountingVm({ directory: root, name: "a", diskUri: primary.uri(), waits: false });
      await onA.untilSteps(STEPS);
      await expectToRunOn(onA, primary);
      const onB = await loseHost(onA, primary, secondary, () => {
        return new CountingVm({ directory: root, name: "b", diskUri: secondary.uri(), waits: true });
      });

      await primary.start();
      await primary.get("rejoin", "--peer", `ws://127.0.0.1:${pair.port}`);
      await secondary.until("protected", ({ protection }) => protection.state === "Protected");
      const back = await loseHost(onB, secondary, primary, () => {
        return new CountingVm({ directory: root, name: "a2", diskUri: primary.uri(), waits: true });
      });
      await back.kill();
    },
    300_000,
  );
});
