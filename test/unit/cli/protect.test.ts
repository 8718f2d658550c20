import { once as onceTold } from "node:events";
import { createServer } from "node:net";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import type { ProtectionRound } from "../../../cli/protection.ts";
import { ColobusError } from "../../../proto/errors.ts";
import { notProtected } from "../../../proto/status.ts";
import { NodeClock } from "../../../shared/host/node-clock.ts";
import { nextTurn, runInProcess, type ServedAgent } from "../../support/control-harness.ts";
import { FakeQmp, type Mishap } from "../../support/fake-qmp.ts";
import { runProtect, serveProtectableAgent, type ProtectRun } from "../../support/protect-run.ts";
import { scratchDirectory } from "../../support/scratch.ts";

/** So short that rounds follow each other; what cannot be met is told. */
const INTERVAL = "1ms";
const ONE_ROUND = "1h";
const WAYS = ["off", "on"] as const;

const UNTIL_IT_RUNS: ProtectionRound = {
  epoch: null,
  state: "waiting",
  reason: "the VM is paused, and QEMU writes its state again only when it has run",
};

const committed = (rounds: readonly ProtectionRound[]): boolean => rounds.at(-1)?.state === "committed";

interface Bench extends ServedAgent {
  readonly vm: FakeQmp;
  readonly protect: (
    isEnough?: (rounds: readonly ProtectionRound[]) => boolean,
    ...args: string[]
  ) => Promise<ProtectRun>;
  /** What the agent was asked, without the status. */
  readonly asked: () => string[];
}

async function bench(interval = INTERVAL): Promise<Bench> {
  const agent = await serveProtectableAgent();
  const vm = await new FakeQmp(join(agent.run, "qmp.sock")).listen();
  const flags = ["--run", agent.run, "--qmp", vm.socket, "--interval", interval];
  return {
    ...agent,
    vm,
    protect: (isEnough = committed, ...args) => runProtect([...flags, ...args], isEnough),
    asked: () => agent.control.calls.map(({ name }) => name),
  };
}

/** Has one `command` go wrong, the first unless said otherwise, and no other one. */
function once(command: string, mishap: Mishap, which = 1): FakeQmp["mishap"] {
  let asks = 0;
  return (asked) => (asked === command && (asks += 1) === which ? mishap : undefined);
}

/** QEMU's as they are while the VM is paused: what a protection finds that comes after one which was killed there. */
async function pausedParameters(): Promise<FakeQmp["parameters"]> {
  const { vm, protect } = await bench();
  const seen: FakeQmp["parameters"][] = [];
  vm.hasRunState = () => seen.push(vm.parameters);
  await protect();
  const [parameters = {}] = seen;
  return parameters;
}

/** A protection was killed while its VM's migration was at its end. */
async function leftFinishing(): Promise<Bench> {
  const parameters = await pausedParameters();
  const left = await bench(ONE_ROUND);
  Object.assign(left.vm, { parameters, runState: "finish-migrate" });
  left.vm.migration.status = "completed";
  return left;
}

/**
 * Has the end of each migration be told before the VM's run state is that of one that is over: that takes until it has been asked
 * for some times.
 */
function finishLate(vm: FakeQmp): void {
  const { mishap } = vm;
  vm.beforePostmigrate = () =>
    new Promise<void>((resolve) => {
      let asks = 0;
      vm.mishap = (command, args) => {
        if (command === "query-status" && (asks += 1) === 3) resolve();
        return mishap(command, args);
      };
    });
}

/** What the VM was told while it was protected, without what is set before and after. */
function steps({ commands }: FakeQmp): string[] {
  return commands.filter((command) => !command.startsWith("migrate-set-"));
}

