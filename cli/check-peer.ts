/** What `colobus doctor` finds of the way to the peer by having the agent measure it, and of the peer's clock. */
import type { MeasureLinkAnswer } from "../proto/control-api.ts";
import type { Status } from "../proto/status.ts";
import { asColobusError } from "../proto/errors.ts";
import type { ControlClient } from "../shared/control/api-client.ts";
import { ok, warning, type Finding } from "./finding.ts";
import { formatBytes, formatDuration } from "./quantities.ts";

/** A checkpoint takes at least one round trip. */
const ROUND_TRIP_SLOW_MS = 20;
/** A fifth of what one disk of a small VM writes when it is at it: 100 Mbit/s. */
const SLOW_BYTES_PER_SECOND = 12_500_000;
/** Time services keep hosts far closer. */
const CLOCKS_APART_MAX_MS = 500;

/** Nothing where this side is dialled, or has no session: the first is for the other host, the second a finding of its own. */
export async function checkPeer(
  client: ControlClient,
  { peers }: Status,
  options: { readonly timeoutMs: number; readonly signal: AbortSignal },
): Promise<Finding[]> {
  if (!peers.some(({ url, connection }) => url !== null && connection === "Connected")) return [];
  try {
    const figures = await client.measureLink({ timeoutMs: options.timeoutMs }, options.signal);
    return [describeLink(figures), describeClocks(figures)];
  } catch (error) {
    const { message, action } = asColobusError(error);
    return [warning("link speed", `the link to the peer was not measured: ${message}`, action)];
  }
}

function describeLink({ roundTripMs, bytesPerSecond, sentBytes }: MeasureLinkAnswer): Finding {
  const message = `a round trip takes ${formatDuration(roundTripMs)}, and ${formatBytes(bytesPerSecond)}/s arrive (${formatBytes(sentBytes)} sent)`;
  if (bytesPerSecond < SLOW_BYTES_PER_SECOND) {
    return warning(
      "link speed",
      message,
      "Guests that write faster wait, or leave the stream (--on-congestion): use a faster line, or one with less other traffic.",
    );
  }
  if (roundTripMs < ROUND_TRIP_SLOW_MS) return ok("link speed", message);
  return warning(
    "link speed",
    message,
    "Checkpoints and --ack applied wait for each round trip; use a nearer host or --ack async.",
  );
}

/** What half a round trip may be wrong by is not held against them. */
function describeClocks({ clockAheadMs, roundTripMs }: MeasureLinkAnswer): Finding {
  const apartMs = Math.abs(clockAheadMs);
  const message = `the peer's clock is ${formatDuration(apartMs)} ${clockAheadMs < 0 ? "behind" : "ahead"}`;
  if (apartMs - roundTripMs / 2 <= CLOCKS_APART_MAX_MS) return ok("peer's clock", message);
  return warning(
    "peer's clock",
    message,
    "Run a time service on both hosts (chrony, systemd-timesyncd): events, logs and certificates are told by it.",
  );
}
