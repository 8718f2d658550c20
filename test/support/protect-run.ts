/** `colobus protect` in this process, against an agent that is a fake. */
import { NodeClock } from "../../shared/host/node-clock.ts";
import type { ProtectionRound } from "../../cli/protection.ts";
import { runInProcess, serveFakeAgent, type CliResult, type ServedAgent } from "./control-harness.ts";

export interface ProtectRun {
  readonly result: CliResult;
  readonly rounds: readonly ProtectionRound[];
}

/** An agent whose next checkpoint can be committed. */
export async function serveProtectableAgent(): Promise<ServedAgent> {
  const agent = await serveFakeAgent();
  const { control } = agent;
  control.currentStatus = {
    ...control.currentStatus,
    epoch: { open: 43, prepared: [43], committed: 42, retained: [] },
  };
  return agent;
}

/** Runs until `isEnough`, as if SIGTERM came then, or until it ends by itself. */
export async function runProtect(
  args: readonly string[],
  isEnough: (rounds: readonly ProtectionRound[]) => boolean = (rounds) => rounds.length > 0,
): Promise<ProtectRun> {
  const interrupt = new AbortController();
  const rounds: ProtectionRound[] = [];
  const result = await runInProcess(["protect", "--json", ...args], {
    clock: new NodeClock(),
    interrupted: interrupt.signal,
    onStdout: (text) => {
      const round = JSON.parse(text) as ProtectionRound | { readonly error: unknown };
      if (!("state" in round)) return;
      rounds.push(round);
      if (isEnough(rounds)) interrupt.abort();
    },
  });
  return { result, rounds };
}
