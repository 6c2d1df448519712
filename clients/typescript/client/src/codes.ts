// Generated from clients/python/runwire/wire.py by `make wire`. Do not edit.
// Bounds are in bytes, seconds and counts.

export const PROTOCOL = "runwire.v1";
export const BEARER_PREFIX = "runwire.bearer.";
export const SOCKET_PATH = "/realtime/v1/socket";
export const EVENTS_PATH = "/realtime/v1/events";
export const MAX_FRAME_BYTES = 262144;
export const MAX_MESSAGE_BYTES = 1048576;
export const MAX_CLIENT_FRAME_BYTES = 65536;
export const MAX_EVENTS_BODY_BYTES = 1048576;
export const AUTH_TIMEOUT = 10.0;
export const HEARTBEAT = 15.0;
export const SILENCE = 37.5;
export const MAX_SUBSCRIPTIONS = 100;
export const MAX_AWAIT = 30.0;
export const LARGE_VALUE_BYTES = 16384;
export const MAX_CHUNK_BYTES = 1048576;
export const FRAME_TOO_LARGE = 1009;

/** Sockets closed with a code in this range, or by FRAME_TOO_LARGE, stay closed. */
export const NO_RECONNECT = { first: 4400, last: 4499 } as const;

/** Why a socket was closed: 4000–4399 reconnect and resume, 4400–4499 do not. */
export const CloseCode = {
  GOING_AWAY: 4001,
  AUTH_TIMEOUT: 4002,
  TOKEN_EXPIRED: 4003,
  SLOW: 4008,
  OVERLOADED: 4009,
  INSUFFICIENT_STATE: 4010,
  RATE_LIMITED: 4029,
  MALFORMED: 4400,
  INVALID_TOKEN: 4401,
  FORBIDDEN: 4403,
  NOT_FOUND: 4404,
  UNSUPPORTED_PROTOCOL: 4426,
  REVOKED: 4499,
} as const;
export type CloseCode = (typeof CloseCode)[keyof typeof CloseCode];

/** What went wrong, in an `error` message or in an HTTP answer's `code`. */
export const ErrorCode = {
  MALFORMED: "malformed",
  UNAUTHORIZED: "unauthorized",
  FORBIDDEN: "forbidden",
  NOT_FOUND: "not_found",
  GONE: "gone",
  CONFLICT: "conflict",
  TOO_LARGE: "too_large",
  TOO_MANY: "too_many",
  RATE_LIMITED: "rate_limited",
  UNAVAILABLE: "unavailable",
  INTERNAL: "internal",
} as const;
export type ErrorCode = (typeof ErrorCode)[keyof typeof ErrorCode];

/** Why continuity could not be proven; a fresh snapshot follows. */
export const GapReason = {
  EPOCH_CHANGED: "epoch_changed",
  RETENTION: "retention",
  AHEAD: "ahead",
  OVERFLOW: "overflow",
  SCOPE_CHANGED: "scope_changed",
} as const;
export type GapReason = (typeof GapReason)[keyof typeof GapReason];

/** Why nothing will ever follow in a stream: the final status of its run, in lower case. */
export const EofReason = {
  COMPLETED: "completed",
  CANCELED: "canceled",
  FAILED: "failed",
  CRASHED: "crashed",
  SYSTEM_FAILURE: "system_failure",
  EXPIRED: "expired",
  TIMED_OUT: "timed_out",
} as const;
export type EofReason = (typeof EofReason)[keyof typeof EofReason];

/** Every status a run can have. */
export const RUN_STATUSES = [
  "PENDING_VERSION",
  "DELAYED",
  "QUEUED",
  "DEQUEUED",
  "EXECUTING",
  "WAITING",
  "COMPLETED",
  "CANCELED",
  "FAILED",
  "CRASHED",
  "SYSTEM_FAILURE",
  "EXPIRED",
  "TIMED_OUT",
] as const;
export type RunStatus = (typeof RUN_STATUSES)[number];

/** The statuses after which nothing changes. */
export const FINAL_STATUSES = [
  "COMPLETED",
  "CANCELED",
  "FAILED",
  "CRASHED",
  "SYSTEM_FAILURE",
  "EXPIRED",
  "TIMED_OUT",
] as const;
export type FinalStatus = (typeof FINAL_STATUSES)[number];
