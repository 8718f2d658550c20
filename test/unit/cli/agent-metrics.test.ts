import { describe, expect, it } from "vitest";
import { AgentMetrics } from "../../../cli/agent-metrics.ts";
import type { AgentEvent, Status } from "../../../proto/status.ts";
import { METRICS } from "../../../proto/metrics.ts";
import { DISK_STATES, PROTECTION_REASONS } from "../../../proto/words.ts";
import { GuestFigures } from "../../../shared/nbd/guest-figures.ts";
import { parseExposition, valueOf, type Sample } from "../../support/prometheus-text.ts";
import { present } from "../../support/present.ts";
import { protectedPrimary } from "../../support/status-examples.ts";

const PROCESS = { cpuSeconds: 12.5, residentBytes: 100_000_000, openFiles: 40, startedAtMs: 1_700_000_000_000 };

function samplesOf(metrics: AgentMetrics, status: Status, figures = new GuestFigures()): Sample[] {
  return parseExposition(metrics.render(status, [{ name: "vda", figures }], PROCESS));
}

/** A status in which there is something to say about everything. */
function everything(): Status {
  const status = protectedPrimary();
  const job = {
    id: "resync-1",
    type: "resync",
    state: "running",
    disk: null,
    progress: { doneBytes: 10, totalBytes: 40 },
    bytesPerSecond: 5,
    etaMs: 6000,
    speedLimit: 0,
    startedAt: "2026-01-01T00:00:00.000Z",
    endedAt: null,
    target: null,
    outcome: null,
    error: null,
  } as const;
  return {
    ...status,
    peers: status.peers.map((peer) => ({ ...peer, lastError: { code: "no-peer", message: "m", action: "a" } })),
    jobs: [job, { ...job, id: "resync-0", state: "concluded" }],
    failover: { kind: "automatic", arbiter: { state: "own", holder: "a1", leaseMsLeft: 1500, lastError: null } },
    eventLoopDelay: { overMs: 60_000, p50Ms: 0.1, p99Ms: 2, p999Ms: 30, maxMs: 1200, stalls: 3 },
  };
}

function event(type: AgentEvent["type"], data: Record<string, unknown> = {}): AgentEvent {
  return { sequence: 1, at: "2026-01-01T00:00:00.000Z", type, data };
}

describe("the metrics of an agent", () => {
  it("have every declared metric, each in the form that Prometheus reads", () => {
    const samples = samplesOf(new AgentMetrics(), everything());
    expect(new Set(samples.map(({ name }) => name))).toEqual(new Set(Object.keys(METRICS)));
  });

  it("are in seconds and bytes", () => {
    const samples = samplesOf(new AgentMetrics(), everything());
    expect(valueOf(samples, "colobus_event_loop_delay_seconds", { quantile: "1" })).toBe(1.2);
    expect(valueOf(samples, "colobus_lease_seconds")).toBe(1.5);
    expect(valueOf(samples, "colobus_lag_bytes")).toBe(12_288);
    expect(valueOf(samples, "process_start_time_seconds")).toBe(1_700_000_000);
    expect(valueOf(samples, "colobus_job_done_bytes", { job: "resync-1" })).toBe(10);
  });

  it("say of a state 1 for the present one and 0 for every other", () => {
    const { disks, ...rest } = protectedPrimary();
    const status: Status = {
      ...rest,
      disks: disks.slice(0, 1),
      protection: { state: "NotProtected", reason: "resync", nextAction: "Wait." },
    };
    const samples = samplesOf(new AgentMetrics(), status);
    const states = (name: keyof typeof METRICS): [string, number][] =>
      samples
        .filter((sample) => sample.name === name)
        .map(({ labels, value }) => [present(Object.values(labels).at(-1)), value]);
    expect(states("colobus_device_state")).toEqual(DISK_STATES.map((state) => [state, state === "UpToDate" ? 1 : 0]));
    expect(states("colobus_not_protected")).toEqual(
      PROTECTION_REASONS.map((reason) => [reason, reason === "resync" ? 1 : 0]),
    );
    expect(valueOf(samples, "colobus_protected")).toBe(0);
  });

  it("leave out what there is nothing to say about", () => {
    const status: Status = { ...protectedPrimary(), recoverable: null, eventLoopDelay: null };
    const samples = samplesOf(new AgentMetrics(), status);
    expect(valueOf(samples, "colobus_recoverable")).toBe(0);
    for (const name of ["colobus_recoverable_age_seconds", "colobus_arbiter_state", "colobus_stalls_total"] as const) {
      expect(samples.some((sample) => sample.name === name)).toBe(false);
    }
    expect(samples.some(({ labels }) => labels["job"] === "resync-0")).toBe(false);
  });

  it("count events, and time a checkpoint's phases as its events tell them", () => {
    const metrics = new AgentMetrics();
    for (const prepareMs of [1.5, 3]) metrics.count(event("checkpoint-prepared", { epoch: 1, prepareMs }));
    metrics.count(event("checkpoint-prepared", { epoch: 3, vmstateMs: 4000 }));
    metrics.count(event("checkpoint-committed", { epoch: 3, commitMs: 0.7 }));
    metrics.count(event("checkpoint-committed", { epoch: 3 }));
    metrics.count(event("checkpoint-failed", { epoch: 4 }));
    metrics.count(event("peer-disconnected"));
    const samples = samplesOf(metrics, protectedPrimary());
    expect(valueOf(samples, "colobus_checkpoint_prepare_seconds", {}, "count")).toBe(2);
    expect(valueOf(samples, "colobus_checkpoint_prepare_seconds", {}, "sum")).toBeCloseTo(0.0045);
    expect(valueOf(samples, "colobus_checkpoint_prepare_seconds", { le: "0.002" }, "bucket")).toBe(1);
    expect(valueOf(samples, "colobus_checkpoint_vmstate_seconds", {}, "sum")).toBe(4);
    expect(valueOf(samples, "colobus_checkpoint_commit_seconds", {}, "count")).toBe(1);
    expect(valueOf(samples, "colobus_checkpoints_total", { outcome: "committed" })).toBe(2);
    expect(valueOf(samples, "colobus_checkpoints_total", { outcome: "failed" })).toBe(1);
    expect(valueOf(samples, "colobus_sessions_total", { outcome: "lost" })).toBe(1);
    expect(valueOf(samples, "colobus_events_total", { type: "checkpoint-prepared" })).toBe(3);
  });

  it("have the figures of guests' requests for each disk", () => {
    const figures = new GuestFigures();
    figures.add(1, 3, 12_288, 2);
    figures.errors = 2;
    const samples = samplesOf(new AgentMetrics(), protectedPrimary(), figures);
    const writes = { disk: "vda", operation: "write" };
    expect(valueOf(samples, "colobus_guest_request_seconds", writes, "count")).toBe(3);
    expect(valueOf(samples, "colobus_guest_request_seconds", writes, "sum")).toBeCloseTo(0.006);
    expect(valueOf(samples, "colobus_device_written_bytes_total")).toBe(12_288);
    expect(valueOf(samples, "colobus_guest_errors_total")).toBe(2);
  });

  it("survive any name of a VM, a peer or a disk", () => {
    const status = protectedPrimary();
    const name = 'a"b\\c\nd';
    const samples = samplesOf(new AgentMetrics(), {
      ...status,
      vm: name,
      peers: status.peers.map((peer) => ({ ...peer, url: name })),
    });
    expect(samples[0]?.labels["vm"]).toBe('a\\"b\\\\c\\nd');
  });
});
