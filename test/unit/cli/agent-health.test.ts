import { describe, expect, it } from "vitest";
import type { Status } from "../../../proto/status.ts";
import { ailmentOf } from "../../../cli/agent-health.ts";
import { runInProcess, serveFakeAgent } from "../../support/control-harness.ts";
import { protectedPrimary } from "../../support/status-examples.ts";

const well = protectedPrimary();
const unprotected = (reason: Status["protection"]["reason"]): Status["protection"] => ({
  state: "NotProtected",
  reason,
  nextAction: "Do this.",
});
const secondary = { role: "Secondary", recoverable: null, protection: unprotected("no-peer") } as const;
const peers = (replication: "SyncTarget" | "Off"): Status["peers"] =>
  well.peers.map((peer) => ({ ...peer, replication }));

describe("a health check", () => {
  it.each<[string, Partial<Status>, RegExp | undefined]>([
    ["a protected primary", {}, undefined],
    ["a primary without its secondary", { protection: unprotected("connecting") }, undefined],
    ["a primary whose guests are held", { protection: unprotected("held") }, /not served: held. Do this./],
    ["a primary that is outdated", { protection: unprotected("outdated") }, /outdated/],
    ["a failed disk", { disks: well.disks.map((disk) => ({ ...disk, state: "Failed" })) }, /^Failed: vda/],
    ["a secondary with a checkpoint", { ...secondary, recoverable: well.recoverable }, undefined],
    ["a secondary in its first sync", { ...secondary, peers: peers("SyncTarget") }, undefined],
    ["a secondary with nothing", { ...secondary, peers: peers("Off") }, /no checkpoint/],
  ])("of %s", (_name, changes, ailment) => {
    const found = ailmentOf({ ...well, ...changes });
    if (ailment === undefined) expect(found).toBeUndefined();
    else expect(found).toMatch(ailment);
  });

  it("is colobus status --check, which shows the status and fails", async () => {
    const { run, control } = await serveFakeAgent();
    expect(await runInProcess(["status", "--check", "--run", run])).toMatchObject({ code: 0 });
    control.currentStatus = { ...well, protection: unprotected("split-brain") };
    const ill = await runInProcess(["status", "--check", "--json", "--run", run]);
    expect(ill).toMatchObject({ code: 1, stderr: expect.stringContaining("split-brain") });
    expect(JSON.parse(ill.stdout)).toMatchObject({ vm: well.vm });
    expect(await runInProcess(["status", "--run", run])).toMatchObject({ code: 0 });
    expect(await runInProcess(["status", "--check", "--watch", "--run", run])).toMatchObject({ code: 2 });
  });
});
