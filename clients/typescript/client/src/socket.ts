/**
 * One socket of a Runwire client, whatever carries it: does what connection.ts decides.
 *
 * A shell: here are timers and random numbers, and beside it the clock and what carries messages.
 */

import { backoff } from "./backoff.ts";
import { type CarrierOptions, openCarrier, type WebSocketLike } from "./carriers.ts";
import { Clock } from "./clock.ts";
import { CloseCode, HEARTBEAT, MAX_EVENTS_BODY_BYTES } from "./codes.ts";
import * as connection from "./connection.ts";
import { ApiError, ConfigurationError, RunwireError } from "./errors.ts";
import { Followers, type FollowersMessage } from "./followers.ts";
import { Listeners } from "./listeners.ts";
import type { Plan } from "./plan.ts";
import type { Updates } from "./updates.ts";
import { type ClientMessage, parseFrame, type Ready, type ServerMessage } from "./wire.ts";

/** A token, or what gets one; `fresh` says that one from a cache will not do. */
export type TokenSource = string | ((fresh: boolean) => string | Promise<string>);

export interface SocketOptions extends CarrierOptions {
  readonly token: TokenSource;
  /** The one carrier that may be used; null: a websocket, and events where that does not pass. */
  readonly only: connection.Carrier | null;
  /** How long the server may stay away, in milliseconds. */
  readonly patience: number;
}

export type ConnectionState =
  | "idle" // nobody is subscribed
  | "connecting"
  | "live"
  | "stale" // the server has lost its database
  | "reconnecting"
  | "closed";

/** A token is not asked for more often than that because the server warns of its end. */
const RENEWAL_MS = 10_000;

export class Socket {
  readonly #options: SocketOptions;
  readonly #followers = new Followers();
  readonly #listeners = new Listeners<ConnectionState>();
  readonly #clock = new Clock((slept) => this.#dispatch({ is: "wake", slept }));
  #connection = connection.IDLE;
  #socket: WebSocketLike | null = null;
  #token = "";
  #tokenSince = 0;
  /** Answers of an older question for a token are not heard. */
  #asked = 0;
  #isNeeded = false;
  #state: ConnectionState = "idle";
  #timer: { at: number; handle: ReturnType<typeof setTimeout> } | null = null;

  /** Until what the server could not take is asked for again. */
  #again: ReturnType<typeof setTimeout> | null = null;

  constructor(options: SocketOptions) {
    this.#options = options;
  }

  get state(): ConnectionState {
    return this.#state;
  }

  onState(listener: (state: ConnectionState) => void): () => void {
    return this.#listeners.add(listener);
  }

  /** Whether the server would take one more subscription here, and keep it apart from the others. */
  hasRoomFor(plan: Plan): boolean {
    return this.#followers.haveRoomFor(plan);
  }

  follow(plan: Plan, updates: Updates): void {
    if (this.#connection.phase === "closed") {
      updates.finish(new ConfigurationError("this Runwire client was closed"));
      return;
    }
    this.#followers.add(plan, updates);
    this.#isNeeded = true;
    this.#clock.watch(true);
    this.#dispatch({ is: "needed" });
  }

  unfollow(sub: string): void {
    const isAskedFor = this.#followers.remove(sub);
    if (isAskedFor && this.#connection.carrier === "socket") this.#send({ type: "unsubscribe", sub });
    else if (isAskedFor && this.#followers.size) this.#dispatch({ is: "needed" });
    this.#settle();
  }

  close(): void {
    this.#dispatch({ is: "close" });
    this.#isNeeded = false;
    this.#clock.watch(false);
    this.#followers.end(null);
  }

  #dispatch(event: connection.Event): void {
    const { connection: next, actions } = connection.step(this.#connection, event, {
      now: this.#clock.now(),
      random: Math.random(),
      patience: this.#options.patience,
      refreshable: typeof this.#options.token === "function",
      only: this.#options.only,
    });
    this.#connection = next;
    this.#arm();
    for (const action of actions) {
      this.#carryOut(action);
      // Whoever was told may have closed the client: what is left to do was for another moment.
      if (this.#connection !== next) return;
    }
    this.#announce();
  }

  #carryOut(action: connection.Action): void {
    switch (action.do) {
      case "fetch_token":
        return this.#fetchToken();
      case "open":
        return this.#open(action.carrier);
      case "authenticate":
        return this.#send({ type: "auth", token: this.#token });
      case "subscribe":
        return this.#subscribe();
      case "ping":
        return this.#send({ type: "ping" });
      case "hang_up":
        return this.#hangUp();
      case "fail":
        return this.#fail(action.error);
    }
  }