describe("a round with the VM's memory", () => {
  it("places the barrier and writes the state while the VM is paused", async () => {
    const { vm, control, protect, asked } = await bench(ONE_ROUND);
    const seen: string[] = [];
    control.before = ({ name }) => void seen.push(`${name}: ${vm.runState}`);
    vm.beforeState = () => Promise.resolve(void seen.push(`state: ${vm.runState}`));
    const { result, rounds } = await protect(committed, "--background-snapshot", "off");
    expect(result).toMatchObject({ code: 0, stderr: "" });
    expect(rounds).toEqual([expect.objectContaining({ epoch: 43, state: "committed" })]);
    expect(seen).toEqual(["checkpoint: paused", "state: paused", "commit: running"]);
    expect(steps(vm)).toEqual(["stop", "migrate", "cont"]);
    expect(asked()).toEqual(["checkpoint", "commit"]);
    expect(control.calls[0]?.request).toMatchObject({ prepare: true, vmstate: true, wait: false });
  });

  it.each([true, false])(
    "lets the VM run before the state is written, where QEMU resumes it itself: %s",
    async (itself) => {
      const { vm, control, protect } = await bench(ONE_ROUND);
      vm.resumesItself = itself;
      const seen: string[] = [];
      control.before = ({ name }) => void seen.push(`${name}: ${vm.runState}`);
      let write = (): void => undefined;
      vm.beforeState = async () => {
        await new Promise<void>((resolve) => {
          write = resolve;
        });
        seen.push(`state: ${vm.runState}`);
      };
      let asks = 0;
      vm.beforeFrozen = async () => {
        const asked = new Promise<void>((resolve) => {
          vm.mishap = (command) => void (command === "query-migrate" && (asks += 1) === 3 && resolve());
        });
        await asked;
        seen.push(`frozen: ${vm.runState}`);
      };
      // Not before it runs, by one or the other.
      vm.hasRunState = (state) => void (state === "running" && setImmediate(() => write()));
      const { result, rounds } = await protect((all) => all.length > 0, "--background-snapshot", "on");
      expect(rounds).toMatchObject([{ state: "committed" }]);
      expect(result).toMatchObject({ code: 0, stderr: "" });
      expect(seen).toEqual(["checkpoint: paused", "frozen: paused", "state: running", "commit: running"]);
      expect(steps(vm)).toEqual(itself ? ["stop", "migrate"] : ["stop", "migrate", "cont"]);
    },
  );

  it("leaves QEMU's migrations as they were found", async () => {
    const { vm, protect } = await bench();
    const before = vm.parameters;
    await protect();
    expect(vm.parameters).toEqual(before);
    expect(vm.background).toBe(false);
  });

  it("lets a VM run that a killed protection has left paused, its state written", async () => {
    const parameters = await pausedParameters();
    const { vm, protect } = await bench();
    Object.assign(vm, { parameters, runState: "postmigrate" });
    await protect();
    expect(steps(vm).slice(0, 2)).toEqual(["migrate_cancel", "cont"]);
    expect(vm.runState).toBe("running");
  });

  it("leaves a VM alone that has migrated to another host, or whose state another has written", async () => {
    const { vm, protect } = await bench();
    vm.runState = "postmigrate";
    const { rounds } = await protect((all) => all.length > 0);
    expect(rounds).toEqual([UNTIL_IT_RUNS]);
    expect(steps(vm)).toEqual([]);
    expect(vm.runState).toBe("postmigrate");
  });

  it("ends what a killed protection has begun, and lets the VM run that it had paused", async () => {
    const parameters = await pausedParameters();
    const { vm, protect } = await bench();
    Object.assign(vm, { parameters, runState: "paused" });
    vm.migration.status = "active";
    const { rounds } = await protect();
    expect(steps(vm).slice(0, 2)).toEqual(["migrate_cancel", "cont"]);
    expect(rounds).toMatchObject([{ state: "committed" }]);
    expect(vm.runState).toBe("running");
  });

  it.each(WAYS)("takes one of a VM that another has paused, and the next when it has run: %s", async (background) => {
    const { vm, protect, asked } = await bench();
    vm.runState = "paused";
    let asks = 0;
    vm.mishap = (command) => {
      // QEMU refuses to write a state twice.
      if (command === "query-status" && vm.runState === "postmigrate" && (asks += 1) === 3) vm.setRunState("running");
      return undefined;
    };
    const isEnough = (all: readonly ProtectionRound[]): boolean => all.length === 3;
    const { result, rounds } = await protect(isEnough, "--background-snapshot", background);
    expect(rounds).toMatchObject([{ state: "committed" }, UNTIL_IT_RUNS, { state: "committed" }]);
    expect(result.code).toBe(0);
    const whileItRuns = background === "on" ? ["stop", "migrate"] : ["stop", "migrate", "cont"];
    expect(steps(vm)).toEqual(["migrate", ...whileItRuns]);
    expect(asked()).toEqual(["checkpoint", "commit", "checkpoint", "commit"]);
    expect(vm.runState).toBe("running");
  });

  it.each(WAYS)("leaves a guest asleep that sleeps, and takes one when it is awake: %s", async (background) => {
    const { vm, protect, asked } = await bench();
    vm.runState = "suspended";
    let asks = 0;
    vm.mishap = (command) => {
      // QEMU never wakes a guest that slept when its state was written.
      if (command === "query-status" && vm.runState === "suspended" && (asks += 1) === 4) vm.runState = "running";
      return undefined;
    };
    const { result, rounds } = await protect(committed, "--background-snapshot", background);
    expect(rounds).toMatchObject([
      { state: "waiting", reason: expect.stringContaining("sleeps") },
      { state: "committed" },
    ]);
    expect(result.code).toBe(0);
    expect(steps(vm)[0]).toBe("stop");
    expect(asked()).toEqual(["checkpoint", "commit"]);
    expect(vm.runState).toBe("running");
  });

  it("fails when another lets the VM run while its state is written", async () => {
    const { vm, protect } = await bench();
    let isFirst = true;
    vm.beforeState = async () => {
      if (isFirst) vm.setRunState("running");
      isFirst = false;
    };
    const { rounds } = await protect(committed, "--background-snapshot", "off");
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "vm-refused" } }, { state: "committed" }]);
    expect(rounds[0]).toMatchObject({ error: { message: expect.stringContaining("let run by another") } });
    // The state that was written then has stopped it.
    expect(steps(vm)).toEqual(["stop", "migrate", "migrate_cancel", "cont", "stop", "migrate", "cont"]);
    expect(vm.runState).toBe("running");
  });
});

