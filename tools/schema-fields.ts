/** Reads from a zod schema what its documentation lists: the fields, their types, and their defaults. */
import { z } from "zod";

export interface SchemaField {
  /** `disks[].name`: a dot leads into an object, `[]` into the items of a list. */
  readonly path: string;
  readonly type: string;
  /** undefined: the field has none. */
  readonly defaultValue: unknown;
  readonly required: boolean;
}

interface JsonSchema {
  readonly type?: string | readonly string[];
  readonly enum?: readonly string[];
  readonly const?: string | number;
  readonly anyOf?: readonly JsonSchema[];
  readonly items?: JsonSchema;
  readonly properties?: Readonly<Record<string, JsonSchema>>;
  readonly required?: readonly string[];
  readonly default?: unknown;
}

/** The fields of an object's schema as a sender writes them, in the order of their declaration, nested ones included. */
export function schemaFields(schema: z.ZodType): SchemaField[] {
  // Byte strings are checked by a function, which JSON Schema cannot name.
  const json = z.toJSONSchema(schema, { io: "input", unrepresentable: "any" }) as JsonSchema;
  return fieldsBelow(json, "");
}

function fieldsBelow(schema: JsonSchema, prefix: string): SchemaField[] {
  return Object.entries(schema.properties ?? {}).flatMap(([name, inner]) => {
    const path = `${prefix}${name}`;
    const field = {
      path,
      type: typeName(inner),
      defaultValue: inner.default,
      required: schema.required?.includes(name) ?? false,
    };
    const nested = [inner, ...(inner.anyOf ?? [])].flatMap((part) => [
      ...fieldsBelow(part, `${path}.`),
      ...fieldsBelow(part.items ?? {}, `${path}[].`),
    ]);
    return [field, ...nested];
  });
}

function typeName(schema: JsonSchema): string {
  if (schema.anyOf !== undefined) return schema.anyOf.map(typeName).join(" or ");
  if (schema.enum !== undefined) return schema.enum.map((word) => `\`${word}\``).join(", ");
  if (schema.const !== undefined) return `\`${schema.const}\``;
  if (schema.type === "array") return `list of ${plural(typeName(schema.items ?? {}))}`;
  if (schema.type === undefined) return "bytes";
  return typeof schema.type === "string" ? schema.type : schema.type.join(" or ");
}

function plural(type: string): string {
  return /^[a-z]+$/.test(type) && type !== "bytes" ? `${type}s` : type;
}
