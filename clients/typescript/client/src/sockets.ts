/**
 * The sockets of a Runwire client: one, and further ones where a subscription does not fit on it.
 *
 * A shell around socket.ts. The server takes so many subscriptions on one socket, and holds one
 * place in a stream for all who read it there.
 */

import { Listeners } from "./listeners.ts";
import type { Plan } from "./plan.ts";
import { type ConnectionState, Socket, type SocketOptions } from "./socket.ts";
import type { Updates } from "./updates.ts";

/** What is said of several sockets: the first of these that one of them is in. */
const WORST_FIRST = ["closed", "reconnecting", "connecting", "stale", "live"] as const;

export class Sockets {
  readonly #options: SocketOptions;
  readonly #sockets: Socket[] = [];
  readonly #listeners = new Listeners<ConnectionState>();
  #state: ConnectionState = "idle";

  constructor(options: SocketOptions) {
    this.#options = options;
    this.#add();
  }

  get state(): ConnectionState {
    return this.#state;
  }

  onState(listener: (state: ConnectionState) => void): () => void {
    return this.#listeners.add(listener);
  }

  follow(plan: Plan, updates: Updates): void {
    const socket = this.#sockets.find((each) => each.hasRoomFor(plan)) ?? this.#add();
    socket.follow(plan, updates);
  }

  unfollow(sub: string): void {
    for (const socket of this.#sockets) socket.unfollow(sub);
  }

  close(): void {
    for (const socket of this.#sockets) socket.close();
  }

  #add(): Socket {
    const socket = new Socket(this.#options);
    socket.onState(() => this.#announce());
    this.#sockets.push(socket);
    return socket;
  }

  #announce(): void {
    const states = new Set(this.#sockets.map((socket) => socket.state));
    const state = WORST_FIRST.find((each) => states.has(each)) ?? "idle";
    if (state === this.#state) return;
    this.#state = state;
    this.#listeners.tell(state);
  }
}
