/** One run, live: its newest state, and each of its streams as one growing text. */

import {
  type Freshness,
  type Run,
  type Runwire,
  type RunwireError,
  SubscriptionError,
  type Updates,
} from "@runwire/client";

import { type LogEntry, entryOf, LOG_KEY, MAX_ENTRIES } from "./log.ts";
import { Store } from "./store.ts";

export interface StreamText {
  readonly key: string;
  readonly text: string;
  /** The text is another one whenever this changes, not a longer one. */
  readonly restarts: number;
  readonly chunks: number;
  readonly attempt: number | null;
  /** Why nothing will follow; null while something may. */
  readonly ended: string | null;
}

export interface FollowedRunState {
  readonly run: Run | null;
  readonly streams: readonly StreamText[];
  /** The newest lines of the log, oldest first. */
  readonly log: readonly LogEntry[];
  readonly freshness: Freshness;
  readonly gap: string | null;
  readonly error: string | null;
  readonly isMissing: boolean;
}

const NOTHING: FollowedRunState = {
  run: null,
  streams: [],
  log: [],
  freshness: "connecting",
  gap: null,
  error: null,
  isMissing: false,
};

/** A run just triggered may be a moment away from being visible. */
const PATIENCE = 5;

export class FollowedRun {
  readonly store = new Store<FollowedRunState>(NOTHING);
  readonly #runwire: Runwire;
  readonly #id: string;
  readonly #streams = new Map<string, StreamText>();
  #log: readonly LogEntry[] = [];
  // A log comes in bursts: one change of the page for each.
  #added: LogEntry[] = [];
  #updates: Updates | null = null;
  #state: FollowedRunState = NOTHING;

  constructor(runwire: Runwire, id: string) {
    this.#runwire = runwire;
    this.#id = id;
  }

  open(): void {
    const updates = this.#runwire.subscribeToRun(this.#id, {
      streams: { "*": { from: "start", as: "text" }, [LOG_KEY]: { from: "start" } },
      await: PATIENCE,
    });
    this.#updates = updates;
    updates.on("run", ({ run }) => this.#changed({ run }));
    updates.on("text", ({ stream, text, restarts, next }) =>
      this.#stream(stream, { text, restarts, chunks: next }),
    );
    updates.on("chunk", (chunk) => chunk.stream === LOG_KEY && this.#logged(entryOf(chunk)));
    updates.on("attempt", ({ stream, attempt }) => this.#stream(stream, { attempt }));
    updates.on("eof", ({ stream, reason, next }) =>
      this.#stream(stream, { ended: reason, chunks: next }),
    );
    updates.on("gap", ({ reason }) => this.#changed({ gap: reason }));
    updates.on("freshness", ({ freshness }) => this.#changed({ freshness }));
    updates.on("done", () => this.#changed({ freshness: "closed" }));
    updates.on("error", (error) => this.#failed(error));
  }

  close(): void {
    this.#updates?.close();
  }

  #logged(entry: LogEntry): void {
    if (!this.#added.length) queueMicrotask(() => this.#show());
    this.#added.push(entry);
  }

  #show(): void {
    this.#log = [...this.#log, ...this.#added].slice(-MAX_ENTRIES);
    this.#added = [];
    this.#changed({ log: this.#log });
  }

  #stream(key: string, change: Partial<StreamText>): void {
    if (key === LOG_KEY) return;
    const before = this.#streams.get(key) ?? {
      key,
      text: "",
      restarts: 0,
      chunks: 0,
      attempt: null,
      ended: null,
    };
    this.#streams.set(key, { ...before, ...change });
    this.#changed({});
  }

  #failed(error: RunwireError): void {
    const isMissing = error instanceof SubscriptionError && error.code === "not_found";
    this.#changed({ error: error.message, isMissing, freshness: "closed" });
  }

  #changed(change: Partial<FollowedRunState>): void {
    this.#state = { ...this.#state, ...change };
    this.store.change(() => ({ ...this.#state, streams: [...this.#streams.values()] }));
  }
}
