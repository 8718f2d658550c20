import { existsSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { Agent } from "../../../cli/agent.ts";
import { ColobusError } from "../../../proto/errors.ts";
import { NodeClock } from "../../../shared/host/node-clock.ts";
import { runInProcess, serveFakeAgent } from "../../support/control-harness.ts";
import type { MemoryStorage } from "../../support/memory-storage.ts";
import { present } from "../../support/present.ts";
import { openFuzzAgent, recordSession, storageWithImages } from "../../support/recorded-session.ts";

const NO_SIGNAL = new AbortController().signal;
const nobody = (): Promise<never> => Promise.reject(new ColobusError("connection-lost", "nobody is there"));
const FAILOVER = { dryRun: false, force: true, discardActive: false, timeoutMs: 10_000 };

/** As those of hooks do it: whoever is told to end does. */
function ends(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(new ColobusError("fence-failed", "the hook was ended")));
  });
}

interface Fenced {
  readonly agent: Agent;
  readonly storage: MemoryStorage;
  /** Resolves when the peer is being fenced, which goes on until `fenced` is called. */
  readonly fencing: Promise<void>;
  readonly fenced: () => void;
  readonly notFenced: () => void;
  /** How often the agent has started the VM. */
  readonly started: () => number;
}

/** A secondary with a checkpoint, whose fence hook takes its time. */
async function fencedSecondary(hook: "hears" | "does not hear" = "hears"): Promise<Fenced> {
  let began = (): void => undefined;
  let [fenced, notFenced] = [(): void => undefined, (): void => undefined];
  const fencing = new Promise<void>((resolve) => {
    began = resolve;
  });
  const isFenced = new Promise<void>((resolve, reject) => {
    fenced = resolve;
    notFenced = () => reject(new ColobusError("fence-failed", "the peer's power stays on"));
  });
  let started = 0;
  const storage = storageWithImages(2);
  const agent = await openFuzzAgent("Secondary", storage, undefined, nobody, new NodeClock(), {
    secondaryExport: "read-write",
    fence: async (_, signal) => {
      began();
      await (hook === "hears" ? Promise.race([isFenced, ends(signal)]) : isFenced);
      return "the peer was powered off";
    },
    startVm: () => Promise.resolve(void (started += 1)),
  });
  await recordSession(storageWithImages(1), agent, undefined);
  return { agent, storage, fencing, fenced, notFenced, started: () => started };
}

describe("who starts the VM after a failover", () => {
  it("is the agent, or whoever has asked and said so", async () => {
    for (const startsVm of [false, true]) {
      const { agent, fenced, started } = await fencedSecondary();
      fenced();
      expect(await agent.failover({ ...FAILOVER, startsVm }, NO_SIGNAL)).toMatchObject({ already: false, startsVm });
      expect(started()).toBe(startsVm ? 0 : 1);
      const again = await agent.failover({ ...FAILOVER, startsVm: true }, NO_SIGNAL);
      expect(again).toMatchObject({ already: true, startsVm: false });
      await agent.stop(100);
    }
  });

  it("is the one who joins a failover that has begun, alone", async () => {
    const { agent, fencing, fenced, started } = await fencedSecondary();
    const first = agent.failover(FAILOVER, NO_SIGNAL);
    await fencing;
    const joiners = [1, 2].map(() => agent.failover({ ...FAILOVER, startsVm: true }, NO_SIGNAL));
    for (let count = 0; count < 5; count += 1) await Promise.resolve();
    fenced();
    const answers = await Promise.all([first, ...joiners]);
    expect(answers.map(({ already, startsVm }) => [already, startsVm])).toEqual([
      [false, false],
      [false, false],
      [false, true],
    ]);
    expect(started()).toBe(0);
    await agent.stop(100);
  });

  it("is the agent when whoever has asked is gone before this side is Primary", async () => {
    const { agent, fencing, fenced, started } = await fencedSecondary();
    const gone = new AbortController();
    const asked = agent.failover({ ...FAILOVER, startsVm: true }, gone.signal);
    await fencing;
    gone.abort();
    await expect(asked).rejects.toMatchObject({ code: "timed-out" });
    const joined = agent.failover(FAILOVER, NO_SIGNAL);
    fenced();
    expect(await joined).toMatchObject({ already: false, startsVm: false });
    expect(started()).toBe(1);
    await agent.stop(100);
  });
});

describe("wait merged", () => {
  const MERGED = { condition: "merged", timeoutMs: 10_000 } as const;

  it("has nothing to wait for on a side that was never promoted", async () => {
    const { agent } = await fencedSecondary();
    expect(await agent.wait(MERGED, NO_SIGNAL)).toEqual({ condition: "merged" });
    expect(agent.role).toBe("Secondary");
    await agent.stop(100);
  });

  it("waits for a failover that is under way, and for its merge", async () => {
    const { agent, fencing, fenced } = await fencedSecondary();
    const failover = agent.failover(FAILOVER, NO_SIGNAL);
    await fencing;
    const merged = agent.wait(MERGED, NO_SIGNAL).then(() => agent.status());
    for (let count = 0; count < 5; count += 1) await Promise.resolve();
    fenced();
    await failover;
    const { role, jobs } = await merged;
    expect(role).toBe("Primary");
    expect(jobs).toMatchObject([{ type: "merge", state: "concluded" }]);
    await agent.stop(100);
  });

  it("waits no longer for a failover that has failed", async () => {
    const { agent, fencing, notFenced } = await fencedSecondary();
    const failover = agent.failover({ ...FAILOVER, force: false }, NO_SIGNAL);
    await fencing;
    const merged = agent.wait(MERGED, NO_SIGNAL);
    notFenced();
    await expect(failover).rejects.toMatchObject({ code: "fence-failed" });
    expect(await merged).toEqual({ condition: "merged" });
    await agent.stop(100);
  });
});

