/** What `colobus doctor` finds: `failed` has to be mended, `warning` may have to be, `ok` was looked at. */
export const FINDING_STATES = ["ok", "warning", "failed"] as const;
export type FindingState = (typeof FINDING_STATES)[number];

export interface Finding {
  /** What was looked at, such as `open files`. */
  readonly check: string;
  readonly state: FindingState;
  readonly message: string;
  /** What to do; empty where nothing has to be done. */
  readonly action: string;
}

export function ok(check: string, message: string): Finding {
  return { check, state: "ok", message, action: "" };
}

export function warning(check: string, message: string, action: string): Finding {
  return { check, state: "warning", message, action };
}

export function failed(check: string, message: string, action: string): Finding {
  return { check, state: "failed", message, action };
}
