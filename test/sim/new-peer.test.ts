import { describe, expect, it } from "vitest";
import type { ConnectAnswer } from "../../proto/control-api.ts";
import type { Outcome } from "./calls.ts";
import type { PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";

/** An operator has another agent take the place of a secondary: that one gets everything, and the other is refused. */
const TIMEOUT_MS = 20_000;

function accept(scripted: ScriptedPair, dryRun: boolean, timeoutMs = TIMEOUT_MS): Promise<Outcome<ConnectAnswer>> {
  const { primary } = scripted.pair;
  return scripted.calls.make(primary, "connect", timeoutMs + 10, () => {
    if (primary.agent === undefined) throw new Error("the agent does not run");
    const request = { dryRun, discardMyData: false, acceptNewPeer: true, timeoutMs };
    return primary.agent.connect(request, new AbortController().signal);
  });
}

const errorOf = ({ agent }: PairMember): string | undefined => agent?.status().peers[0]?.lastError?.code;

/** A pair whose secondary is down. */
async function withoutSecondary(): Promise<ScriptedPair> {
  const scripted = new ScriptedPair(1, "power");
  await scripted.start();
  const { primary, secondary } = scripted.pair;
  secondary.host.crash("process");
  await scripted.until("the loss", () => primary.agent?.status().peers[0]?.connection === "Connecting");
  return scripted;
}

describe("a peer that another one takes the place of", () => {
  it("is refused from then on, on both sides, and after a restart", async () => {
    const scripted = await withoutSecondary();
    const { primary, secondary } = scripted.pair;
    const ordered = scripted.do("the order", () => accept(scripted, false, 1_000));
    expect(await ordered).toMatchObject({ kind: "failed", error: { code: "timed-out" } });
    secondary.host.restart();
    await scripted.do("the old one", () => secondary.start());
    const isRefused = (): boolean => errorOf(primary) === "peer-replaced" && errorOf(secondary) === "peer-replaced";
    await scripted.until("the refusal", isRefused);
    expect(await scripted.do("a dry run", () => accept(scripted, true))).toMatchObject({
      kind: "done",
      value: { dryRun: true, connected: false, verdict: { kind: "refused", rule: "replaced-peer" } },
    });
    primary.host.crash("power");
    primary.host.restart();
    await scripted.do("the primary again", () => primary.start());
    await scripted.until("the refusal", isRefused);
  });

  it("is not given up while it is connected", async () => {
    const scripted = new ScriptedPair(1, "power");
    await scripted.start();
    expect(await scripted.do("the order", () => accept(scripted, false))).toMatchObject({
      kind: "failed",
      error: { code: "peer-connected" },
    });
    expect(scripted.pair.primary.agent?.status().peers[0]?.connection).toBe("Connected");
  });
});