describe("a migration whose end QEMU tells before it lets the VM run again", () => {
  it("loses no checkpoint", async () => {
    const { vm, protect } = await bench();
    finishLate(vm);
    const { result, rounds } = await protect((all) => all.length === 3);
    expect(rounds.map(({ state }) => state)).toEqual(["committed", "committed", "committed"]);
    expect(steps(vm).slice(0, 3)).toEqual(["stop", "migrate", "cont"]);
    expect(result.code).toBe(0);
    expect(vm.runState).toBe("running");
  });

  it("leaves no VM paused that a killed protection has paused", async () => {
    const { vm, protect } = await leftFinishing();
    let asks = 0;
    vm.mishap = (command) => {
      if (command === "query-status" && (asks += 1) === 3) vm.runState = "postmigrate";
      return undefined;
    };
    const { rounds } = await protect();
    expect(rounds).toMatchObject([{ state: "committed" }]);
    expect(steps(vm)).toEqual(["migrate_cancel", "cont", "stop", "migrate", "cont"]);
    expect(vm.runState).toBe("running");
  });

  it("leaves none paused without a word where it does not come", async () => {
    const { protect } = await leftFinishing();
    const { result } = await protect(committed, "--timeout", "200ms");
    expect(result.code).toBe(1);
    expect(JSON.parse(result.stdout)).toMatchObject({
      error: { code: "vm-refused", message: expect.stringContaining("not finalized") },
    });
  });

  it("is waited for by another connection too, behind a command that was not answered", async () => {
    const { vm, protect } = await bench();
    vm.mishap = once("migrate", "late");
    finishLate(vm);
    const { rounds } = await protect(committed, "--timeout", "500ms");
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "timed-out" } }, { state: "committed" }]);
    const round = ["stop", "migrate", "migrate_cancel", "cont"];
    expect(steps(vm)).toEqual([...round, "migrate_cancel", "stop", "migrate", "cont"]);
    expect(vm.runState).toBe("running");
  });

  it("is told with QEMU's reason when it does not come", async () => {
    const { vm, protect } = await bench();
    vm.beforePostmigrate = () => new Promise<void>(() => {});
    const { rounds } = await protect((all) => all.length > 0, "--timeout", "1s");
    expect(rounds).toMatchObject([
      { state: "failed", error: { code: "vm-refused", message: expect.stringContaining("not finalized") } },
    ]);
  });
});

