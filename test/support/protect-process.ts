import type { ProtectionRound } from "../../cli/protection.ts";
import type { AgentUnderTest } from "./agent-pair.ts";
import { ColobusProcess, type Ended } from "./cli-runner.ts";
import type { CountingVm } from "./counting-guest.ts";

export type CommittedRound = Extract<ProtectionRound, { state: "committed" }>;

/** `colobus protect` of a VM, once a second where the flags say nothing else. */
export class ProtectProcess {
  readonly #process: ColobusProcess;

  constructor(vm: CountingVm, agent: AgentUnderTest, ...flags: string[]) {
    const interval = flags.includes("--interval") ? [] : ["--interval", "1s"];
    const args = ["protect", "--qmp", vm.qmp, "--json", "--run", agent.run];
    this.#process = new ColobusProcess([...args, ...interval, ...flags]);
  }

  get rounds(): ProtectionRound[] {
    const lines = this.#process.stdout.split("\n").filter((line) => line.endsWith("}"));
    return lines.map((line) => JSON.parse(line) as ProtectionRound);
  }

  get committed(): CommittedRound[] {
    return this.rounds.filter((round): round is CommittedRound => round.state === "committed");
  }

  /** The pauses so far, as one line tells them. */
  get pauses(): string {
    return this.committed
      .map(({ pauseMs, vmstateBytes }) => `${Math.round(pauseMs)} ms of ${vmstateBytes} bytes`)
      .join(", ");
  }

  untilCommitted(): Promise<void> {
    return this.#process.untilPrinted('"committed"');
  }

  untilWaiting(): Promise<void> {
    return this.#process.untilPrinted('"waiting"');
  }

  /** Resolves when a round has come to this end after this call. */
  untilNext(state: ProtectionRound["state"]): Promise<void> {
    return this.#process.untilPrinted(`"${state}"`, this.#process.stdout.length);
  }

  /** When it ends by itself. */
  get ended(): Promise<Ended> {
    return this.#process.ended;
  }

  kill(): void {
    this.#process.child.kill("SIGKILL");
  }

  /** As a service manager ends it. Returns the exit code. */
  async stop(): Promise<number | null> {
    this.#process.child.kill("SIGTERM");
    return (await this.#process.ended).code;
  }
}
