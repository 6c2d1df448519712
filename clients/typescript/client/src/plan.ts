/** What a subscription is for: what the application asked, laid out. [core] */

import { chunkText } from "./text.ts";
import type { Json, Mode, StreamStart, Target } from "./wire.ts";

export interface StreamOptions {
  from?: StreamStart;
  /** "text": the chunks joined, as one growing text. */
  as?: "chunks" | "text";
}

export interface SubscriptionOptions {
  mode?: Mode;
  /** Run fields wanted; none given: all that the token may see. */
  fields?: readonly string[];
  /** Which streams: `true` for all, a list of keys, or options by key ("*" is every key). */
  streams?: boolean | readonly string[] | Readonly<Record<string, StreamOptions>>;
  /** When another execution of the run writes: start the text over (default), or go on with what is there. */
  attempts?: "restart" | "continue";
  /** What a chunk adds to a text. */
  toText?: (chunk: Json) => string;
  /** Seconds to wait for a run that does not exist yet, at most 30. */
  await?: number;
}

export interface Plan {
  readonly sub: string;
  readonly to: Target;
  readonly mode: Mode;
  readonly fields: readonly string[] | null;
  readonly streams: Readonly<Record<string, Required<StreamOptions>>>;
  readonly restarts: boolean;
  readonly toText: (chunk: Json) => string;
  readonly await: number | null;
}

/** Lay out a subscription from what the application asked for. */
export function planOf(sub: string, to: Target, options: SubscriptionOptions): Plan {
  return {
    sub,
    to,
    mode: options.mode ?? "latest",
    fields: options.fields ?? null,
    streams: streamsWanted(options.streams),
    restarts: options.attempts !== "continue",
    toText: options.toText ?? chunkText,
    await: options.await ?? null,
  };
}

function streamsWanted(wanted: SubscriptionOptions["streams"]): Plan["streams"] {
  const given: Readonly<Record<string, StreamOptions>> =
    wanted === true
      ? { "*": {} }
      : Array.isArray(wanted)
        ? Object.fromEntries(wanted.map((key) => [key, {}]))
        : ((wanted || {}) as Readonly<Record<string, StreamOptions>>);
  return Object.fromEntries(
    Object.entries(given).map(([key, { from = "start", as = "chunks" }]) => [key, { from, as }]),
  );
}

/**
 * Whether two subscriptions can be kept apart on one socket. A start that only the server knows
 * ("latest", -n) cannot where the other one reads the same stream: the lower place serves both. Nor
 * can one that wants every revision of a run go on beside one that wants its latest.
 */
export function mayShare(one: Plan, other: Plan): boolean {
  if ("run" in one.to && "run" in other.to && one.to.run !== other.to.run) return true;
  if (one.mode !== other.mode) return false;
  const [mine, theirs] = [Object.keys(one.streams), Object.keys(other.streams)];
  const common = mine.some((key) =>
    theirs.some((their) => key === their || key === "*" || their === "*"),
  );
  return !common || !(isRelative(one) || isRelative(other));
}

/** Whether it begins in a stream where only the server knows. */
export function isRelative({ streams }: Plan): boolean {
  return Object.values(streams).some(({ from }) => from === "latest" || Number(from) < 0);
}