describe.each(WAYS)("a step that fails, with --background-snapshot %s,", (background) => {
  it.each(["stop", "migrate"])("withdraws the checkpoint, and the next round is committed: %s", async (command) => {
    const { vm, protect, asked } = await bench();
    vm.mishap = once(command, { error: "Not now." });
    const { result, rounds } = await protect(committed, "--background-snapshot", background);
    expect(result.code).toBe(0);
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "vm-refused" } }, { state: "committed" }]);
    const begun = command === "stop" ? [] : ["checkpoint", "discard"];
    expect(asked()).toEqual([...begun, "checkpoint", "commit"]);
    expect(vm.runState).toBe("running");
  });

  it("has the VM run again when it is refused at first", async () => {
    const { vm, protect } = await bench();
    vm.resumesItself = false;
    vm.mishap = once("cont", { error: "Not now." });
    const { rounds } = await protect(committed, "--background-snapshot", background);
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "vm-refused" } }, { state: "committed" }]);
    expect(vm.runState).toBe("running");
  });

  it("ends nothing when the state breaks off", async () => {
    const { vm, control, protect } = await bench();
    const order: string[] = [];
    control.before = ({ name }) => void (name === "discard" && order.push(`discard: ${vm.runState}`));
    let isFirst = true;
    vm.beforeState = async () => {
      if (!isFirst) return;
      isFirst = false;
      throw new Error("Broken pipe");
    };
    const { rounds } = await protect(committed, "--background-snapshot", background);
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "vm-refused" } }, { state: "committed" }]);
    expect(rounds[0]).toMatchObject({ error: { message: expect.stringContaining("Broken pipe") } });
    // The VM runs before anything else is done.
    expect(order).toEqual(["discard: running"]);
    expect(vm.runState).toBe("running");
  });

  it.each(["checkpoint", "commit"])("lets the VM go on when it is the agent's %s", async (name) => {
    const { vm, control, protect } = await bench();
    let isFirst = true;
    control.before = (call) => {
      if (call.name !== name || !isFirst) return;
      isFirst = false;
      throw new ColobusError("no-peer", "The peer is gone.", "Wait.");
    };
    const { rounds } = await protect(committed, "--background-snapshot", background);
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "no-peer" } }, { state: "committed" }]);
    expect(control.calls.map((call) => call.name).includes("discard")).toBe(name === "commit");
    expect(vm.runState).toBe("running");
  });

  it("is given up after the time limit when the state does not end, and in the background not cut short", async () => {
    const { vm, protect, control } = await bench();
    let isFirst = true;
    let end: () => void = () => undefined;
    const isEnded = new Promise<void>((resolve) => {
      end = resolve;
    });
    vm.beforeState = async () => {
      if (!isFirst) return;
      isFirst = false;
      await isEnded;
    };
    vm.mishap = (command) => {
      // The next round waits for it; the agent has read the state to its end meanwhile.
      if (command === "query-migrate" && control.calls.some(({ name }) => name === "discard")) end();
      return undefined;
    };
    const { rounds } = await protect(committed, "--background-snapshot", background, "--timeout", "1s");
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "timed-out" } }, { state: "committed" }]);
    expect(vm.commands.includes("migrate_cancel")).toBe(background === "off");
    expect(vm.runState).toBe("running");
  });

  it("leaves QEMU as it was found when it was the last round's state, which does not end", async () => {
    const { vm, protect } = await bench();
    const before = vm.parameters;
    let end: () => void = () => undefined;
    vm.beforeState = () =>
      new Promise<void>((resolve) => {
        end = resolve;
      });
    const { rounds } = await protect(
      () => {
        vm.mishap = (command) => void (command === "query-migrate" && end());
        return true;
      },
      "--background-snapshot",
      background,
      "--timeout",
      "500ms",
    );
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "timed-out" } }]);
    expect(vm.parameters).toEqual(before);
    expect(vm.background).toBe(false);
    expect(vm.runState).toBe("running");
  });

  it("has the VM run in the end when that was refused in the last round", async () => {
    const { vm, protect } = await bench();
    const before = vm.parameters;
    vm.resumesItself = false;
    let isOver = false;
    vm.mishap = (command) => (command === "cont" && !isOver ? { error: "Not now." } : undefined);
    const { rounds } = await protect(() => (isOver = true), "--background-snapshot", background);
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "vm-refused" } }]);
    expect(vm.runState).toBe("running");
    expect(vm.parameters).toEqual(before);
  });

  it("ends the protection when QEMU is gone", async () => {
    const { vm, protect, asked } = await bench();
    vm.mishap = once("migrate", "end");
    const { result, rounds } = await protect(committed, "--background-snapshot", background);
    expect(result.code).toBe(1);
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "vm-unreachable" } }]);
    expect(asked()).toEqual(["checkpoint", "discard"]);
  });
});

