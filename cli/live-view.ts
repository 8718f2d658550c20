import type { AgentEvent } from "../proto/status.ts";
import { VitalSigns } from "../shared/control/vital-signs.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { CommandHost } from "./command.ts";
import { withoutControlCharacters } from "./output.ts";
import { LIVE_KEPT_MS, renderLiveView, type LiveView } from "./render-live-view.ts";
import { Screen } from "./screen.ts";
import { watchAgent, type WatchOptions } from "./watch-status.ts";

/** Figures that no event announces (ages, lag, progress) are brought up to date this often. */
const REFRESH_MS = 1000;
/** More are on no screen. */
const EVENTS_KEPT = 200;

/**
 * Shows the agent on the whole screen until interrupted, and leaves the terminal as it was, whatever happens. Throws when the
 * agent goes away.
 */
export async function showLiveView(
  host: CommandHost,
  options: Pick<WatchOptions, "client" | "timeoutMs">,
): Promise<void> {
  const { output, interrupted } = host;
  let view: LiveView | undefined;
  let resumed = new AbortController();
  const draw = (): void => {
    if (view !== undefined) screen.draw(renderLiveView(view, output.size, output.paint));
  };
  const screen = new Screen(host, {
    resized: draw,
    resumed: () => {
      draw();
      resumed.abort();
    },
  });
  const show = (shown: LiveView): void => {
    view = shown;
    draw();
  };
  try {
    while (!interrupted.aborted) {
      resumed = new AbortController();
      // An agent lets go of who has not listened for long: after a stop everything begins anew.
      await watchOnce(host.clock, { ...options, interrupted: AbortSignal.any([interrupted, resumed.signal]) }, show);
    }
  } finally {
    screen.leave();
  }
}

async function watchOnce(
  clock: Clock,
  options: Pick<WatchOptions, "client" | "timeoutMs" | "interrupted">,
  show: (view: LiveView) => void,
): Promise<void> {
  const { client } = options;
  const vitals = new VitalSigns(LIVE_KEPT_MS);
  const events: AgentEvent[] = [];
  await watchAgent({
    ...options,
    clock,
    refreshMs: REFRESH_MS,
    heard: (event) => {
      vitals.hear(event);
      events.push(withoutControlCharacters(event));
      if (events.length > EVENTS_KEPT) events.shift();
    },
    look: async (call) => {
      const [status, metrics] = await Promise.all([client.status(call), client.metrics(call)]);
      const atMs = clock.nowMs();
      vitals.observe(status, metrics, atMs);
      show({ status: withoutControlCharacters(status), vitals, events, atMs });
    },
  });
}
