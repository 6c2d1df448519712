/**
 * One socket of a Runwire client: carries out what connection.ts decides.
 *
 * A shell: the only place with a WebSocket, a clock, a timer and random numbers.
 */

import { CloseCode, PROTOCOL } from "./codes.ts";
import * as connection from "./connection.ts";
import { ApiError, ConfigurationError, RunwireError } from "./errors.ts";
import { Followers, type FollowersMessage } from "./followers.ts";
import type { Plan } from "./subscription.ts";
import type { Updates } from "./updates.ts";
import { type ClientMessage, parseFrame, type ServerMessage } from "./wire.ts";

/** The part of the browser's WebSocket that is used. */
export interface WebSocketLike {
  onopen: ((event: never) => void) | null;
  onmessage: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  send(data: string): void;
  close(code?: number): void;
}
export type WebSocketClass = new (url: string, protocols: string[]) => WebSocketLike;
/** A token, or what gets one; `fresh` says that one from a cache will not do. */
export type TokenSource = string | ((fresh: boolean) => string | Promise<string>);

export interface SocketOptions {
  /** ws:// or wss:// */
  readonly url: string;
  readonly token: TokenSource;
  readonly WebSocket: WebSocketClass | undefined;
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

export class Socket {
  readonly #options: SocketOptions;
  readonly #followers = new Followers();
  readonly #listeners = new Set<(state: ConnectionState) => void>();
  readonly #wake = () => this.#dispatch({ is: "wake", slept: 0 });
  #connection = connection.IDLE;
  #socket: WebSocketLike | null = null;
  #token = "";
  /** Answers of an older question for a token are not heard. */
  #asked = 0;
  #isNeeded = false;
  #state: ConnectionState = "idle";
  #timer: { at: number; handle: ReturnType<typeof setTimeout> } | null = null;

  constructor(options: SocketOptions) {
    this.#options = options;
  }

  get state(): ConnectionState {
    return this.#state;
  }

  onState(listener: (state: ConnectionState) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
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
    if (!this.#isNeeded) this.#listen(true);
    this.#isNeeded = true;
    this.#dispatch({ is: "needed" });
  }

  unfollow(sub: string): void {
    if (this.#followers.remove(sub)) this.#send({ type: "unsubscribe", sub });
    this.#settle();
  }

  close(): void {
    this.#dispatch({ is: "close" });
    this.#isNeeded = false;
    this.#listen(false);
    this.#followers.end(null);
  }

  #dispatch(event: connection.Event): void {
    const { connection: next, actions } = connection.step(this.#connection, event, {
      now: Date.now(),
      random: Math.random(),
      patience: this.#options.patience,
      refreshable: typeof this.#options.token === "function",
      only: "socket",
    });
    this.#connection = next;
    this.#arm();
    for (const action of actions) this.#carryOut(action);
    this.#announce();
  }

  #carryOut(action: connection.Action): void {
    switch (action.do) {
      case "fetch_token":
        return this.#fetchToken();
      case "open":
        return this.#open();
      case "authenticate":
        return this.#send({ type: "auth", token: this.#token });
      case "subscribe":
        for (const request of this.#followers.requests()) this.#send(request);
        return this.#settle();
      case "ping":
        return this.#send({ type: "ping" });
      case "hang_up":
        return this.#hangUp();
      case "fail":
        return this.#fail(action.error);
    }
  }

  #fetchToken(): void {
    this.#asked += 1;
    const { token } = this.#options;
    const asked = this.#asked;
    const fresh = this.#connection.phase === "ready" || this.#connection.attempts > 0;
    const answer = (event: connection.Event) => {
      if (asked === this.#asked) this.#dispatch(event);
    };
    Promise.resolve()
      .then(() => (typeof token === "function" ? token(fresh) : token))
      .then(
        (given) => {
          if (asked === this.#asked) this.#token = given;
          answer({ is: "token" });
        },
        (error: unknown) => answer({ is: "token_failed", ...refusalOf(error) }),
      );
  }

  #open(): void {
    const { WebSocket, url } = this.#options;
    if (!WebSocket) {
      this.#fail(new ConfigurationError("there is no WebSocket here: pass one as an option"));
      return;
    }
    let socket: WebSocketLike;
    try {
      socket = new WebSocket(url, [PROTOCOL]);
    } catch (error) {
      this.#fail(new ConfigurationError(`${url} cannot be opened: ${String(error)}`));
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

  #lose(code: number, reason: string): void {
    this.#hangUp();
    this.#dispatch({ is: "lost", code, reason });
  }

  #hangUp(): void {
    const socket = this.#socket;
    this.#socket = null;
    this.#asked += 1;
    this.#followers.lose();
    if (!socket) return;
    try {
      socket.close(1000);
    } catch {
      // It is gone anyway.
    }
  }

  #fail(error: RunwireError): void {
    this.#hangUp();
    this.#connection = connection.IDLE;
    this.#arm();
    this.#isNeeded = false;
    this.#listen(false);
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
        this.#followers.meet(message.epoch);
        return this.#dispatch({ is: "ready" });
      case "token_expiring":
        return this.#dispatch({ is: "token_expiring" });
      case "hb":
      case "pong":
        return;
      default:
        return this.#hand(message);
    }
  }

  #hand(message: FollowersMessage): void {
    const { send, isBroken } = this.#followers.receive(message);
    if (send) this.#send(send);
    if (isBroken) this.#lose(CloseCode.INSUFFICIENT_STATE, "a stream had a hole");
    else this.#settle();
  }

  /** Let go of the socket once nobody needs it. */
  #settle(): void {
    if (!this.#followers.size && this.#isNeeded) {
      this.#isNeeded = false;
      this.#listen(false);
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
    const handle = setTimeout(() => this.#ring(), Math.max(0, deadline - Date.now()));
    this.#timer = { at: deadline, handle };
  }

  #ring(): void {
    this.#timer = null;
    const { deadline } = this.#connection;
    if (deadline !== null && Date.now() >= deadline) this.#dispatch({ is: "deadline" });
    else this.#arm();
  }

  /** A laptop that wakes up, or a network that is back, does not wait for the back-off. */
  #listen(on: boolean): void {
    if (typeof window === "undefined" || typeof document === "undefined") return;
    const change = on ? "addEventListener" : "removeEventListener";
    window[change]("online", this.#wake);
    document[change]("visibilitychange", this.#wake);
  }

  #announce(): void {
    const state = this.#stateNow();
    if (state === this.#state) return;
    this.#state = state;
    for (const listener of [...this.#listeners]) listener(state);
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