describe("a command that is not answered in time", () => {
  it.each(["migrate", "migrate_cancel"])("lets the VM run by another connection: %s", async (command) => {
    const { vm, protect } = await bench();
    const goesWrong = once(command, "silence");
    vm.mishap = (asked, args) => {
      const mishap = goesWrong(asked, args);
      if (mishap !== undefined && command === "migrate_cancel") vm.migration.status = "cancelled"; // too late to be told
      return mishap;
    };
    let isFirst = true;
    vm.beforeState = () => {
      const isHeldUp = isFirst;
      isFirst = false;
      return isHeldUp && command !== "migrate" ? new Promise<void>(() => {}) : Promise.resolve();
    };
    const { result, rounds } = await protect(committed, "--timeout", "500ms");
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "timed-out" } }, { state: "committed" }]);
    expect(result.code).toBe(0);
    expect(vm.runState).toBe("running");
  });

  it("lets the VM run once the agent has let go of the state, where QEMU answers nobody before", async () => {
    const { vm, control, protect } = await bench();
    let answersNobody = false;
    control.before = async ({ name }) => {
      if (name === "checkpoint") answersNobody = !control.calls.some((call) => call.name === "discard");
      if (name === "discard") answersNobody = false;
    };
    vm.mishap = (command) => (answersNobody && command !== "query-status" ? "silence" : undefined);
    const { rounds } = await protect(committed, "--timeout", "500ms");
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "timed-out" } }, { state: "committed" }]);
    expect(vm.runState).toBe("running");
  });

  it("is a migrate that is carried out all the same, and does not stop the VM that runs again", async () => {
    const { vm, protect } = await bench();
    vm.mishap = once("migrate", "late");
    const runsAgain = new Promise<void>((resolve) => {
      vm.hasRunState = (state) => void (state === "running" && resolve());
    });
    let isFirst = true;
    vm.beforeState = async () => {
      if (isFirst) await runsAgain;
      isFirst = false;
    };
    const { rounds } = await protect(committed, "--background-snapshot", "off", "--timeout", "500ms");
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "timed-out" } }, { state: "committed" }]);
    expect(vm.runState).toBe("running");
  });

  it("is told with the pause that it leaves, where nobody answers any more", async () => {
    const { vm, protect } = await bench();
    let isDeaf = false;
    vm.mishap = (command) => {
      isDeaf ||= command === "migrate";
      return isDeaf ? "silence" : undefined;
    };
    const { rounds } = await protect((all) => all.length > 0, "--timeout", "100ms");
    expect(rounds[0]).toMatchObject({
      state: "failed",
      error: { code: "timed-out", message: expect.stringContaining("may be paused still"), action: expect.any(String) },
    });
  });

  it("is a stop that is taken back by another connection", async () => {
    const { vm, protect } = await bench();
    vm.mishap = (command) => (command === "stop" ? "late" : undefined);
    const { result, rounds } = await protect((all) => all.length > 1, "--timeout", "1s");
    expect(rounds[0]).toMatchObject({ state: "failed", error: { code: "timed-out" } });
    expect(vm.runState).toBe("running");
    expect(result.code).toBe(0);
  });

  // Which of them is the round's: the protection asks for some of them when it connects.
  describe.each<[what: string, mishap: Mishap, command: string, which: number]>([
    ["whether a migration is under way", "silence", "query-migrate", 1],
    ["whether the VM runs", "silence", "query-status", 2],
    ["how it migrates, before the stop", "silence", "migrate-set-parameters", 2],
    ["how it migrates, before the stop", "late", "migrate-set-parameters", 2],
    ["how it migrates, after the cont", "silence", "migrate-set-parameters", 3],
    ["how it migrates, after the cont", "late", "migrate-set-parameters", 3],
  ])("about %s (%s)", (_, mishap, command, which) => {
    it("fails its round alone", async () => {
      const { vm, protect } = await bench();
      const before = vm.parameters;
      vm.mishap = once(command, mishap, which);
      const { result, rounds } = await protect((all) => all.length > 1, "--timeout", "500ms");
      expect(rounds).toMatchObject([{ state: "failed", error: { code: "timed-out" } }, { state: "committed" }]);
      expect(result.code).toBe(0);
      expect(vm.runState).toBe("running");
      expect(vm.parameters).toEqual(before);
    });

    it("leaves QEMU as it was found when it was the last round's", async () => {
      const { vm, protect } = await bench();
      const before = vm.parameters;
      vm.mishap = once(command, mishap, which);
      const { rounds } = await protect((all) => all.length > 0, "--timeout", "500ms");
      expect(rounds).toMatchObject([{ state: "failed", error: { code: "timed-out" } }]);
      expect(vm.runState).toBe("running");
      expect(vm.parameters).toEqual(before);
    });
  });

  it("does not let a VM run that another has paused, by a capability that came late", async () => {
    const { vm, protect } = await bench();
    vm.runState = "paused";
    // Those before: at its beginning; for --background-snapshot; off, for a VM that another has paused.
    vm.mishap = once("migrate-set-capabilities", "late", 4);
    const { rounds } = await protect(
      (all) => {
        if (all.length === 1) vm.runState = "running";
        if (all.length === 2) vm.runState = "paused";
        return all.length > 2;
      },
      "--background-snapshot",
      "on",
      "--timeout",
      "500ms",
    );
    expect(rounds.map(({ state }) => state)).toEqual(["committed", "failed", "committed"]);
    expect(vm.runState).not.toBe("running");
  });

  it.each(["by the next round", "by its own end"])("leaves a VM paused, which is let run %s", async (by) => {
    const { vm, protect } = await bench();
    const before = vm.parameters;
    let isDeaf = false;
    const isFirstStop = once("stop", "late");
    vm.mishap = (command, args) => {
      const mishap = isFirstStop(command, args) ?? (isDeaf ? "silence" : undefined);
      isDeaf ||= mishap !== undefined;
      return mishap;
    };
    const told: string[] = [];
    const { result, rounds } = await protect(
      (all) => {
        told.push(vm.runState);
        isDeaf = false;
        return by === "by its own end" || committed(all);
      },
      "--timeout",
      "500ms",
    );
    expect(rounds[0]).toMatchObject({ error: { message: expect.stringContaining("may be paused still") } });
    expect(told).toEqual(by === "by its own end" ? ["paused"] : ["paused", "running"]);
    expect(result.code).toBe(0);
    expect(vm.runState).toBe("running");
    expect(vm.parameters).toEqual(before);
  });

  it("leaves a VM paused that another has paused", async () => {
    const { vm, protect } = await bench();
    vm.runState = "paused";
    vm.mishap = once("query-migrate", "silence", 2);
    const { rounds } = await protect((all) => all.length > 2, "--timeout", "500ms");
    expect(rounds.map(({ state }) => state)).toEqual(["committed", "failed", "waiting"]);
    expect(steps(vm)).not.toContain("cont");
  });

  it.each<Mishap>(["late", { error: "Not now." }])(
    "is a stop, and a later pause is that of another: %j",
    async (mishap) => {
      const { vm, protect } = await bench();
      vm.mishap = once("stop", mishap);
      const { rounds } = await protect(
        (all) => {
          if (all.length === 1) vm.runState = "paused";
          return committed(all);
        },
        "--timeout",
        "500ms",
      );
      expect(rounds.map(({ state }) => state)).toEqual(["failed", "committed"]);
      expect(vm.runState).not.toBe("running");
    },
  );

  it("ends the protection where QEMU is gone since", async () => {
    const { vm, protect } = await bench();
    vm.mishap = once("query-status", "silence", 2);
    const { result, rounds } = await protect(
      (all) => {
        vm.end();
        return all.length > 1;
      },
      "--timeout",
      "500ms",
    );
    expect(rounds).toMatchObject([{ error: { code: "timed-out" } }, { error: { code: "vm-unreachable" } }]);
    expect(result.code).toBe(1);
  });
});

