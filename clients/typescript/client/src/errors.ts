/**
 * What can go wrong, as classes that carry data.
 *
 *   RunwireError
 *   ├── ConfigurationError    yours: no address, no WebSocket, a wrong option
 *   ├── InvalidValueError     yours: a value that cannot be sent or stored
 *   ├── ApiError              theirs: the server refused a request
 *   │   ├── MalformedError (400) ── UnauthorizedError (401) ── ForbiddenError (403)
 *   │   ├── NotFoundError (404, 410) ── ConflictError (409, 422) ── TooLargeError (413)
 *   │   └── RateLimitedError (429) ── ServerError (5xx)
 *   ├── SubscriptionError     theirs: a subscription ended without `done`; the ApiError is its cause
 *   └── UnreachableError      nobody's: the server stayed away past the deadline
 */

import { CloseCode, ErrorCode, FRAME_TOO_LARGE } from "./codes.ts";

export class RunwireError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

export class ConfigurationError extends RunwireError {}

export class InvalidValueError extends RunwireError {
  /** Why, in one word. */
  readonly code: string;

  constructor(message: string, about: { code: string }) {
    super(message);
    this.code = about.code;
  }
}

export class ApiError extends RunwireError {
  /** The HTTP status, or the one that goes with the protocol's code. */
  readonly status: number;
  /** The protocol's word for it, see ErrorCode. */
  readonly code: string;

  constructor(message: string, about: { status: number; code: string }) {
    super(message);
    this.status = about.status;
    this.code = about.code;
  }
}

export class MalformedError extends ApiError {}
export class UnauthorizedError extends ApiError {}
export class ForbiddenError extends ApiError {}
export class NotFoundError extends ApiError {}
export class ConflictError extends ApiError {}
export class TooLargeError extends ApiError {}
export class RateLimitedError extends ApiError {}
export class ServerError extends ApiError {}

export class SubscriptionError extends RunwireError {
  readonly code: string;

  constructor(message: string, about: { code: string; cause?: unknown }) {
    super(message, { cause: about.cause });
    this.code = about.code;
  }
}

export class UnreachableError extends RunwireError {
  /** Seconds after which it was given up. */
  readonly after: number;

  constructor(message: string, about: { after: number }) {
    super(message);
    this.after = about.after;
  }
}

const BY_STATUS: Readonly<Record<number, typeof ApiError>> = {
  400: MalformedError,
  401: UnauthorizedError,
  403: ForbiddenError,
  404: NotFoundError,
  409: ConflictError,
  410: NotFoundError,
  413: TooLargeError,
  422: ConflictError,
  429: RateLimitedError,
};

const STATUS_OF_CODE: Readonly<Record<ErrorCode, number>> = {
  [ErrorCode.MALFORMED]: 400,
  [ErrorCode.UNAUTHORIZED]: 401,
  [ErrorCode.FORBIDDEN]: 403,
  [ErrorCode.NOT_FOUND]: 404,
  [ErrorCode.GONE]: 410,
  [ErrorCode.CONFLICT]: 422,
  [ErrorCode.TOO_LARGE]: 413,
  [ErrorCode.TOO_MANY]: 429,
  [ErrorCode.RATE_LIMITED]: 429,
  [ErrorCode.UNAVAILABLE]: 503,
  [ErrorCode.INTERNAL]: 500,
};

const CODE_OF_CLOSE: Readonly<Record<number, ErrorCode>> = {
  [CloseCode.TOKEN_EXPIRED]: ErrorCode.UNAUTHORIZED,
  [CloseCode.INVALID_TOKEN]: ErrorCode.UNAUTHORIZED,
  [CloseCode.REVOKED]: ErrorCode.UNAUTHORIZED,
  [CloseCode.FORBIDDEN]: ErrorCode.FORBIDDEN,
  [CloseCode.NOT_FOUND]: ErrorCode.NOT_FOUND,
  [FRAME_TOO_LARGE]: ErrorCode.TOO_LARGE,
};

/** The error class that fits an HTTP status. */
export function apiError(status: number, message: string, code: string): ApiError {
  const kind = BY_STATUS[status] ?? (status >= 500 ? ServerError : ApiError);
  return new kind(message, { status, code });
}

/** The error a refused subscription ends with. */
export function subscriptionError(code: string, message: string): SubscriptionError {
  const status = STATUS_OF_CODE[code as ErrorCode] ?? 500;
  return new SubscriptionError(message, { code, cause: apiError(status, message, code) });
}

/** The error that everything ends with when the server closed the connection for good. */
export function closeError(code: number, reason: string): ApiError {
  const word = CODE_OF_CLOSE[code] ?? ErrorCode.MALFORMED;
  const message = reason || `the server closed the connection with code ${code}`;
  return apiError(STATUS_OF_CODE[word], message, word);
}