/** A secondary whose own VM has written. */
async function withActiveDisk(agent: Agent): Promise<void> {
  const { device } = present(agent.exports.find("vda"));
  await device.write(Buffer.alloc(4096, 0x77), 0, { fua: false });
}

describe("failover --discard-active", () => {
  it("that joins one which has not begun to promote leaves the active disk out", async () => {
    const { agent, fencing, fenced } = await fencedSecondary();
    await withActiveDisk(agent);
    const first = agent.failover(FAILOVER, NO_SIGNAL);
    await fencing;
    const joined = agent.failover({ ...FAILOVER, discardActive: true }, NO_SIGNAL);
    for (let count = 0; count < 5; count += 1) await Promise.resolve();
    fenced();
    for (const { discardedActiveBytes } of await Promise.all([first, joined])) {
      expect(discardedActiveBytes).toBeGreaterThan(0);
    }
    await agent.stop(100);
  });

  it("that joins one which promotes already is refused", async () => {
    const { agent, storage, fenced } = await fencedSecondary();
    await withActiveDisk(agent);
    let release = (): void => undefined;
    const promoting = new Promise<void>((resolve) => {
      storage.hold = (op, path) => {
        if (op !== "sync" || !path.endsWith("/state")) return undefined;
        resolve();
        return new Promise((end) => {
          release = end;
        });
      };
    });
    const first = agent.failover(FAILOVER, NO_SIGNAL);
    fenced();
    await promoting;
    const late = agent.failover({ ...FAILOVER, discardActive: true }, NO_SIGNAL);
    await expect(late).rejects.toMatchObject({ code: "not-secondary" });
    storage.hold = undefined;
    release();
    expect(await first).toMatchObject({ already: false, discardedActiveBytes: 0 });
    await agent.stop(100);
  });
});

describe("failover --force while one without it is under way", () => {
  it("goes on when that one has failed", async () => {
    const { agent, fencing, notFenced } = await fencedSecondary();
    const first = agent.failover({ ...FAILOVER, force: false }, NO_SIGNAL).catch((error: unknown) => error);
    await fencing;
    const forced = agent.failover({ ...FAILOVER, startsVm: true }, NO_SIGNAL);
    for (let count = 0; count < 5; count += 1) await Promise.resolve();
    notFenced();
    expect(await first).toMatchObject({ code: "fence-failed" });
    expect(await forced).toMatchObject({ already: false, startsVm: true });
    expect(agent.role).toBe("Primary");
    await agent.stop(100);
  });

  it("begins nothing when whoever has asked is gone by then", async () => {
    const { agent, fencing, notFenced } = await fencedSecondary();
    const first = agent.failover({ ...FAILOVER, force: false }, NO_SIGNAL).catch((error: unknown) => error);
    await fencing;
    const gone = new AbortController();
    const forced = agent.failover(FAILOVER, gone.signal).catch((error: unknown) => error);
    for (let count = 0; count < 5; count += 1) await Promise.resolve();
    gone.abort();
    expect(await forced).toMatchObject({ code: "timed-out" });
    notFenced();
    expect(await first).toMatchObject({ code: "fence-failed" });
    // One that had begun would be waited for.
    await agent.wait({ condition: "merged", timeoutMs: 10_000 }, NO_SIGNAL);
    expect(agent.role).toBe("Secondary");
    await agent.stop(100);
  });
});

describe("an agent that is stopped while its peer is being fenced", () => {
  it.each([
    ["hears", "once"],
    ["hears", "first left"],
    ["does not hear", "once"],
  ] as const)("stays Secondary, and starts no VM: the hook %s of it, and it is stopped %s", async (hook, how) => {
    const { agent, storage, fencing, fenced, started } = await fencedSecondary(hook);
    const asked = agent.failover(FAILOVER, NO_SIGNAL).catch((error: unknown) => error);
    await fencing;
    if (how === "first left") agent.leave();
    const stopping = agent.stop(100);
    if (hook === "does not hear") fenced();
    expect(await asked).toMatchObject({ code: "shutting-down" });
    await stopping;
    await expect(agent.failover(FAILOVER, NO_SIGNAL)).rejects.toMatchObject({ code: "shutting-down" });
    expect(started()).toBe(0);
    const again = await openFuzzAgent("Secondary", storage, undefined, nobody);
    expect(again.role).toBe("Secondary");
    await again.stop(100);
  });
});

describe("failover --exec", () => {
  it.each(["Secondary", "Primary"] as const)("runs its command where it is to start the VM: %s", async (role) => {
    const { control, run } = await serveFakeAgent();
    control.currentStatus = { ...control.currentStatus, role };
    const mark = join(run, "started");
    const args = ["failover", "--json", "--run", run, "--exec", `touch ${mark}`];
    const { code, stdout } = await runInProcess(args, { clock: new NodeClock() });
    expect(existsSync(mark)).toBe(role === "Secondary");
    expect(code).toBe(role === "Secondary" ? 0 : 1);
    if (role === "Primary") expect(JSON.parse(stdout)).toMatchObject({ error: { code: "hook-failed" } });
  });
});
