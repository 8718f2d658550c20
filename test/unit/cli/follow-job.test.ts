import { describe, expect, it } from "vitest";
import type { JobStatus } from "../../../proto/status.ts";
import { NodeClock } from "../../../shared/host/node-clock.ts";
import { runInProcess, serveFakeAgent, type CliResult } from "../../support/control-harness.ts";
import { present } from "../../support/present.ts";

const STOPPED = { code: "shutting-down", message: "the agent is being stopped", action: "" };
const CANCELLED = { code: "job-state", message: "the job was cancelled", action: "" };

type End = Pick<JobStatus, "state" | "outcome" | "error">;

const concluded = (outcome: JobStatus["outcome"], error: JobStatus["error"] = null): End => ({
  state: "concluded",
  outcome,
  error,
});

/** What the command says of a mirror that is found as `end`. */
async function wait(words: readonly string[], end: End): Promise<CliResult> {
  const { control, run } = await serveFakeAgent();
  const job = present(control.currentStatus.jobs[0]);
  const jobs: JobStatus[] = ["full-sync-1", "mirror-2"].map((id) => ({ ...job, ...end, id, type: "mirror" }));
  control.currentStatus = { ...control.currentStatus, jobs };
  return runInProcess([...words, "--wait", "--run", run, "--json"], { clock: new NodeClock() });
}

const COMPLETE = ["job", "complete", "mirror-2"];
const CANCEL = ["job", "cancel", "mirror-2"];
const MIRROR = ["mirror", "vda", "--to", "/images/new.img"];

describe("a command that waits for a job", () => {
  it.each([
    [COMPLETE, concluded("pivoted")],
    [CANCEL, concluded("cancelled", CANCELLED)],
    [CANCEL, concluded("completed")],
    [MIRROR, { state: "ready", outcome: null, error: null }],
    [MIRROR, concluded("pivoted")],
    [MIRROR, concluded("completed")],
  ] as const)("is done: %j, %j", async (words, end) => {
    const { code, stdout } = await wait(words, end);
    expect([code, JSON.parse(stdout)]).toEqual([0, expect.objectContaining(end)]);
  });

  it.each([
    [COMPLETE, concluded("completed"), "job-state"],
    [COMPLETE, concluded("cancelled", CANCELLED), "job-state"],
    [COMPLETE, concluded(null, STOPPED), "shutting-down"],
    [CANCEL, concluded("pivoted"), "job-state"],
    [CANCEL, concluded(null, STOPPED), "shutting-down"],
    [MIRROR, concluded(null, STOPPED), "shutting-down"],
    [MIRROR, concluded("cancelled", CANCELLED), "job-state"],
    [MIRROR, concluded("failed", { ...STOPPED, code: "io-error" }), "io-error"],
  ] as const)("fails: %j, %j", async (words, end, error) => {
    const { code, stdout } = await wait(words, end);
    expect([code, JSON.parse(stdout)]).toMatchObject([1, { error: { code: error } }]);
    if (end.outcome === null) expect(stdout).toContain("It goes on with the agent");
  });
});
