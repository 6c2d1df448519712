/** A first payload made from a task's JSON schema: something to fill in rather than an empty page. */

import type { Json, JsonObject } from "@runwire/client";

/** Schemas may refer to themselves. */
const MAX_DEPTH = 6;

export interface Field {
  readonly name: string;
  readonly type: string;
  readonly isRequired: boolean;
  readonly description: string;
}

export function skeletonOf(schema: Json): Json {
  return isObject(schema) ? valueOf(schema, schema, 0) : {};
}

/** The top-level fields of an object's schema, for a list beside the editor. */
export function fieldsOf(schema: Json): Field[] {
  if (!isObject(schema)) return [];
  const resolved = resolve(schema, schema);
  const { properties, required } = resolved;
  if (!isObject(properties)) return [];
  const needed = new Set(Array.isArray(required) ? required : []);
  return Object.entries(properties).map(([name, property]) => ({
    name,
    type: isObject(property) ? typeOf(property, schema) : "any",
    isRequired: needed.has(name),
    description: textOf(isObject(property) ? property["description"] : undefined),
  }));
}

function valueOf(given: JsonObject, root: JsonObject, depth: number): Json {
  const schema = resolve(given, root);
  const known = knownValue(schema);
  if (known !== undefined) return known;
  if (depth >= MAX_DEPTH) return null;
  const choice = choiceOf(schema);
  if (choice) return valueOf(choice, root, depth + 1);
  switch (Array.isArray(schema["type"]) ? schema["type"][0] : schema["type"]) {
    case "string":
      return "";
    case "integer":
    case "number":
      return typeof schema["minimum"] === "number" ? schema["minimum"] : 0;
    case "boolean":
      return false;
    case "array":
      return isObject(schema["items"]) && schema["minItems"] ? [valueOf(schema["items"], root, depth + 1)] : [];
    case "null":
      return null;
    default:
      return membersOf(schema, root, depth);
  }
}

function membersOf(schema: JsonObject, root: JsonObject, depth: number): JsonObject {
  const { properties, required } = schema;
  if (!isObject(properties)) return {};
  const needed = new Set(Array.isArray(required) ? required : []);
  const members: JsonObject = {};
  for (const [name, property] of Object.entries(properties)) {
    if (!isObject(property)) continue;
    // An empty value for what may be left out would take the place of the task's own default.
    const isKnown = knownValue(resolve(property, root)) !== undefined;
    if (isKnown || needed.has(name)) members[name] = valueOf(property, root, depth + 1);
  }
  return members;
}

function knownValue(schema: JsonObject): Json | undefined {
  if (schema["default"] !== undefined) return schema["default"];
  if (schema["const"] !== undefined) return schema["const"];
  const listed = schema["examples"] ?? schema["enum"];
  return Array.isArray(listed) ? listed[0] : undefined;
}

function choiceOf(schema: JsonObject): JsonObject | null {
  const choices = schema["anyOf"] ?? schema["oneOf"] ?? schema["allOf"];
  if (!Array.isArray(choices)) return null;
  return choices.filter(isObject).find((choice) => choice["type"] !== "null") ?? null;
}

function typeOf(given: JsonObject, root: JsonObject): string {
  const schema = resolve(given, root);
  const choices = schema["anyOf"] ?? schema["oneOf"];
  if (Array.isArray(choices)) {
    return choices.filter(isObject).map((choice) => typeOf(choice, root)).join(" or ");
  }
  if (Array.isArray(schema["enum"])) return schema["enum"].map((each) => JSON.stringify(each)).join(" | ");
  const type = textOf(schema["type"]) || "any";
  return type === "array" && isObject(schema["items"]) ? `list of ${typeOf(schema["items"], root)}` : type;
}

/** Follow a reference such as "#/$defs/Topic". */
function resolve(schema: JsonObject, root: JsonObject): JsonObject {
  const reference = schema["$ref"];
  if (typeof reference !== "string" || !reference.startsWith("#/")) return schema;
  let at: Json | undefined = root;
  for (const step of reference.slice(2).split("/")) {
    at = isObject(at) && Object.hasOwn(at, step) ? at[step] : undefined;
  }
  return isObject(at) && at["$ref"] === undefined ? at : {};
}

function isObject(value: Json | undefined): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function textOf(value: Json | undefined): string {
  return typeof value === "string" ? value : "";
}
