/** An agent as a service: what it tells its service manager, and the sockets that it takes over from it. */
import { spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { describe, expect, it, onTestFinished } from "vitest";
import type { Status } from "../../proto/status.ts";
import { EXIT } from "../../proto/errors.ts";
import { AgentPair } from "../support/agent-pair.ts";
import { askColobus, MAIN } from "../support/cli-runner.ts";
import { qemuIo } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { present } from "../support/present.ts";
import { accepts } from "../support/tool-process.ts";

const MANAGER = fileURLToPath(new URL("../support/service-manager.py", import.meta.url));
/** Long enough that a machine that is busy with other tests does not miss a sign. */
const WATCHDOG_MS = 3_000;

/** test/support/service-manager.py, and what it has printed. */
class Manager {
  readonly #child;
  readonly #lines: string[] = [];
  #more: (() => void) | undefined;

  constructor(directory: string, command: readonly string[]) {
    const args = [MANAGER, directory, String(WATCHDOG_MS), process.execPath, MAIN, ...command];
    this.#child = spawn("/usr/bin/python3", args, { stdio: ["pipe", "pipe", "ignore"] });
    onTestFinished(() => void this.#child.stdin.end());
    createInterface({ input: this.#child.stdout }).on("line", (line) => {
      this.#lines.push(line);
      this.#more?.();
    });
  }

  order(word: "start" | "stop"): void {
    this.#child.stdin.write(`${word}\n`);
  }

  /** Resolves with the next line that begins so; what came before it is forgotten. */
  async next(beginning: string): Promise<string> {
    for (;;) {
      const line = this.#lines.shift();
      if (line?.startsWith(beginning) === true) return line;
      if (line !== undefined) continue;
      await new Promise<void>((resolve) => {
        this.#more = resolve;
      });
    }
  }
}

describe.runIf(requirePeers("/usr/bin/python3", "qemu-io"))("an agent under a service manager", () => {
  it("says when it serves and that it lives; one that hangs is replaced, and who connects meanwhile only waits", async () => {
    const pair = await AgentPair.create();
    const { run, command } = pair.secondary;
    await pair.primary.start();
    const manager = new Manager(run, command);
    await manager.next("READY=1");
    expect(await manager.next("STATUS=")).toMatch(/^STATUS=Secondary of VM test, NotProtected: /);
    const { json } = await askColobus<Status>("status", "--run", run);
    expect(await manager.next("MAINPID=")).toBe(`MAINPID=${json.pid}`);
    await pair.untilProtected();
    await manager.next("STATUS=Secondary of VM test, Protected");
    for (let sign = 0; sign < 2; sign += 1) await manager.next("WATCHDOG=1");

    process.kill(json.pid, "SIGSTOP");
    await manager.next("missed");
    expect(await manager.next("ended")).toBe("ended -9");
    expect(await accepts(join(run, "nbd.sock"))).toBe(true);
    const [disk] = json.exports;
    const read = qemuIo(present(disk).uri, "read -P 0 0 64k");
    manager.order("start");
    await manager.next("READY=1");
    await read;
    await pair.untilProtected();

    manager.order("stop");
    await manager.next("STOPPING=1");
    expect(await manager.next("ended")).toBe(`ended ${EXIT.done}`);
    expect(await accepts(join(run, "control.sock"))).toBe(true);
  });
});
