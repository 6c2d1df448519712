/**
 * When the server is connected to, by what, and when that is given up and done again. [core]
 *
 * Rule: what a connection does next is written in TABLE, every phase with every event, and nowhere
 * else; the compiler refuses a table with a hole. Nothing here has a clock, a random number or a
 * socket: the shell (socket.ts) passes the first two in and carries out the actions that come back.
 *
 *              needed          token            opened             ready
 *     idle ───────────▶ token ──────▶ connecting ─────▶ authenticating ─────▶ ready ◀──▶ lingering
 *                        ▲  ◀────────────── waiting ◀── lost, deadline ────────┘           │ deadline
 *                        └ deadline, wake ────┘                                    idle ◀──┘
 *
 * The carrier is a websocket, or server-sent events where websockets do not pass. What events carry
 * is asked for with the request that opens them: to ask for something else, they are opened again.
 *
 * tests/wire/connection.json holds every phase with every event; the Python client reads it, too.
 */

import { backoff, STABLE_MS } from "./backoff.ts";
import { AUTH_TIMEOUT, CloseCode, HEARTBEAT, SILENCE } from "./codes.ts";
import { closeError, type RunwireError, UnreachableError } from "./errors.ts";
import { mayReconnect } from "./wire.ts";

export type Phase =
  | "idle" // nobody is subscribed
  | "token" // the application is asked for a token
  | "connecting"
  | "authenticating"
  | "ready"
  | "lingering" // nobody is subscribed any more, the socket is kept for whoever comes next
  | "waiting" // until the next try
  | "closed"; // by the application, for good

export type Carrier = "socket" | "events";

export interface Connection {
  readonly phase: Phase;
  /** What carries the try under way, or else the next one. */
  readonly carrier: Carrier;
  /** Tries since the last stable connection. */
  readonly attempts: number;
  /** Tries in a row that never got to `ready`; from the second on the carriers take turns. */
  readonly misses: number;
  /** Tokens in a row that the server refused. */
  readonly refusals: number;
  /** When the server was last lost, in milliseconds; null while it is there. */
  readonly awaySince: number | null;
  readonly readySince: number;
  /** How long the server may say nothing, in milliseconds; it says so when it is ready. */
  readonly silence: number;
  /** When the event `deadline` is due, in milliseconds. */
  readonly deadline: number | null;
}

export type Event =
  /** Somebody subscribed, or what is asked for is not what it was. */
  | { is: "needed" }
  | { is: "unneeded" }
  | { is: "token" }
  | { is: "token_failed"; error: RunwireError; final: boolean }
  | { is: "token_expiring" }
  | { is: "opened" }
  /** `heartbeat`: after so many milliseconds without a message the server sends one. */
  | { is: "ready"; heartbeat: number }
  | { is: "heard" }
  | { is: "lost"; code: number; reason: string }
  | { is: "deadline" }
  /** The page is seen or the network is back; `slept`: milliseconds in which nothing could run. */
  | { is: "wake"; slept: number }
  | { is: "close" };
export type EventName = Event["is"];

export type Action =
  | { do: "fetch_token" }
  | { do: "open"; carrier: Carrier }
  /** Send the last token the application gave. */
  | { do: "authenticate" }
  /** Send every subscription that this connection has not got yet. */
  | { do: "subscribe" }
  | { do: "ping" }
  | { do: "hang_up" }
  /** End every subscription with this error. */
  | { do: "fail"; error: RunwireError };

export interface Circumstances {
  readonly now: number;
  readonly random: number;
  /** How long the server may stay away, in milliseconds; Infinity: for ever. */
  readonly patience: number;
  /** Whether asking for a token again may give another one. */
  readonly refreshable: boolean;
  /** The one carrier that may be used; null: both. */
  readonly only: Carrier | null;
}

export interface Step {
  readonly connection: Connection;
  readonly actions: readonly Action[];
}

type Take<N extends EventName> = (
  connection: Connection,
  event: Extract<Event, { is: N }>,
  at: Circumstances,
) => Step;
/** What can be done whatever happened. */
type TakeAny = (connection: Connection, event: Event, at: Circumstances) => Step;
export type Table = { readonly [P in Phase]: { readonly [N in EventName]: Take<N> } };

const TOKEN_MS = 30_000;
const OPEN_MS = 10_000;
const AUTH_MS = AUTH_TIMEOUT * 1000;
/** Silence is so many heartbeats that did not come. */
const BEATS = SILENCE / HEARTBEAT;
/** After a wake-up the socket must answer a ping within this time. */
const PONG_MS = 5_000;
/** Longer than a page takes to change from one view to the next. */
const LINGER_MS = 5_000;
/** So many tries that came to nothing, and the other carrier has its turn. */
const MISSES = 2;
/** The first token may have ended on its way; a second one that is refused is wrong. */
const REFUSALS = 1;

export const IDLE: Connection = {
  phase: "idle",
  carrier: "socket",
  attempts: 0,
  misses: 0,
  refusals: 0,
  awaySince: null,
  readySince: 0,
  silence: SILENCE * 1000,
  deadline: null,
};

