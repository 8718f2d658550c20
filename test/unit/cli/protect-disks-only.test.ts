import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { ProtectionRound } from "../../../cli/protection.ts";
import { ColobusError } from "../../../proto/errors.ts";
import type { ServedAgent } from "../../support/control-harness.ts";
import { FakeGuestAgent } from "../../support/fake-guest-agent.ts";
import { runProtect, serveProtectableAgent, type ProtectRun } from "../../support/protect-run.ts";

const committed = (rounds: readonly ProtectionRound[]): boolean => rounds.at(-1)?.state === "committed";

interface Bench extends ServedAgent {
  readonly guest: FakeGuestAgent;
  readonly protect: (
    isEnough?: (rounds: readonly ProtectionRound[]) => boolean,
    ...args: string[]
  ) => Promise<ProtectRun>;
}

async function bench(interval = "1ms"): Promise<Bench> {
  const agent = await serveProtectableAgent();
  const guest = await new FakeGuestAgent(join(agent.run, "qga.sock")).listen();
  const flags = ["--disks-only", "--run", agent.run, "--qga", guest.socket, "--interval", interval];
  return { ...agent, guest, protect: (isEnough = committed, ...args) => runProtect([...flags, ...args], isEnough) };
}

/** Has the first `command` go wrong, and no later one. */
function once(command: string, mishap: { readonly error: string } | "silence"): FakeGuestAgent["mishap"] {
  let left = 1;
  return (asked) => (asked === command && left-- > 0 ? mishap : undefined);
}

describe("--disks-only", () => {
  it("takes a checkpoint of the disks alone", async () => {
    const { control, run } = await serveProtectableAgent();
    const { result, rounds } = await runProtect(["--disks-only", "--run", run, "--interval", "1h"]);
    expect(result).toMatchObject({ code: 0, stderr: "" });
    expect(rounds).toMatchObject([{ epoch: 43, state: "committed", vmstateBytes: null }]);
    expect(control.calls.map(({ name }) => name)).toEqual(["checkpoint", "commit"]);
    expect(control.calls[0]?.request).not.toHaveProperty("vmstate");
  });

  it.each([
    [["--qmp", "qmp.sock"], "needs no --qmp"],
    [["--qmp", "qmp.sock", "--qga", "qga.sock"], "needs no --qmp"],
    [["--background-snapshot", "on"], "is about memory"],
    [["--interval", "0s"], '--interval \\"0s\\" is not possible'],
    [["--interval", "0"], "must be longer than nothing"],
  ])("refuses %j", async (args, why) => {
    const { run } = await serveProtectableAgent();
    const { result } = await runProtect(["--disks-only", ...args, "--run", run]);
    expect(result.code).toBe(2);
    expect(result.stdout).toContain(why);
  });
});

describe("--qga", () => {
  it("has the file systems frozen for the barrier, and thawed for the commit", async () => {
    const { control, guest, protect } = await bench("1h");
    const seen: string[] = [];
    control.before = ({ name }) => void seen.push(`${name}: ${guest.isFrozen}`);
    const { result, rounds } = await protect();
    expect(result).toMatchObject({ code: 0, stderr: "" });
    expect(rounds).toMatchObject([{ state: "committed", vmstateBytes: null }]);
    expect(seen).toEqual(["checkpoint: true", "commit: false"]);
    expect(guest.commands).toEqual(["guest-sync-delimited", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]);
  });

  it.each([
    ["an answer", '{"return": 77}\n'],
    ["half an answer", '{"return": {"vers'],
    ["the answer to another handshake", '\xff{"return": 5}\n'],
    ["its complaint about the delimiter", '{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n'],
  ])("is not misled by what an earlier client has left: %s", async (_, leftOver) => {
    const { guest, protect } = await bench();
    guest.leftOver = Buffer.from(leftOver, "latin1");
    const { rounds } = await protect();
    expect(rounds).toMatchObject([{ state: "committed" }]);
    expect(guest.isFrozen).toBe(false);
  });

  it("thaws what could be frozen when the freeze fails", async () => {
    const { control, guest, protect } = await bench();
    guest.mishap = once("guest-fsfreeze-freeze", { error: "failed to freeze /srv" });
    guest.isFrozen = true;
    const { rounds } = await protect();
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "vm-refused" } }, { state: "committed" }]);
    expect(guest.commands.slice(0, 3)).toEqual([
      "guest-sync-delimited",
      "guest-fsfreeze-freeze",
      "guest-fsfreeze-thaw",
    ]);
    expect(control.calls.map(({ name }) => name)).toEqual(["checkpoint", "commit"]);
  });

  it("thaws by another connection when the freeze is not answered in time", async () => {
    const { guest, protect } = await bench();
    guest.mishap = once("guest-fsfreeze-freeze", "silence");
    const { rounds } = await protect((all) => all.length === 1, "--timeout", "1s");
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "timed-out" } }]);
    expect(guest.isFrozen).toBe(false);
  });

  it("thaws by another connection when the thaw is refused", async () => {
    const { guest, protect } = await bench();
    guest.mishap = once("guest-fsfreeze-thaw", { error: "Not now." });
    expect((await protect()).rounds).toMatchObject([{ state: "committed" }]);
    expect(guest.isFrozen).toBe(false);
  });

  it("thaws when the agent refuses the checkpoint", async () => {
    const { control, guest, protect } = await bench();
    let isFirst = true;
    control.before = ({ name }) => {
      if (name !== "checkpoint" || !isFirst) return;
      isFirst = false;
      throw new ColobusError("no-peer", "The peer is gone.", "Wait.");
    };
    const { rounds } = await protect((all) => all.length === 1);
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "no-peer" } }]);
    expect(guest.isFrozen).toBe(false);
  });

  it("tells that the guest may be frozen, and tries again, when it answers nothing any more", async () => {
    const { guest, protect } = await bench();
    let isSilent = false;
    guest.mishap = (command) => {
      if (command === "guest-fsfreeze-thaw") isSilent = true;
      return isSilent ? "silence" : undefined;
    };
    const { rounds } = await protect(
      (all) => {
        isSilent = false;
        guest.mishap = () => undefined;
        return committed(all);
      },
      "--timeout",
      "1s",
    );
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "timed-out" } }, { state: "committed" }]);
    expect(rounds[0]).toMatchObject({ error: { message: expect.stringContaining("may be frozen still") } });
    expect(guest.isFrozen).toBe(false);
  });

  it("is of no use where no guest agent answers, which is told", async () => {
    const { guest, protect } = await bench();
    guest.mishap = () => "silence";
    const { rounds } = await protect((all) => all.length === 1, "--timeout", "1s");
    expect(rounds).toMatchObject([{ state: "failed", error: { code: "timed-out" } }]);
  });
});
