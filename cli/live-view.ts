import type { AgentEvent } from "../proto/control-api.ts";
import { VitalSigns } from "../shared/control/vital-signs.ts";
import { Screen } from "./screen.ts";
import { withoutControlCharacters, type Output } from "./output.ts";
import { LIVE_KEPT_MS, renderLiveView, type LiveView } from "./render-live-view.ts";
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
  output: Output,
  options: Omit<WatchOptions, "refreshMs" | "look" | "heard">,
): Promise<void> {
  const { client, clock } = options;
  const vitals = new VitalSigns(LIVE_KEPT_MS);
  const events: AgentEvent[] = [];
  let view: LiveView | undefined;
  const draw = (): void => {
    if (view !== undefined) screen.draw(renderLiveView(view, output.size, output.paint));
  };
  const screen = new Screen(output, draw);
  try {
    await watchAgent({
      ...options,
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
        view = { status: withoutControlCharacters(status), vitals, events, atMs };
        draw();
      },
    });
  } finally {
    screen.leave();
  }
}
