/** The table of docs/configuration.md. */
import { agentKeysSchema } from "../cli/agent-keys.ts";
import { describeKeys } from "../cli/config-schema.ts";
import { markdownTable } from "./markdown-table.ts";
import { schemaFields } from "./schema-fields.ts";

export function configTable(): string {
  const types = new Map(schemaFields(agentKeysSchema).map(({ path, type }) => [path, type]));
  return markdownTable(
    ["key, and flag `--KEY`", "values", "default", "meaning", "taken up by a reload"],
    describeKeys().map(({ key, meaning, byDefault, reloadable }) => [
      `\`${key}\``,
      types.get(key)?.startsWith("`") === true ? (types.get(key) ?? "") : valueOf(types.get(key) ?? ""),
      byDefault ?? "–",
      `${meaning}.`,
      reloadable ? "yes" : "–",
    ]),
  );
}

function valueOf(type: string): string {
  if (type === "boolean") return "`true`, `false`";
  return type.includes("list") ? "text, or a list of them" : "text";
}
