/**
 * When the socket is opened, given up and opened again. [core]
 *
 * Rule: what a connection does next is written in TABLE, every phase with every event, and nowhere
 * else; the compiler refuses a table with a hole. Nothing here has a clock, a random number or a
 * socket: the shell (socket.ts) passes the first two in and carries out the actions that come back.
 *
 *              needed          token            opened             ready
 *     idle ───────────▶ token ──────▶ connecting ─────▶ authenticating ─────▶ ready ◀──▶ lingering
 *                        ▲  ◀────────────── waiting ◀── lost, deadline ────────┘           │ deadline
 *                        └ deadline, wake ────┘                                    idle ◀──┘
 */

import { backoff, STABLE_MS } from "./backoff.ts";
import { AUTH_TIMEOUT, CloseCode, FRAME_TOO_LARGE, SILENCE } from "./codes.ts";
import { apiError, type RunwireError, UnreachableError } from "./errors.ts";
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

export interface Connection {
  readonly phase: Phase;
  /** Tries since the last stable socket. */
  readonly attempts: number;
  /** When the server was last lost, in milliseconds; null while it is there. */
  readonly awaySince: number | null;
  readonly readySince: number;
  /** When the event `deadline` is due, in milliseconds. */
  readonly deadline: number | null;
}

export type Event =
  | { is: "needed" }
  | { is: "unneeded" }
  | { is: "token" }
  | { is: "token_failed"; error: RunwireError; final: boolean }
  | { is: "token_expiring" }
  | { is: "opened" }
  | { is: "ready" }
  | { is: "heard" }
  | { is: "lost"; code: number; reason: string }
  | { is: "deadline" }
  | { is: "wake" }
  | { is: "close" };
export type EventName = Event["is"];

export type Action =
  | { do: "fetch_token" }
  | { do: "open" }
  /** Send the last token the application gave. */
  | { do: "authenticate" }
  /** Send every subscription that this socket has not got yet. */
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
const SILENCE_MS = SILENCE * 1000;
/** After a wake-up the socket must answer a ping within this time. */
const PONG_MS = 5_000;
/** Longer than a page takes to change from one view to the next. */
const LINGER_MS = 5_000;

export const IDLE: Connection = {
  phase: "idle",
  attempts: 0,
  awaySince: null,
  readySince: 0,
  deadline: null,
};

const stay: TakeAny = (connection) => ({ connection, actions: [] });

/** Ask for a token, which starts a try. */
const begin: TakeAny = (connection, _event, at) => {
  const awaySince = connection.awaySince ?? at.now;
  const given = givenUp(awaySince, at);
  if (given) return given;
  return {
    connection: { ...connection, phase: "token", awaySince, ...within(TOKEN_MS, awaySince, at) },
    actions: [{ do: "fetch_token" }],
  };
};

/** Wait for the next try, or give up when the server has been away too long. */
const retry = (connection: Connection, at: Circumstances, actions: Action[]): Step => {
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
  const after = at.patience / 1000;
  return fail(new UnreachableError(`the server could not be reached for ${after} s`, { after }));
};

const within = (ms: number, awaySince: number, at: Circumstances): { deadline: number } => ({
  deadline: Math.min(at.now + ms, awaySince + at.patience),
});

const lost: Take<"lost"> = (connection, event, at) => {
  const spent = event.code === CloseCode.TOKEN_EXPIRED && !at.refreshable;
  if (spent || !mayReconnect(event.code)) return fail(refusal(event));
  const stable = connection.phase === "ready" && at.now - connection.readySince >= STABLE_MS;
  return retry(stable ? { ...connection, attempts: 0 } : connection, at, []);
};

const STATUS_OF_CLOSE: Readonly<Record<number, [number, string]>> = {
  [CloseCode.TOKEN_EXPIRED]: [401, "unauthorized"],
  [CloseCode.INVALID_TOKEN]: [401, "unauthorized"],
  [CloseCode.REVOKED]: [401, "unauthorized"],
  [CloseCode.FORBIDDEN]: [403, "forbidden"],
  [CloseCode.NOT_FOUND]: [404, "not_found"],
  [FRAME_TOO_LARGE]: [413, "too_large"],
};

const refusal = ({ code, reason }: { code: number; reason: string }): RunwireError => {
  const [status, word] = STATUS_OF_CLOSE[code] ?? [400, "malformed"];
  return apiError(status, reason || `the server closed the socket with code ${code}`, word);
};

const overdue: Take<"deadline"> = (connection, _event, at) =>
  retry(connection, at, [{ do: "hang_up" }]);

const close: Take<"close"> = () => ({
  connection: { ...IDLE, phase: "closed" },
  actions: [{ do: "hang_up" }],
});

const abandon: Take<"unneeded"> = () => ({ connection: IDLE, actions: [{ do: "hang_up" }] });

const heard: TakeAny = (connection, _event, at) => ({
  connection: { ...connection, deadline: at.now + SILENCE_MS },
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
  idle: { ...REST, needed: begin },
  token: {
    ...REST,
    unneeded: abandon,
    token: (connection, _event, at) => ({
      connection: {
        ...connection,
        phase: "connecting",
        ...within(OPEN_MS, connection.awaySince ?? at.now, at),
      },
      actions: [{ do: "open" }],
    }),
    token_failed: (connection, { error, final }, at) =>
      final ? fail(error) : retry(connection, at, []),
    deadline: overdue,
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
      actions: [{ do: "authenticate" }],
    }),
    lost,
    deadline: overdue,
  },
  authenticating: {
    ...REST,
    unneeded: abandon,
    ready: (connection, _event, at) => ({
      connection: {
        ...connection,
        phase: "ready",
        awaySince: null,
        readySince: at.now,
        deadline: at.now + SILENCE_MS,
      },
      actions: [{ do: "subscribe" }],
    }),
    lost,
    deadline: overdue,
  },
  ready: {
    ...REST,
    needed: (connection) => ({ connection, actions: [{ do: "subscribe" }] }),
    unneeded: (connection, _event, at) => ({
      connection: { ...connection, phase: "lingering", deadline: at.now + LINGER_MS },
      actions: [],
    }),
    token_expiring: (connection, _event, at) => ({
      connection,
      actions: at.refreshable ? [{ do: "fetch_token" }] : [],
    }),
    token: (connection) => ({ connection, actions: [{ do: "authenticate" }] }),
    heard,
    lost,
    deadline: overdue,
    // A laptop that slept: the socket may be dead without anybody having said so.
    wake: (connection, _event, at) => ({
      connection: {
        ...connection,
        deadline: Math.min(connection.deadline ?? Infinity, at.now + PONG_MS),
      },
      actions: [{ do: "ping" }],
    }),
  },
  lingering: {
    ...REST,
    needed: (connection, _event, at) => ({
      connection: { ...connection, phase: "ready", deadline: at.now + SILENCE_MS },
      actions: [{ do: "subscribe" }],
    }),
    lost: () => ({ connection: IDLE, actions: [] }),
    deadline: () => ({ connection: IDLE, actions: [{ do: "hang_up" }] }),
  },
  waiting: { ...REST, unneeded: abandon, deadline: begin, wake: begin },
  closed: { ...REST, close: stay },
};

/** Take one event. */
export function step(connection: Connection, event: Event, at: Circumstances): Step {
  const take = TABLE[connection.phase][event.is] as TakeAny;
  return take(connection, event, at);
}
