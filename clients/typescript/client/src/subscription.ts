/**
 * What one subscription has got, what it asks for when it resumes, and what is news to it. [core]
 *
 * Rules, in force whatever the network does:
 *   * a run is told in increasing revision, a stream's chunks with seq exactly +1, each once;
 *   * what is not news is dropped here, nowhere else;
 *   * a hole that the server has not announced (`gap`) is a broken socket: `receive` says so, the
 *     shell hangs up and resumes.
 *
 * The freshness of a subscription moves by TABLE only; the compiler wants it total.
 */

import { GapReason, MAX_CLIENT_FRAME_BYTES } from "./codes.ts";
import type { Freshness, SubscriptionEvent } from "./events.ts";
import { isRelative, type Plan, type StreamOptions } from "./plan.ts";
import { runOf } from "./runs.ts";
import * as streams from "./streams.ts";
import type {
  Gap,
  JsonObject,
  Snapshot,
  StreamMessage,
  Subscribe,
  SubscriptionMessage,
  WireRun,
} from "./wire.ts";

/** The revision told of each run that belongs to the subscription; -1: none yet. */
type Members = ReadonlyMap<string, number>;

export interface Subscription {
  readonly plan: Plan;
  readonly freshness: Freshness;
  readonly cursor: string | null;
  /** It was told `live` since it began: streams it does not know by then are news. */
  readonly isBegun: boolean;
  readonly members: Members;
  /** Members named by the pages of a snapshot that is not complete yet. */
  readonly arriving: ReadonlySet<string> | null;
  readonly streams: streams.Positions;
}

/** What a message means: the state after it, what to tell, and whether the socket is to blame. */
export interface Outcome {
  readonly state: Subscription;
  readonly events: readonly SubscriptionEvent[];
  readonly isBroken?: boolean;
}

export type Turn = "sent" | "live" | "stale" | "fresh" | "gap" | "lost" | "end";

/**
 * Every freshness with every turn. A hub that has lost its database says so at any time.
 *
 * tests/wire/subscription_states.json says the same for every client; "connecting" is what is said
 * there of a subscription that is away, or that the server could not take for now.
 */
export const TABLE: Readonly<Record<Freshness, Readonly<Record<Turn, Freshness>>>> = {
  connecting: {
    sent: "syncing",
    live: "connecting",
    stale: "connecting",
    fresh: "connecting",
    gap: "connecting",
    lost: "connecting",
    end: "closed",
  },
  syncing: {
    sent: "syncing",
    live: "live",
    stale: "syncing",
    fresh: "syncing",
    gap: "syncing",
    lost: "connecting",
    end: "closed",
  },
  live: {
    sent: "live",
    live: "live",
    stale: "stale",
    fresh: "live",
    gap: "syncing",
    lost: "connecting",
    end: "closed",
  },
  stale: {
    sent: "stale",
    live: "stale",
    stale: "stale",
    fresh: "live",
    gap: "syncing",
    lost: "connecting",
    end: "closed",
  },
  closed: {
    sent: "closed",
    live: "closed",
    stale: "closed",
    fresh: "closed",
    gap: "closed",
    lost: "closed",
    end: "closed",
  },
};

/** Around the positions: their name, and braces. */
const POSITIONS_BYTES = 20;

/** Fields that a run is never sent without. */
const ALWAYS = ["id", "taskIdentifier", "status", "revision", "createdAt", "updatedAt"];

export function begin(plan: Plan): Subscription {
  return {
    plan,
    freshness: "connecting",
    cursor: null,
    isBegun: false,
    members: new Map("run" in plan.to ? [[plan.to.run, -1]] : []),
    arriving: null,
    streams: new Map(),
  };
}

