/** A protected VM moves to the other host with its memory, by the lines that docs/qemu.md has for it. */
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { NodeClock } from "../../shared/host/node-clock.ts";
import { QmpClient, type QmpEvent } from "../../shared/host/qmp-client.ts";
import { AgentPair, freePort, MIB, type AgentUnderTest } from "../support/agent-pair.ts";
import type { ErrorDocument } from "../support/cli-runner.ts";
import { CountingVm, nextHash, requireCountingGuest, writeInitramfs } from "../support/counting-guest.ts";
import { blocksOf, readSections, sectionOf, withNames } from "../support/doc-sections.ts";
import { ProtectProcess } from "../support/protect-process.ts";

const DISK_BYTES = 4 * MIB;
const STEPS = 3;

/** What the operator of one host has: its agent, and its QEMU. */
class OperatedHost {
  readonly agent: AgentUnderTest;
  readonly vm: CountingVm;
  readonly #qmp: QmpClient;
  readonly #seen: QmpEvent[];
  readonly #told: { wake: () => void };

  private constructor(
    agent: AgentUnderTest,
    vm: CountingVm,
    qmp: QmpClient,
    seen: QmpEvent[],
    told: { wake: () => void },
  ) {
    this.agent = agent;
    this.vm = vm;
    this.#qmp = qmp;
    this.#seen = seen;
    this.#told = told;
  }

  static async of(agent: AgentUnderTest, vm: CountingVm): Promise<OperatedHost> {
    await vm.untilListening();
    const seen: QmpEvent[] = [];
    const told = { wake: (): void => undefined };
    const event = (one: QmpEvent): void => {
      seen.push(one);
      told.wake();
    };
    const qmp = await QmpClient.connect({ socket: vm.qmp, clock: new NodeClock(), timeoutMs: 60_000, event });
    onTestFinished(() => qmp.close());
    return new OperatedHost(agent, vm, qmp, seen, told);
  }

  execute(command: string, args: Record<string, unknown> = {}): Promise<unknown> {
    return this.#qmp.execute(command, args);
  }

  async untilEvent(name: string, status?: string): Promise<void> {
    const isIt = ({ event, data }: QmpEvent): boolean =>
      event === name && (status === undefined || data["status"] === status);
    while (!this.#seen.some(isIt)) {
      await Promise.race([
        new Promise<void>((resolve) => {
          this.#told.wake = resolve;
        }),
        this.#qmp.ended.then((reason) => Promise.reject(reason)),
      ]);
    }
  }

  forgetEvents(): void {
    this.#seen.length = 0;
  }

  release(): void {
    this.#qmp.close();
  }
}

interface Line {
  readonly host: "A" | "B";
  readonly text: string;
}

/** The lines of the document, in which what `names` has is called otherwise here. */
function documentedLines(names: Readonly<Record<string, string>>): Line[] {
  const section = sectionOf(readSections("docs/qemu.md"), "Live migration");
  const lines = blocksOf(section.text, "text").join("").trim().split("\n");
  return lines.map((line) => {
    const host = line.slice(0, 1);
    if (host !== "A" && host !== "B") throw new Error(`of neither host: ${line}`);
    return { host, text: withNames(line.slice(3), names) };
  });
}

async function run(host: OperatedHost, text: string): Promise<void> {
  const waiting = /^wait for the event (\w+)(?: with the status ([\w-]+))?$/.exec(text);
  if (waiting?.[1] !== undefined) return host.untilEvent(waiting[1], waiting[2]);
  const colobus = /^colobus (\w+) --run \S+ ?(.*)$/.exec(text);
  if (colobus?.[1] !== undefined) return host.agent.get(colobus[1], ...(colobus[2] ?? "").split(" "));
  const { execute, arguments: args } = JSON.parse(text) as { execute: string; arguments?: Record<string, unknown> };
  await host.execute(execute, args);
}

describe.runIf(requireCountingGuest())("a protected VM that is migrated", () => {
  it("goes on on the other host with the next step, and can write there only after the switchover", async () => {
    const pair = await AgentPair.protected({ disks: { vda: DISK_BYTES }, flags: ["--peer-timeout", "2s"] });
    const { primary, secondary, root } = pair;
    writeInitramfs(join(root, "initramfs"));
    const waiting = { directory: root, diskUris: [], emptyBytes: DISK_BYTES, waits: true };
    const lines = documentedLines({
      "192.0.2.2:4444": `127.0.0.1:${await freePort()}`,
      "/run/colobus/web/nbd.sock": join(secondary.run, "nbd.sock"),
    });
    const onA = new CountingVm({ directory: root, name: "a", diskUris: [primary.uri()], waits: false });
    await onA.untilSteps(STEPS);
    const protect = new ProtectProcess(onA, primary);
    await protect.untilCommitted();
    expect(await protect.stop()).toBe(0);
    const a = await OperatedHost.of(primary, onA);
    expect(await a.execute("query-migrate-parameters")).toMatchObject({ "downtime-limit": 300 });
    const [start, ...others] = lines;
    expect(start).toMatchObject({ host: "B", text: expect.stringMatching(/^qemu-system-x86_64 .*-incoming defer/) });
    const switchoverAt = others.findIndex(({ text }) => text.startsWith("colobus switchover"));
    const addAt = others.findIndex(({ text }) => text.includes("blockdev-add"));

    // Without the switchover nothing can be written on B; and a VM whose migration is given up, even after it, goes on on A.
    const tried = await OperatedHost.of(secondary, new CountingVm({ ...waiting, name: "tried" }));
    for (const { host, text } of others.slice(0, switchoverAt)) await run(host === "A" ? a : tried, text);
    const add = others[addAt]?.text ?? "";
    await expect(run(tried, add)).rejects.toThrow("Permission denied");
    expect(await primary.ask<ErrorDocument>("switchover")).toMatchObject({ code: 1 });
    await run(a, others[switchoverAt]?.text ?? "");
    await run(tried, add);
    await tried.vm.kill();
    await secondary.get("wait", "synced"); // the two connect again in their new roles
    await secondary.get("switchover", "--close-clients");
    await a.execute("migrate_cancel");
    await onA.untilSteps(onA.steps().length + 2);
    a.forgetEvents();

    const b = await OperatedHost.of(secondary, new CountingVm({ ...waiting, name: "b" }));
    for (const { host, text } of others.slice(0, -1)) await run(host === "A" ? a : b, text);
    await onA.untilEnded();
    const last = onA.steps().at(-1);
    const [first] = await b.vm.untilSteps(STEPS);
    expect(last).toBeDefined();
    // The step that was under way may have been told by neither console in full.
    if (last !== undefined && first?.n === last.n + 1) expect(first.hash).toBe(nextHash(last));
    else expect(first?.n).toBe((last?.n ?? 0) + 2);
    expect((await secondary.status()).role).toBe("Primary");

    b.release();
    const there = new ProtectProcess(b.vm, secondary);
    await there.untilCommitted();
    expect(await there.stop()).toBe(0);
    await b.vm.untilSteps(b.vm.steps().length + 1);
  }, 300_000);
});
