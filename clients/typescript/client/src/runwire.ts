/** The client: one server, one token, and the sockets that its subscriptions share. */

import type { WebSocketClass } from "./carriers.ts";
import type { Carrier } from "./connection.ts";
import { ConfigurationError } from "./errors.ts";
import { Http } from "./http.ts";
import { planOf, type SubscriptionOptions } from "./plan.ts";
import type { ConnectionState, TokenSource } from "./socket.ts";
import { Sockets } from "./sockets.ts";
import { Updates } from "./updates.ts";
import type { RunFilter, Target } from "./wire.ts";

export interface RunwireOptions {
  /** Where the server is, as in https://runs.example.com; a path prefix is kept. */
  url: string;
  /** A token, or what gets a fresh one whenever it is needed. */
  token: TokenSource;
  /** Seconds the server may stay away before subscriptions fail; none given: for ever. */
  deadline?: number;
  /** Only this one; none given: a websocket, and server-sent events where that does not pass. */
  carrier?: Carrier;
  /** Where there is no global one: Node 20 has none, and uses server-sent events without it. */
  WebSocket?: WebSocketClass;
  fetch?: typeof fetch;
}

export class Runwire extends Http {
  readonly #sockets: Sockets;
  #count = 0;

  constructor(options: RunwireOptions) {
    const fetcher = options.fetch ?? globalThis.fetch;
    const WebSocket = options.WebSocket ?? (globalThis.WebSocket as WebSocketClass | undefined);
    super(addressOf(options.url), options.token, fetcher);
    this.#sockets = new Sockets({
      url: addressOf(options.url),
      token: options.token,
      WebSocket,
      fetch: fetcher,
      only: options.carrier ?? (WebSocket ? null : "events"),
      patience: options.deadline === undefined ? Infinity : options.deadline * 1000,
    });
  }

  /** One run, until it is final and its streams are read. */
  subscribeToRun(id: string, options: SubscriptionOptions = {}): Updates {
    return this.#subscribe({ run: id }, options);
  }

  /** Every run that has all these tags, also those to come. Never ends by itself. */
  subscribeToRunsWithTag(
    tag: string | readonly string[],
    options: SubscriptionOptions & { createdAt?: string | number } = {},
  ): Updates {
    const { createdAt, ...rest } = options;
    const tags = typeof tag === "string" ? [tag] : [...tag];
    return this.#subscribe({ tags, ...(createdAt !== undefined && { createdAt }) }, rest);
  }

  /** Every run of a batch, until all of them are final. */
  subscribeToBatch(id: string, options: SubscriptionOptions = {}): Updates {
    return this.#subscribe({ batch: id }, options);
  }

  /** The runs of the environment, newest ones first to come. Never ends by itself. */
  subscribeToRuns(filter: RunFilter = {}, options: SubscriptionOptions = {}): Updates {
    return this.#subscribe({ runs: filter }, options);
  }

  get connection(): ConnectionState {
    return this.#sockets.state;
  }

  /** Listen to how the connection is. Returns what stops listening. */
  onConnection(listener: (state: ConnectionState) => void): () => void {
    return this.#sockets.onState(listener);
  }

  /** End every subscription and the socket. */
  close(): void {
    this.#sockets.close();
  }

  #subscribe(to: Target, options: SubscriptionOptions): Updates {
    this.#count += 1;
    const plan = planOf(`s${this.#count}`, to, options);
    return new Updates(
      (updates) => this.#sockets.follow(plan, updates),
      () => this.#sockets.unfollow(plan.sub),
    );
  }
}

function addressOf(url: string): string {
  if (!/^https?:\/\//.test(url)) {
    throw new ConfigurationError(`the url must start with http:// or https://, not ${url}`);
  }
  return url.replace(/\/+$/, "");
}