/** The message that starts the subscription, or resumes it exactly where it stands. */
export function request(state: Subscription): Subscribe {
  const { plan } = state;
  const wanted = "run" in plan.to ? ownStreams(state, plan.to.run) : feedStreams(state);
  const asked: Subscribe = {
    type: "subscribe",
    sub: plan.sub,
    to: plan.to,
    mode: plan.mode,
    ...(plan.fields && { fields: [...plan.fields] }),
    ...(state.cursor && { cursor: state.cursor }),
    ...(plan.await !== null && { await: plan.await }),
    ...(Object.keys(wanted).length && { streams: wanted }),
  };
  const positions = positionsOf(state, MAX_CLIENT_FRAME_BYTES - streams.bytesOf(asked));
  return positions ? { ...asked, positions } : asked;
}

/**
 * Where a subscription stands when it goes on, run by run: null when the streams asked for say it
 * all, each being one run's and read from a place that the server need not make out.
 */
function positionsOf({ plan, ...state }: Subscription, room: number): Subscribe["positions"] | null {
  const isNamed = "run" in plan.to && !isRelative(plan);
  if (isNamed || !Object.keys(plan.streams).length) return null;
  const places = streams.placesOf(state.streams, room - POSITIONS_BYTES);
  return state.isBegun || Object.keys(places).length ? places : null;
}

function ownStreams(state: Subscription, run: string): NonNullable<Subscribe["streams"]> {
  const known = streams.resumeOf(state.streams, run, (key) => wantedOf(state, key)?.as ?? "chunks");
  return { ...state.plan.streams, ...known };
}

/**
 * One position per key serves many runs. From the start, where that was asked for, because a run
 * that joined meanwhile is wanted whole; else from the lowest. `receive` drops what is not news.
 */
function feedStreams(state: Subscription): NonNullable<Subscribe["streams"]> {
  return Object.fromEntries(
    Object.entries(state.plan.streams).map(([key, wanted]) => {
      const lowest = key === "*" ? null : streams.lowestOf(state.streams, key);
      const from = wanted.from === "start" || lowest === null ? wanted.from : lowest;
      return [key, { from, as: state.streams.size ? "chunks" : wanted.as }];
    }),
  );
}

/** Take a message that names this subscription. */
export function receive(
  state: Subscription,
  message: SubscriptionMessage,
  held: (id: string) => WireRun | undefined,
  isStale = false,
): Outcome {
  switch (message.type) {
    case "snapshot":
      return snapshot(state, message, held);
    case "base": {
      const { id, revision } = message.run;
      const told = Math.max(state.members.get(id) ?? -1, revision);
      return { state: { ...state, members: new Map(state.members).set(id, told) }, events: [] };
    }
    case "live":
      // Complete, and yet the state before the server lost its database.
      return turn({ ...state, isBegun: true }, "live", ...(isStale ? (["stale"] as const) : []));
    case "joined":
      return tell({ ...state, members: withMember(state.members, message.run) }, held(message.run));
    case "removed":
      return removed(state, [message.run]);
    case "cursor":
      return { state: { ...state, cursor: message.cursor }, events: [] };
    case "gap":
      return gap(state, message);
    case "done":
      return turn(state, "end");
  }
}

/** Move the freshness, and say so when it changed in the end. */
export function turn(state: Subscription, ...turns: readonly Turn[]): Outcome {
  const freshness = turns.reduce((at, which) => TABLE[at][which], state.freshness);
  if (freshness === state.freshness) return { state, events: [] };
  return { state: { ...state, freshness }, events: [{ type: "freshness", freshness }] };
}

/** The socket is gone: half a snapshot is worth nothing. */
export function lose(state: Subscription): Outcome {
  return turn({ ...state, arriving: null }, "lost");
}

/** What was held of a run is not what the server takes it for: ask for everything whole. */
export function forget(state: Subscription): Subscription {
  return { ...state, cursor: null };
}

/** Take the newest state of a run, which may not be one of ours. */
export function tell(state: Subscription, run: WireRun | undefined): Outcome {
  const told = run && state.members.get(run.id);
  if (!run || told === undefined || run.revision <= told) return { state, events: [] };
  const members = new Map(state.members).set(run.id, run.revision);
  return {
    state: { ...state, members },
    events: [{ type: "run", run: runOf(narrowed(run, state.plan.fields)) }],
  };
}