  #subscribe(): void {
    // The body of a request for events holds them all, between brackets.
    const isOne = this.#connection.carrier === "events";
    const requests = this.#followers.requests(isOne ? MAX_EVENTS_BODY_BYTES - 2 : Infinity);
    for (const request of requests) this.#send(request);
    this.#settle();
  }

  /** A token that lives too briefly to be warned of in time is used to its end. */
  #renewToken(): void {
    const isNew = this.#clock.now() - this.#tokenSince < RENEWAL_MS;
    if (!isNew) this.#dispatch({ is: "token_expiring" });
  }

  #fetchToken(): void {
    this.#asked += 1;
    const { token } = this.#options;
    const asked = this.#asked;
    const fresh = this.#connection.phase === "ready" || this.#connection.attempts > 0;
    Promise.resolve()
      .then(() => (typeof token === "function" ? token(fresh) : token))
      .then((given: unknown) => {
        if (typeof given !== "string") throw new ConfigurationError("the token is no string");
        const isShown = given === this.#token && this.#connection.phase === "ready";
        // What a source has no other for is not shown again: the server would warn again.
        if (asked !== this.#asked || isShown) return;
        this.#token = given;
        this.#tokenSince = this.#clock.now();
        this.#dispatch({ is: "token" });
      })
      .catch((error: unknown) => {
        if (asked === this.#asked) this.#dispatch({ is: "token_failed", ...refusalOf(error) });
      });
  }

  #open(carrier: connection.Carrier): void {
    let socket: WebSocketLike;
    try {
      socket = openCarrier(carrier, this.#options);
    } catch (error) {
      this.#fail(error as ConfigurationError);
      return;
    }
    this.#socket = socket;
    const mine = (event: () => void) => {
      if (this.#socket === socket) event();
    };
    socket.onopen = () => mine(() => this.#dispatch({ is: "opened" }));
    socket.onmessage = (message: { data: unknown }) => mine(() => this.#receive(message.data));
    socket.onclose = (close: { code: number; reason: string }) =>
      mine(() => this.#lose(close.code, close.reason));
    // A close always follows; without a listener Node would throw.
    socket.onerror = () => undefined;
  }

  /** The followers learn it last: what they begin then must not be asked of what is gone. */
  #lose(code: number, reason: string): void {
    this.#letGo();
    this.#dispatch({ is: "lost", code, reason });
    this.#followers.lose();
  }

  #hangUp(): void {
    this.#letGo();
    this.#followers.lose();
  }

  #letGo(): void {
    if (this.#again) clearTimeout(this.#again);
    this.#again = null;
    const socket = this.#socket;
    this.#socket = null;
    this.#asked += 1;
    try {
      socket?.close(1000);
    } catch {
      // It is gone anyway.
    }
  }

  #fail(error: RunwireError): void {
    this.#hangUp();
    this.#connection = connection.IDLE;
    this.#arm();
    this.#isNeeded = false;
    this.#clock.watch(false);
    this.#followers.end(error);
  }

  #send(message: ClientMessage): void {
    try {
      this.#socket?.send(JSON.stringify(message));
    } catch {
      // The socket is closing; its close event is on the way.
    }
  }

  #receive(data: unknown): void {
    let messages: ServerMessage[];
    try {
      messages = parseFrame(String(data));
    } catch {
      this.#lose(CloseCode.INSUFFICIENT_STATE, "a frame could not be read");
      return;
    }
    this.#dispatch({ is: "heard" });
    const socket = this.#socket;
    for (const message of messages) {
      // Whoever was told may have closed the client, and a broken stream hangs up.
      if (this.#socket !== socket) return;
      this.#handle(message);
    }
  }

  #handle(message: ServerMessage): void {
    switch (message.type) {
      case "ready":
        return this.#meet(message);
      case "token_expiring":
        return this.#renewToken();
      case "hb":
      case "pong":
        return;
      default:
        return this.#hand(message);
    }
  }

  #meet({ epoch, heartbeat }: Ready): void {
    const isAskedInVain = this.#followers.meet(epoch);
    this.#dispatch({ is: "ready", heartbeat: (heartbeat > 0 ? heartbeat : HEARTBEAT) * 1000 });
    if (!isAskedInVain) return;
    if (this.#connection.carrier === "events") this.#dispatch({ is: "needed" });
    else this.#lose(CloseCode.INSUFFICIENT_STATE, "the server has another history");
  }

  #hand(message: FollowersMessage): void {
    const { refetch, again, isBroken } = this.#followers.receive(message, this.#clock.now());
    if (again !== undefined) this.#askAgain(again);
    if (refetch !== undefined) this.#refetch(refetch);
    if (isBroken) this.#lose(CloseCode.INSUFFICIENT_STATE, "a stream had a hole");
    else this.#settle();
  }

  #refetch(run: string): void {
    if (this.#connection.carrier === "socket") {
      this.#send({ type: "refetch", run });
      return;
    }
    this.#followers.askWhole(run);
    this.#dispatch({ is: "needed" });
  }

  #askAgain(refused: number): void {
    this.#again ??= setTimeout(() => {
      this.#again = null;
      this.#followers.giveUp(
        this.#clock.now() - this.#options.patience,
        connection.unreachable(this.#options.patience),
      );
      this.#settle();
      if (this.#isNeeded) this.#dispatch({ is: "needed" });
    }, backoff(refused, Math.random()));
  }

  /** Let go of the socket once nobody needs it. */
  #settle(): void {
    if (!this.#followers.size && this.#isNeeded) {
      this.#isNeeded = false;
      this.#clock.watch(false);
      this.#dispatch({ is: "unneeded" });
    }
    this.#announce();
  }

  /** One timer for the one deadline. It is left alone while the deadline only moves away. */
  #arm(): void {
    const { deadline } = this.#connection;
    if (this.#timer && deadline !== null && this.#timer.at <= deadline) return;
    if (this.#timer) clearTimeout(this.#timer.handle);
    this.#timer = null;
    if (deadline === null || deadline === Infinity) return;
    const handle = setTimeout(() => this.#ring(), Math.max(0, deadline - this.#clock.now()));
    this.#timer = { at: deadline, handle };
  }

  #ring(): void {
    this.#timer = null;
    const slept = this.#clock.slept();
    if (slept) this.#dispatch({ is: "wake", slept });
    const { deadline } = this.#connection;
    if (deadline !== null && this.#clock.now() >= deadline) this.#dispatch({ is: "deadline" });
    else this.#arm();
  }

  #announce(): void {
    const state = this.#stateNow();
    if (state === this.#state) return;
    this.#state = state;
    this.#listeners.tell(state);
  }

  #stateNow(): ConnectionState {
    switch (this.#connection.phase) {
      case "idle":
      case "closed":
        return this.#connection.phase;
      case "ready":
      case "lingering":
        return this.#followers.isStale ? "stale" : "live";
      case "waiting":
        return "reconnecting";
      default:
        return this.#connection.attempts ? "reconnecting" : "connecting";
    }
  }
}

/** Whether the application's refusal is its last word: no token will come by asking again. */
function refusalOf(error: unknown): { error: RunwireError; final: boolean } {
  const known =
    error instanceof RunwireError
      ? error
      : new RunwireError("no token could be had", { cause: error });
  const isRefused = error instanceof ApiError && error.status < 500 && error.status !== 429;
  return { error: known, final: isRefused || error instanceof ConfigurationError };
}