describe("--background-snapshot", () => {
  const REASON = "Background-snapshot is not supported by host kernel";
  const incapable: FakeQmp["mishap"] = (command, args) => {
    const isAsked =
      command === "migrate-set-capabilities" && JSON.stringify(args).includes('background-snapshot","state":true');
    return isAsked ? { error: REASON } : undefined;
  };

  it("auto pauses the VM for the whole of its state where QEMU or the host is not capable, and says so once", async () => {
    const { vm, protect } = await bench();
    vm.mishap = incapable;
    const { result, rounds } = await protect((all) => all.length === 3, "--background-snapshot", "auto");
    expect(rounds.map(({ state }) => state)).toEqual(["committed", "committed", "committed"]);
    expect(result.stderr.split("\n").filter((line) => line.includes(REASON))).toHaveLength(1);
    expect(steps(vm).slice(0, 3)).toEqual(["stop", "migrate", "cont"]);
  });

  it("auto pauses the VM for the whole of its state after two that could not begin, and says so once", async () => {
    const { vm, protect } = await bench();
    vm.mishap = (command) => (command === "migrate" && vm.background === true ? { error: "No userfault." } : undefined);
    const { result, rounds } = await protect((all) => all.length === 5, "--background-snapshot", "auto");
    expect(rounds.map(({ state }) => state)).toEqual(["failed", "failed", "committed", "committed", "committed"]);
    expect(result.stderr.match(/since the background snapshot is not possible/g)).toHaveLength(1);
    expect(vm.runState).toBe("running");
  });

  it("on is refused there, with QEMU's reason", async () => {
    const { vm, protect } = await bench();
    vm.mishap = incapable;
    const { result } = await protect(committed, "--background-snapshot", "on");
    expect(result.code).toBe(1);
    expect(JSON.parse(result.stdout)).toMatchObject({
      error: { code: "vm-refused", message: expect.stringContaining(REASON) },
    });
    expect(steps(vm)).toEqual([]);
  });

  it("off does not ask for it", async () => {
    const { vm, protect } = await bench(ONE_ROUND);
    vm.mishap = incapable;
    expect((await protect(committed, "--background-snapshot", "off")).result).toMatchObject({ code: 0, stderr: "" });
  });
});

