import type { Log } from "../../shared/host/log.ts";

/** A log that keeps its lines for the test and writes none. */
export class SilentLog implements Log {
  readonly lines: { readonly level: string; readonly fields: unknown; readonly message: unknown }[] = [];

  readonly debug = (fields: unknown, message?: unknown): void =>
    void this.lines.push({ level: "debug", fields, message });
  readonly info = (fields: unknown, message?: unknown): void =>
    void this.lines.push({ level: "info", fields, message });
  readonly warn = (fields: unknown, message?: unknown): void =>
    void this.lines.push({ level: "warn", fields, message });
  readonly error = (fields: unknown, message?: unknown): void =>
    void this.lines.push({ level: "error", fields, message });
}
