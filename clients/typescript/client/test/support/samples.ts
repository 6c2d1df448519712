/** The JSON files in tests/wire/, which the Python tests read too. */

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const FOLDER = join(import.meta.dirname, "../../../../../tests/wire");
/** Not samples of a message but vectors of a state machine or a reducer. */
const VECTORS = new Set([
  "connection.json",
  "metadata.json",
  "subscription.json",
  "subscription_states.json",
]);

export interface Sample {
  name: string;
  description: string;
  message: { type: string } & Record<string, unknown>;
}

export function samples(): Sample[] {
  return readdirSync(FOLDER)
    .filter((file) => file.endsWith(".json") && !VECTORS.has(file))
    .map((file) => ({ name: file.replace(/\.json$/, ""), ...read(file) }) as Sample);
}

export function vectors<T>(file: string): T {
  return read(file) as T;
}

export function exists(file: string): boolean {
  return existsSync(join(FOLDER, file));
}

function read(file: string): object {
  return JSON.parse(readFileSync(join(FOLDER, file), "utf8")) as object;
}
