/** @runwire/client: follow runs and their streams, live. */

export type { WebSocketClass, WebSocketLike } from "./carriers.ts";
export * from "./codes.ts";
export type { Carrier } from "./connection.ts";
export {
  ApiError,
  ConfigurationError,
  ConflictError,
  ForbiddenError,
  InvalidValueError,
  MalformedError,
  NotFoundError,
  RateLimitedError,
  RunwireError,
  ServerError,
  SubscriptionError,
  TooLargeError,
  UnauthorizedError,
  UnreachableError,
} from "./errors.ts";
export type * from "./events.ts";
export type { ListQuery, RequestOptions, RunPage, Triggered, TriggerOptions } from "./http.ts";
export { applyMetadata } from "./metadata.ts";
export type { StreamOptions, SubscriptionOptions } from "./plan.ts";
export type { Run, RunError } from "./runs.ts";
export { Runwire, type RunwireOptions } from "./runwire.ts";
export type { ConnectionState, TokenSource } from "./socket.ts";
export { chunkText } from "./text.ts";
export { Updates } from "./updates.ts";
export type { Json, JsonObject, Mode, RunFilter, StreamStart } from "./wire.ts";