describe("rounds", () => {
  it("begin when a checkpoint is wanted before the interval is over", async () => {
    const { control, vm, run } = await bench();
    let told = 0;
    const { rounds } = await runProtect(["--run", run, "--qmp", vm.socket, "--interval", "1h"], (all) => {
      if (all.length === 1) {
        const tell = setInterval(() => {
          told += 1;
          control.log.emit("checkpoint-wanted");
          if (all.length > 1 || told > 200) clearInterval(tell);
        }, 20);
      }
      return all.length === 2;
    });
    expect(rounds).toMatchObject([{ state: "committed" }, { state: "committed" }]);
  });

  it("tell when they take longer than the interval", async () => {
    const { protect, control } = await bench();
    control.before = nextTurn;
    const { result } = await protect((all) => all.length === 2);
    expect(result.stderr).toContain("the interval of 1 ms cannot be met");
  });

  it("end with the one that is under way when the protection is to end", async () => {
    const { control, vm, run, asked } = await bench();
    const interrupt = new AbortController();
    control.before = ({ name }) => {
      if (name === "checkpoint") interrupt.abort();
    };
    const result = await runInProcess(["protect", "--run", run, "--qmp", vm.socket, "--interval", "1ms"], {
      clock: new NodeClock(),
      interrupted: interrupt.signal,
    });
    expect(result.code).toBe(0);
    expect(result.stdout).toMatch(/^checkpoint 43 committed in .*\n$/);
    expect(asked()).toEqual(["checkpoint", "commit"]);
    expect(vm.runState).toBe("running");
  });

  it("are none when the protection is to end before the agent has answered at all", async () => {
    const run = scratchDirectory();
    const interrupt = new AbortController();
    const silent = createServer((socket) => {
      onTestFinished(() => void socket.destroy());
      interrupt.abort();
    }).listen({ path: join(run, "control.sock") });
    onTestFinished(() => void silent.close());
    await onceTold(silent, "listening");
    const result = await runInProcess(["protect", "--disks-only", "--run", run], {
      clock: new NodeClock(),
      interrupted: interrupt.signal,
    });
    expect(result).toEqual({ code: 0, stdout: "", stderr: "" });
  });

  it("let go of the agent's events when the VM ends, which would keep the process", async () => {
    const { control, vm, protect } = await bench();
    const follow = control.follow.bind(control);
    let isFollowed = false;
    const letGo = new Promise<void>((resolve) => {
      control.follow = (listener) => {
        isFollowed = true;
        const stop = follow(listener);
        return () => {
          stop();
          resolve();
        };
      };
    });
    vm.mishap = (command) => (isFollowed && command === "stop" ? "end" : undefined);
    const { result } = await protect(() => false);
    expect(result.code).toBe(1);
    await letGo;
  });

  it("leave the VM alone while no secondary is in sync, and tell of it once", async () => {
    const { control, vm, protect } = await bench();
    const inSync = control.currentStatus;
    control.currentStatus = { ...inSync, peers: [] };
    const { rounds } = await protect((all) => {
      control.currentStatus = inSync;
      return committed(all);
    });
    expect(rounds).toMatchObject([{ state: "waiting", reason: "no secondary is in sync" }, { state: "committed" }]);
    expect(steps(vm).filter((step) => step === "stop")).toHaveLength(1);
  });

  it("leave the VM alone while the agent holds its requests, though a secondary is in sync", async () => {
    const { control, vm, protect } = await bench();
    const served = control.currentStatus;
    control.currentStatus = { ...served, protection: notProtected("held", "Wait for the other secondary.") };
    const { rounds } = await protect((all) => {
      control.currentStatus = served;
      return committed(all);
    });
    const reason = "the guests are not served (held): see `colobus status`";
    expect(rounds).toMatchObject([{ state: "waiting", reason }, { state: "committed" }]);
    expect(steps(vm).filter((step) => step === "stop")).toHaveLength(1);
  });
});