/** The server's history is another one than before: what is held means nothing there. */
export function beginAgain(state: Subscription): Outcome {
  const told = gap(state, { type: "gap", sub: state.plan.sub, reason: GapReason.EPOCH_CHANGED });
  const again = streams.begunAgain(state.streams, (key) => wantedOf(state, key)?.from ?? "start");
  return {
    state: { ...told.state, streams: again.positions },
    events: [...told.events, ...again.events],
  };
}

/** Take a message about a stream, which may not be one of ours. */
export function receiveStream(state: Subscription, message: StreamMessage): Outcome {
  const wanted = wantedOf(state, message.stream);
  if (!wanted || !state.members.has(message.run)) return { state, events: [] };
  const outcome = streams.receive(state.streams, message, {
    ...wanted,
    restarts: state.plan.restarts,
    toText: state.plan.toText,
    isSyncing: state.freshness === "connecting" || state.freshness === "syncing",
  });
  return {
    state: { ...state, streams: outcome.positions },
    events: outcome.events,
    ...(outcome.isBroken && { isBroken: true }),
  };
}

function snapshot(
  state: Subscription,
  page: Snapshot,
  held: (id: string) => WireRun | undefined,
): Outcome {
  const ids = page.runs.map((run) => run.id);
  const arriving = new Set([...(state.arriving ?? []), ...ids]);
  const members = new Map(state.members);
  for (const id of ids) if (!members.has(id)) members.set(id, -1);
  let outcome: Outcome = {
    state: { ...state, members, arriving, cursor: page.cursor ?? state.cursor },
    events: [],
  };
  for (const id of ids) outcome = then(outcome, (at) => tell(at, held(id)));
  if (page.more) return outcome;
  // The last page: what belonged before and was not named does not belong any more.
  const gone = "run" in state.plan.to ? [] : [...members.keys()].filter((id) => !arriving.has(id));
  outcome = then(outcome, (at) => removed(at, gone));
  return { ...outcome, state: { ...outcome.state, arriving: null } };
}

function removed(state: Subscription, gone: readonly string[]): Outcome {
  const members = new Map(state.members);
  const left = gone.filter((id) => members.delete(id));
  if (!left.length) return { state, events: [] };
  return {
    state: { ...state, members, streams: streams.without(state.streams, left) },
    events: left.map((runId) => ({ type: "removed", runId })),
  };
}

function gap(state: Subscription, message: Gap): Outcome {
  const { reason, run, stream, next } = message;
  const told: SubscriptionEvent = {
    type: "gap",
    reason,
    ...(run !== undefined && { runId: run }),
    ...(stream !== undefined && { stream }),
  };
  if (run !== undefined && stream !== undefined) {
    const { positions, events } = streams.moved(state.streams, { run, stream }, next ?? 0);
    return { state: { ...state, streams: positions }, events: [told, ...events] };
  }
  const members = new Map([...state.members.keys()].map((id) => [id, -1] as const));
  const again = { ...state, members, cursor: null, isBegun: false, arriving: null };
  const moved = turn(again, "gap");
  return { state: moved.state, events: [told, ...moved.events] };
}

function wantedOf({ plan }: Subscription, stream: string): Required<StreamOptions> | undefined {
  // A key may be spelled like a member of every object.
  if (Object.hasOwn(plan.streams, stream)) return plan.streams[stream];
  // A reserved one is asked for by its name, perhaps by another subscription of the socket.
  return stream.startsWith("$") ? undefined : plan.streams["*"];
}

function withMember(members: Members, id: string): Members {
  return members.has(id) ? members : new Map(members).set(id, -1);
}

function narrowed(run: WireRun, fields: readonly string[] | null): WireRun {
  if (!fields) return run;
  const narrow: JsonObject = {};
  for (const name of [...ALWAYS, ...fields]) {
    const value = run[name];
    if (value !== undefined) narrow[name] = value;
  }
  return narrow as WireRun;
}

function then(outcome: Outcome, next: (state: Subscription) => Outcome): Outcome {
  const after = next(outcome.state);
  return { ...after, events: [...outcome.events, ...after.events] };
}
