/**
 * Where a subscription stands in each stream, and what a message adds. [core]
 *
 * Positions are per subscription: two of them may follow one stream from different places, and the
 * socket then carries it from the lower one.
 */

import type { SubscriptionEvent } from "./events.ts";
import type {
  Attempt,
  Chunks,
  End,
  Eof,
  Json,
  StreamMessage,
  StreamRequest,
  StreamStart,
  Text,
} from "./wire.ts";

export interface Position {
  readonly run: string;
  readonly stream: string;
  /** The seq wanted next; null: whatever comes first. */
  readonly next: number | null;
  /** Where the execution of the run that was told last began. */
  readonly begunAt: number | null;
  /** The last end of an attempt that was told. */
  readonly ended: End | null;
  readonly isFinished: boolean;
  readonly text: string;
  readonly restarts: number;
}

export type Positions = ReadonlyMap<string, Position>;

export interface Wanted {
  readonly from: StreamStart;
  readonly as: "chunks" | "text";
  readonly restarts: boolean;
  readonly toText: (chunk: Json) => string;
  /**
   * The server may not have read yet where this subscription stands: what is ahead of it was sent
   * for another one, and will be sent again.
   */
  readonly isSyncing: boolean;
}

export interface StreamOutcome {
  readonly positions: Positions;
  readonly events: readonly SubscriptionEvent[];
  readonly isBroken?: boolean;
}

interface Taken {
  readonly position: Position;
  readonly events: readonly SubscriptionEvent[];
  readonly isBroken?: boolean;
}

export function receive(
  positions: Positions,
  message: StreamMessage,
  wanted: Wanted,
): StreamOutcome {
  const key = keyOf(message);
  const before = positions.get(key) ?? first(message, wanted.from);
  const { position, events, isBroken } = take(before, message, wanted);
  return {
    positions: new Map(positions).set(key, position),
    events,
    ...(isBroken && { isBroken: true }),
  };
}

/** What to ask for when the run's streams that are known are resumed. */
export function resumeOf(
  positions: Positions,
  run: string,
  formOf: (stream: string) => "chunks" | "text",
): Record<string, StreamRequest> {
  const known: Record<string, StreamRequest> = {};
  for (const { run: owner, stream, next } of positions.values()) {
    if (owner !== run || next === null) continue;
    // As chunks: what is held already is not sent again as a part of a text.
    known[stream] = { from: next, as: next ? "chunks" : formOf(stream) };
  }
  return known;
}

/**
 * Where it stands, run by run, in at most so many bytes of JSON. Streams that may go on come first:
 * one that is left out comes again from its beginning, and is dropped here.
 */
export function placesOf(
  positions: Positions,
  maxBytes: number,
): Record<string, Record<string, number>> {
  const places: Record<string, Record<string, number>> = {};
  let room = maxBytes;
  const all = [...positions.values()].filter(({ next }) => next !== null);
  for (const isFinished of [false, true]) {
    for (const { run, stream, next } of all.filter((each) => each.isFinished === isFinished)) {
      const isNew = !Object.hasOwn(places, run);
      room -= bytesOf({ [stream]: next }) + (isNew ? bytesOf({ [run]: 0 }) : 0);
      if (room < 0) return places;
      places[run] = { ...places[run], [stream]: next as number };
    }
  }
  return places;
}

/** The lowest position in a stream of that name, over all runs. */
export function lowestOf(positions: Positions, stream: string): number | null {
  const nexts = [...positions.values()]
    .filter((position) => position.stream === stream && position.next !== null)
    .map((position) => position.next as number);
  return nexts.length ? Math.min(...nexts) : null;
}

/** A gap was announced: go on from `next`, with a text that starts over. */
export function moved(
  positions: Positions,
  at: { run: string; stream: string },
  next: number,
): StreamOutcome {
  const before = positions.get(keyOf(at)) ?? first(at, "start");
  const position: Position = {
    ...restarted(before),
    next,
    begunAt: null,
    ended: null,
    isFinished: false,
  };
  return {
    positions: new Map(positions).set(keyOf(at), position),
    events: before.text ? [textEvent(position)] : [],
  };
}

/** The server's history is another one: every stream begins again where it was asked for. */
export function begunAgain(
  positions: Positions,
  fromOf: (stream: string) => StreamStart,
): StreamOutcome {
  const again = [...positions].map(([key, before]): [string, Position] => {
    const { restarts } = restarted(before);
    return [key, { ...first(before, fromOf(before.stream)), restarts }];
  });
  const texts = again.filter(([key]) => positions.get(key)?.text);
  return {
    positions: new Map(again),
    events: texts.map(([, position]) => textEvent(position)),
  };
}

