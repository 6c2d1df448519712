/** The log of a run: its lines as they are stored, read with care. */

import type { Json } from "@runwire/client";

export const LOG_KEY = "$log";
/** Kept and drawn; a run's log holds 10 000. */
export const MAX_ENTRIES = 2000;

export type Level = "debug" | "info" | "log" | "warn" | "error";
const LEVELS: readonly string[] = ["debug", "info", "log", "warn", "error"] satisfies Level[];

export interface LogEntry {
  readonly seq: number;
  readonly attempt: number | null;
  /** ISO, UTC; empty where the line has none. */
  readonly time: string;
  readonly level: Level;
  readonly message: string;
  /** The name of the logger, for what the standard `logging` was told. */
  readonly logger: string;
  /** As JSON; empty where there are none. */
  readonly attributes: string;
}

interface StoredLine {
  readonly seq: number;
  readonly chunk: Json;
  readonly attempt?: number;
}

/** A line that another version wrote is shown as well as it can be. */
export function entryOf({ seq, chunk, attempt = undefined }: StoredLine): LogEntry {
  const isLine = typeof chunk === "object" && chunk !== null && !Array.isArray(chunk);
  const said: { readonly [name: string]: Json | undefined } = isLine ? chunk : { message: chunk };
  const { time, level, message, logger, attributes } = said;
  return {
    seq,
    attempt: attempt ?? null,
    time: typeof time === "string" && Date.parse(time) ? time : "",
    level: typeof level === "string" && LEVELS.includes(level) ? (level as Level) : "info",
    message: text(message),
    logger: text(logger),
    attributes: attributes === undefined ? "" : JSON.stringify(attributes),
  };
}

/** How urgent a level is: the least is 0. */
export function urgency(level: Level): number {
  return LEVELS.indexOf(level);
}

function text(value: Json | undefined): string {
  if (value === undefined) return "";
  return typeof value === "string" ? value : JSON.stringify(value);
}