const stay: TakeAny = (connection) => ({ connection, actions: [] });

/** Ask for a token, which starts a try. */
const begin = (connection: Connection, at: Circumstances, actions: Action[] = []): Step => {
  const awaySince = connection.awaySince ?? at.now;
  const given = givenUp(awaySince, at);
  if (given) return { ...given, actions: [...actions, ...given.actions] };
  return {
    connection: { ...connection, phase: "token", awaySince, ...within(TOKEN_MS, awaySince, at) },
    actions: [...actions, { do: "fetch_token" }],
  };
};
const start: TakeAny = (connection, _event, at) => begin(connection, at);

const open = (connection: Connection, at: Circumstances, actions: Action[] = []): Step => {
  const carrier = at.only ?? connection.carrier;
  const awaySince = connection.awaySince ?? at.now;
  return {
    connection: {
      ...connection,
      phase: "connecting",
      carrier,
      awaySince,
      ...within(OPEN_MS, awaySince, at),
    },
    actions: [...actions, { do: "open", carrier }],
  };
};
const reopen: TakeAny = (connection, _event, at) => open(connection, at, [{ do: "hang_up" }]);

/** Wait for the next try, or give up when the server has been away too long. */
const retry = (connection: Connection, at: Circumstances, actions: Action[] = []): Step => {
  const awaySince = connection.awaySince ?? at.now;
  const given = givenUp(awaySince, at);
  if (given) return { ...given, actions: [...actions, ...given.actions] };
  const delay = backoff(connection.attempts, at.random);
  return {
    connection: {
      ...connection,
      phase: "waiting",
      attempts: connection.attempts + 1,
      awaySince,
      ...within(delay, awaySince, at),
    },
    actions,
  };
};

const fail = (error: RunwireError, actions: Action[] = []): Step => ({
  connection: IDLE,
  actions: [...actions, { do: "fail", error }],
});

const givenUp = (awaySince: number, at: Circumstances): Step | null => {
  if (at.now - awaySince < at.patience) return null;
  return fail(unreachable(at.patience));
};

/** The error for a server that stayed away so many milliseconds. */
export function unreachable(patience: number): UnreachableError {
  const after = patience / 1000;
  return new UnreachableError(`the server could not be reached for ${after} s`, { after });
}

const within = (ms: number, awaySince: number, at: Circumstances): { deadline: number } => ({
  deadline: Math.min(at.now + ms, awaySince + at.patience),
});

/** It never got to `ready`. */
const missed = (connection: Connection): Connection => {
  const misses = connection.misses + 1;
  const other = connection.carrier === "socket" ? "events" : "socket";
  return { ...connection, misses, carrier: misses < MISSES ? connection.carrier : other };
};

/** It was ready. After events the websocket has one try, for the network may be another one. */
const dropped = (connection: Connection, at: Circumstances): Connection => {
  const isStable = at.now - connection.readySince >= STABLE_MS;
  const attempts = isStable ? 0 : connection.attempts;
  if (connection.carrier === "socket") return { ...connection, attempts };
  return { ...connection, attempts, carrier: "socket", misses: MISSES - 1 };
};

const lost: Take<"lost"> = (connection, event, at) => {
  const isReady = connection.phase === "ready";
  if (event.code === CloseCode.TOKEN_EXPIRED || event.code === CloseCode.INVALID_TOKEN) {
    // One that was good until now was not refused.
    const isRefused = !isReady || event.code === CloseCode.INVALID_TOKEN;
    const refusals = connection.refusals + (isRefused ? 1 : 0);
    if (!at.refreshable || refusals > REFUSALS) return fail(closeError(event.code, event.reason));
    return retry({ ...(isReady ? dropped(connection, at) : connection), refusals }, at);
  }
  if (!mayReconnect(event.code)) return fail(closeError(event.code, event.reason));
  return retry(isReady ? dropped(connection, at) : missed(connection), at);
};

const overdue: Take<"deadline"> = (connection, _event, at) =>
  retry(missed(connection), at, [{ do: "hang_up" }]);

const close: Take<"close"> = () => ({
  connection: { ...IDLE, phase: "closed" },
  actions: [{ do: "hang_up" }],
});

/** Nobody is subscribed any more. What was learnt about carriers is kept. */
const rest = ({ carrier, misses }: Connection, actions: Action[] = []): Step => ({
  connection: { ...IDLE, carrier, misses },
  actions,
});
const abandon: Take<"unneeded"> = (connection) => rest(connection, [{ do: "hang_up" }]);

const heard: TakeAny = (connection, _event, at) => ({
  connection: { ...connection, deadline: at.now + connection.silence },
  actions: [],
});

/** The time one slept through is not time in which the server was away. */
const rested = (connection: Connection, { slept }: { slept: number }): Connection =>
  connection.awaySince === null
    ? connection
    : { ...connection, awaySince: connection.awaySince + slept };

const isOverdue = ({ deadline }: Connection, at: Circumstances): boolean =>
  deadline !== null && at.now >= deadline;