export function without(positions: Positions, runs: readonly string[]): Positions {
  const gone = new Set(runs);
  return new Map([...positions].filter(([, position]) => !gone.has(position.run)));
}

function take(position: Position, message: StreamMessage, wanted: Wanted): Taken {
  switch (message.type) {
    case "chunks":
      return chunks(position, message, wanted);
    case "text":
      return text(position, message, wanted);
    case "attempt":
      return attempt(position, message, wanted);
    case "end":
      return end(position, message);
    case "eof":
      return eof(position, message, wanted);
  }
}

function chunks(before: Position, message: Chunks, wanted: Wanted): Taken {
  const next = before.next ?? message.seq;
  if (message.seq > next) return ahead(before, wanted);
  const fresh = message.data.slice(next - message.seq);
  if (!fresh.length) return { position: { ...before, next }, events: [] };
  const position: Position = { ...before, next: next + fresh.length };
  if (wanted.as === "text") {
    const added = fresh.map(wanted.toText).join("");
    const grown = { ...position, text: position.text + added };
    return { position: grown, events: [textEvent(grown)] };
  }
  const told = fresh.map((chunk, at): SubscriptionEvent => ({
    type: "chunk",
    runId: message.run,
    stream: message.stream,
    seq: next + at,
    chunk,
    ...(message.attempt !== undefined && { attempt: message.attempt }),
    ...(message.writer !== undefined && { writer: message.writer }),
  }));
  return { position, events: told };
}

function text(before: Position, message: Text, wanted: Wanted): Taken {
  if (before.next !== null && message.upTo <= before.next) return { position: before, events: [] };
  if (wanted.as !== "text") return ahead(before, wanted);
  // It is the whole text up to there, so it takes the place of what is held.
  const position = { ...before, next: message.upTo, text: message.value };
  return { position, events: [textEvent(position)] };
}

/**
 * Another execution writes from here on, whatever its number: a run that was given back keeps its
 * attempt. A marker of elsewhere is for others on the socket; the server repeats it when it is here.
 */
function attempt(before: Position, message: Attempt, wanted: Wanted): Taken {
  const isNews = before.next === message.fromSeq && before.begunAt !== message.fromSeq;
  // Before the first chunk there is nothing to start over.
  if (!isNews || message.fromSeq === 0) return { position: before, events: [] };
  const position = { ...before, begunAt: message.fromSeq };
  const told: SubscriptionEvent = {
    type: "attempt",
    runId: message.run,
    stream: message.stream,
    attempt: message.attempt,
    fromSeq: message.fromSeq,
  };
  if (wanted.as !== "text" || !wanted.restarts) return { position, events: [told] };
  const over = restarted(position);
  return { position: over, events: [told, textEvent(over)] };
}

function end(before: Position, message: End): Taken {
  const { run, stream, attempt, next } = message;
  if (before.ended && attempt <= before.ended.attempt && next <= before.ended.next) {
    return { position: before, events: [] };
  }
  return {
    position: { ...before, ended: message },
    events: [{ type: "end", runId: run, stream, attempt, next }],
  };
}

function eof(before: Position, message: Eof, wanted: Wanted): Taken {
  if (before.isFinished) return { position: before, events: [] };
  // Every chunk comes before the eof: a reader that misses some has been cheated.
  if (before.next !== null && before.next < message.next) return ahead(before, wanted);
  const { run, stream, next, reason } = message;
  return {
    position: { ...before, next, isFinished: true },
    events: [{ type: "eof", runId: run, stream, next, reason }],
  };
}

function ahead(position: Position, { isSyncing }: Wanted): Taken {
  return { position, events: [], ...(!isSyncing && { isBroken: true }) };
}

function first(at: { run: string; stream: string }, from: StreamStart): Position {
  const known = from === "start" ? 0 : from;
  return {
    run: at.run,
    stream: at.stream,
    next: typeof known === "number" && known >= 0 ? known : null,
    begunAt: null,
    ended: null,
    isFinished: false,
    text: "",
    restarts: 0,
  };
}

function restarted(position: Position): Position {
  if (!position.text) return position;
  return { ...position, text: "", restarts: position.restarts + 1 };
}

function textEvent(position: Position): SubscriptionEvent {
  const { run, stream, text: whole, next, restarts } = position;
  return { type: "text", runId: run, stream, text: whole, next: next ?? 0, restarts };
}

/** How many bytes the JSON of a value takes. */
export function bytesOf(value: object): number {
  return new TextEncoder().encode(JSON.stringify(value)).length;
}

function keyOf(at: { run: string; stream: string }): string {
  // A run id holds no space, so the two cannot run together.
  return `${at.run} ${at.stream}`;
}
