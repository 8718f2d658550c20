/** Events for people: time, number, what, and its fields in the order in which the agent gave them. */
import type { AgentEvent } from "../proto/control-api.ts";
import { EVENT_TYPES } from "../proto/words.ts";
import type { Paint } from "./output.ts";
import { formatBytes, formatDuration } from "./quantities.ts";

const TYPE_WIDTH = Math.max(...EVENT_TYPES.map((type) => type.length));

export function renderEvent(event: AgentEvent, paint: Paint): string {
  const fields = Object.entries(event.data)
    .filter(([, value]) => value !== null && value !== undefined)
    .map(([key, value]) => `${key}=${renderValue(key, value)}`);
  return [paint("quiet", event.at), String(event.sequence).padStart(5), event.type.padEnd(TYPE_WIDTH), ...fields]
    .join("  ")
    .trimEnd();
}

function renderValue(key: string, value: unknown): string {
  if (typeof value === "number" && /bytes$/i.test(key)) return oneWord(formatBytes(value));
  if (typeof value === "number" && key.endsWith("Ms")) return oneWord(formatDuration(value));
  if (typeof value === "string") return value === "" || /\s/.test(value) ? JSON.stringify(value) : value;
  return JSON.stringify(value);
}

/** `0.5 ms` as `0.5ms`: a field is one word. */
function oneWord(quantity: string): string {
  return quantity.replaceAll(" ", "");
}