/** What was waited for came while nobody listened, or will not come: begin the try again. */
const tryAgain: Take<"wake"> = (connection, event, at) => {
  const awake = rested(connection, event);
  return isOverdue(awake, at) ? begin(awake, at, [{ do: "hang_up" }]) : stay(awake, event, at);
};

/** A laptop that slept: the connection may be dead without anybody having said so. */
const lookForLife: Take<"wake"> = (connection, _event, at) => {
  if (isOverdue(connection, at)) {
    const { attempts, ...left } = dropped(connection, at);
    return begin({ ...left, attempts: attempts + 1 }, at, [{ do: "hang_up" }]);
  }
  const isSocket = connection.carrier === "socket";
  // Events cannot be asked for a sign of life: one comes with every heartbeat.
  const soon = at.now + PONG_MS + (isSocket ? 0 : connection.silence / BEATS);
  return {
    connection: { ...connection, deadline: Math.min(connection.deadline ?? Infinity, soon) },
    actions: isSocket ? [{ do: "ping" }] : [],
  };
};

/** One thing for a websocket, another for events. */
const by =
  (socket: TakeAny, events: TakeAny): TakeAny =>
  (connection, event, at) =>
    (connection.carrier === "socket" ? socket : events)(connection, event, at);

const subscribe: TakeAny = (connection) => ({ connection, actions: [{ do: "subscribe" }] });
const authenticate: TakeAny = (connection) => ({ connection, actions: [{ do: "authenticate" }] });

const linger: TakeAny = (connection, _event, at) => ({
  connection: { ...connection, phase: "lingering", deadline: at.now + LINGER_MS },
  actions: [],
});

const REST = {
  needed: stay,
  unneeded: stay,
  token: stay,
  token_failed: stay,
  token_expiring: stay,
  opened: stay,
  ready: stay,
  heard: stay,
  lost: stay,
  deadline: stay,
  wake: stay,
  close,
} satisfies Table["idle"];

export const TABLE: Table = {
  idle: { ...REST, needed: start },
  token: {
    ...REST,
    unneeded: abandon,
    token: (connection, _event, at) => open(connection, at),
    token_failed: (connection, { error, final }, at) =>
      final ? fail(error) : retry(connection, at),
    deadline: (connection, _event, at) => retry(connection, at, [{ do: "hang_up" }]),
    wake: tryAgain,
  },
  connecting: {
    ...REST,
    unneeded: abandon,
    opened: (connection, _event, at) => ({
      connection: {
        ...connection,
        phase: "authenticating",
        ...within(AUTH_MS, connection.awaySince ?? at.now, at),
      },
      actions:
        connection.carrier === "socket"
          ? [{ do: "authenticate" }]
          : [{ do: "authenticate" }, { do: "subscribe" }],
    }),
    lost,
    deadline: overdue,
    wake: tryAgain,
  },
  authenticating: {
    ...REST,
    needed: by(stay, reopen),
    unneeded: abandon,
    ready: (connection, { heartbeat }, at) => ({
      connection: {
        ...connection,
        phase: "ready",
        misses: 0,
        refusals: 0,
        awaySince: null,
        readySince: at.now,
        silence: BEATS * heartbeat,
        deadline: at.now + BEATS * heartbeat,
      },
      actions: connection.carrier === "socket" ? [{ do: "subscribe" }] : [],
    }),
    lost,
    deadline: overdue,
    wake: tryAgain,
  },
  ready: {
    ...REST,
    needed: by(subscribe, reopen),
    unneeded: by(linger, abandon as TakeAny),
    token_expiring: (connection, _event, at) => ({
      connection,
      actions: at.refreshable ? [{ do: "fetch_token" }] : [],
    }),
    token: by(authenticate, reopen),
    // The answer to a fresh token.
    ready: by(subscribe, stay),
    heard,
    lost,
    deadline: (connection, _event, at) =>
      retry(dropped(connection, at), at, [{ do: "hang_up" }]),
    wake: lookForLife,
  },
  lingering: {
    ...REST,
    needed: (connection, _event, at) => {
      if (isOverdue(connection, at)) return begin(connection, at, [{ do: "hang_up" }]);
      return {
        connection: { ...connection, phase: "ready", deadline: at.now + connection.silence },
        actions: [{ do: "subscribe" }],
      };
    },
    lost: (connection) => rest(connection),
    deadline: (connection) => rest(connection, [{ do: "hang_up" }]),
    wake: (connection, event, at) =>
      isOverdue(connection, at) ? rest(connection, [{ do: "hang_up" }]) : stay(connection, event, at),
  },
  waiting: {
    ...REST,
    unneeded: abandon,
    deadline: start,
    wake: (connection, event, at) => begin(rested(connection, event), at),
  },
  closed: { ...REST, close: stay },
};

/** Take one event. */
export function step(connection: Connection, event: Event, at: Circumstances): Step {
  const take = TABLE[connection.phase][event.is] as TakeAny;
  return take(connection, event, at);
}
