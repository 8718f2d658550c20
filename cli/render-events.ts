/** Events for people: time, number, what, and its fields in the order in which the agent gave them. */
import type { AgentEvent } from "../proto/status.ts";
import { EVENT_TYPES } from "../proto/words.ts";
import { renderEventFields } from "./event-fields.ts";
import type { Paint } from "./output.ts";

const TYPE_WIDTH = Math.max(...EVENT_TYPES.map((type) => type.length));

export function renderEvent(event: AgentEvent, paint: Paint): string {
  return [
    paint("quiet", event.at),
    String(event.sequence).padStart(5),
    event.type.padEnd(TYPE_WIDTH),
    ...renderEventFields(event),
  ]
    .join("  ")
    .trimEnd();
}
