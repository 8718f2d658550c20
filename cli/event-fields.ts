import type { AgentEvent } from "../proto/status.ts";
import { formatBytes, formatDuration } from "./quantities.ts";

/** `key=value` of each field of an event that has a value, in the order in which the agent gave them. */
export function renderEventFields({ data }: AgentEvent): string[] {
  return Object.entries(data)
    .filter(([, value]) => value !== null && value !== undefined)
    .map(([key, value]) => `${key}=${renderValue(key, value)}`);
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
