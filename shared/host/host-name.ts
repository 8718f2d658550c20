import { hostname } from "node:os";

/** What this host calls itself. */
export function readHostName(): string {
  return hostname();
}
