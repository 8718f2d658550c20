import { readFileSync } from "node:fs";
import { parse } from "yaml";
import { ColobusError } from "../proto/errors.ts";

/** What the configuration file says, as YAML has it. Errors: `usage` where it cannot be read, or is not YAML. */
export function parseConfigFile(path: string): unknown {
  try {
    return parse(readFileSync(path, "utf8")) ?? {};
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new ColobusError("usage", `the configuration file cannot be read: ${why}`, "Check --config.", {
      cause: error,
    });
  }
}
