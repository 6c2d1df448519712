/**
 * What a metadata operation does to a document: the twin of runwire/_metadata.py. [core]
 *
 *     {type: "set", key, value}        replace the value
 *     {type: "delete", key}            drop it
 *     {type: "update", value: {…}}     replace the whole document
 *     {type: "append", key, value}     push; nothing there: [v]; no list there: [old, v]
 *     {type: "remove", key, value}     drop every element equal to v; no list: nothing
 *     {type: "increment", key, value}  add; what is no number counts as 0
 *
 * A key that starts with "$." is a path, as in `$.steps[0].done`; every other key is a name at the
 * top, as it is. Both twins read tests/wire/metadata.json.
 */

import { InvalidValueError } from "./errors.ts";
import type { Json, JsonObject } from "./wire.ts";

type Path = readonly (string | number)[];
/** Nothing there is undefined; null is a value. */
type Held = Json | undefined;

const MAX_PATH_STEPS = 32;
const MAX_INTEGER = 2 ** 53;
const KEYED = new Set(["set", "delete", "append", "remove", "increment"]);
const VALUED = new Set(["set", "update", "append", "remove", "increment"]);
/** These name the prototype, not a member. */
const FORBIDDEN = new Set<string | number>(["__proto__", "constructor", "prototype"]);
const STEP = /\.([^.[\]]+)|\[(0|[1-9][0-9]{0,6})\]/y;

/**
 * The document after the operations, in order; the one given is left as it was.
 *
 * Throws InvalidValueError (code "operation", "key", "path" or "number") when one cannot be applied.
 */
export function applyMetadata(
  document: JsonObject,
  operations: readonly JsonObject[],
): JsonObject {
  return operations.reduce((held, operation) => applyOne(held, operation), document);
}

function applyOne(document: JsonObject, operation: JsonObject): JsonObject {
  validate(operation);
  const value = operation["value"] as Json;
  if (operation["type"] === "update") return value as JsonObject;
  const path = pathOf(operation["key"]);
  switch (operation["type"]) {
    case "set":
      return place(document, path, () => value) as JsonObject;
    case "append":
      return place(document, path, (held) => appended(held, value)) as JsonObject;
    case "increment":
      return place(document, path, (held) => added(held, value as number)) as JsonObject;
    case "remove":
      return touch(document, path, (held) => without(held, value)) as JsonObject;
    default:
      return drop(document, path) as JsonObject;
  }
}

function validate(operation: JsonObject): void {
  const { type, value } = operation;
  if (typeof type !== "string" || !(KEYED.has(type) || VALUED.has(type))) {
    throw refused(`${String(type).slice(0, 40)} is not a metadata operation`, "operation");
  }
  if (VALUED.has(type) && value === undefined) {
    throw refused(`${type} needs a value`, "operation");
  }
  if (KEYED.has(type)) pathOf(operation["key"]);
  if (type === "update") checkDocument(value);
  if (type === "increment" && !isAmount(value)) throw refused("increment needs a number", "number");
}

function checkDocument(value: Held): void {
  if (!isObject(value)) throw refused("metadata is an object; update needs one", "operation");
  for (const name of Object.keys(value)) {
    if (!name || FORBIDDEN.has(name)) throw refused(`${name} cannot be a metadata key`, "key");
  }
}

function pathOf(key: Held): Path {
  if (typeof key !== "string" || !key) {
    throw refused("a metadata key is a string of at least one character", "key");
  }
  const path = key.startsWith("$.") ? steps(key) : [key];
  const forbidden = path.find((step) => FORBIDDEN.has(step));
  if (forbidden !== undefined) throw refused(`${forbidden} cannot be a metadata key`, "key");
  return path;
}

function steps(key: string): Path {
  const found: (string | number)[] = [];
  let at = 1;
  while (at < key.length) {
    STEP.lastIndex = at;
    const step = STEP.exec(key);
    if (!step || found.length === MAX_PATH_STEPS) throw notAPath(key);
    found.push(step[1] ?? Number(step[2]));
    at = STEP.lastIndex;
  }
  if (!found.length) throw notAPath(key);
  return found;
}

/** `held` with what is at the path changed; what is missing on the way is made. */
function place(held: Held, path: Path, change: (held: Held) => Json): Json {
  const [step, ...rest] = path;
  if (step === undefined) return change(held);
  if (typeof step === "string") {
    const members = held === undefined ? {} : held;
    if (!isObject(members)) throw refused(`there is no object to hold ${step}`, "path");
    return { ...members, [step]: place(member(members, step), rest, change) };
  }
  const elements = held === undefined ? [] : held;
  if (!Array.isArray(elements)) throw refused(`there is no list to hold [${step}]`, "path");
  if (step > elements.length) throw refused(`[${step}] is beyond the end of a list`, "path");
  const changed = place(elements[step], rest, change);
  return [...elements.slice(0, step), changed, ...elements.slice(step + 1)];
}

/** `held` with what is at the path changed; where nothing is, nothing changes. */
function touch(held: Json, path: Path, change: (held: Json) => Json): Json {
  const [step, ...rest] = path;
  if (step === undefined) return change(held);
  if (typeof step === "string" && isObject(held)) {
    const there = member(held, step);
    return there === undefined ? held : { ...held, [step]: touch(there, rest, change) };
  }
  if (typeof step === "number" && Array.isArray(held) && step < held.length) {
    return held.map((each, at) => (at === step ? touch(each, rest, change) : each));
  }
  return held;
}

function drop(held: Json, path: Path): Json {
  const last = path[path.length - 1];
  return touch(held, path.slice(0, -1), (parent) => {
    if (typeof last === "string" && isObject(parent)) {
      return Object.fromEntries(Object.entries(parent).filter(([name]) => name !== last));
    }
    if (typeof last === "number" && Array.isArray(parent)) {
      return parent.filter((_, at) => at !== last);
    }
    return parent;
  });
}

function appended(held: Held, value: Json): Json {
  if (held === undefined) return [value];
  return Array.isArray(held) ? [...held, value] : [held, value];
}

function added(held: Held, amount: number): number {
  const total = (isNumber(held) ? held : 0) + amount;
  if (!Number.isFinite(total)) throw refused("the sum is beyond what JSON can hold", "number");
  return total;
}

function without(held: Json, value: Json): Json {
  return Array.isArray(held) ? held.filter((each) => !equal(each, value)) : held;
}

function equal(left: Held, right: Held): boolean {
  if (Array.isArray(left) && Array.isArray(right)) {
    return left.length === right.length && left.every((each, at) => equal(each, right[at]));
  }
  if (isObject(left) && isObject(right)) {
    const names = Object.keys(left);
    return (
      names.length === Object.keys(right).length &&
      names.every((name) => Object.hasOwn(right, name) && equal(left[name], right[name]))
    );
  }
  return left === right;
}

function member(members: JsonObject, name: string): Held {
  return Object.hasOwn(members, name) ? members[name] : undefined;
}

function isObject(value: Held): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isNumber(value: Held): value is number {
  return typeof value === "number" && Number.isFinite(value);
}

/**
 * The twin refuses integers beyond 2**53 and takes floats of any size; here both are one type. What
 * JSON writes out in digits is taken for an integer: refusing too much costs reading the run again.
 */
function isAmount(value: Held): boolean {
  if (!isNumber(value)) return false;
  const size = Math.abs(value);
  return !Number.isInteger(value) || size <= MAX_INTEGER || size >= 1e21;
}

function notAPath(key: string): InvalidValueError {
  return refused(`${key.slice(0, 80)} is not a path like $.steps[0].done`, "path");
}

function refused(message: string, code: string): InvalidValueError {
  return new InvalidValueError(message, { code });
}
