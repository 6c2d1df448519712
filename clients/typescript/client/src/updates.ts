/**
 * A subscription in the application's hands: listen with `on`, or iterate, or both.
 *
 * It starts with the first `on` or the first step of an iteration. An iteration yields, ends, or
 * throws a RunwireError; it never hangs on a refusal. `close` ends it from outside.
 */

import { RunwireError, SubscriptionError } from "./errors.ts";
import type { Freshness, Listeners as Told, SubscriptionEvent } from "./events.ts";
import { Listeners } from "./listeners.ts";

/** What waits for a reader that does not read; past it the reader is told and the rest dropped. */
const MAX_WAITING = 10_000;

type Ending = { error: RunwireError | null };
type Slot = { event: SubscriptionEvent };

export class Updates implements AsyncIterable<SubscriptionEvent> {
  readonly #start: (updates: Updates) => void;
  readonly #stop: (updates: Updates) => void;
  readonly #listeners = new Map<string, Listeners<never>>();
  #queue: Queue | null = null;
  #freshness: Freshness = "connecting";
  #isStarted = false;
  #ending: Ending | null = null;

  /** Made by Runwire, which passes in how it starts and stops. */
  constructor(start: (updates: Updates) => void, stop: (updates: Updates) => void) {
    this.#start = start;
    this.#stop = stop;
  }

  /** How fresh what was told is. */
  get freshness(): Freshness {
    return this.#freshness;
  }

  /** Listen to one type of event. Returns what stops listening. */
  on<T extends keyof Told>(type: T, listener: Told[T]): () => void {
    const listeners = this.#listeners.get(type) ?? new Listeners<never>();
    this.#listeners.set(type, listeners);
    const stop = listeners.add(listener as (about: never) => void);
    this.#begin();
    return stop;
  }

  /** End the subscription. An iteration ends, nothing more is told. */
  close(): void {
    if (this.#ending) return;
    this.#stop(this);
    this.finish(null, false);
  }

  [Symbol.asyncIterator](): AsyncIterator<SubscriptionEvent, undefined> {
    if (this.#queue) throw new RunwireError("a subscription can be iterated once");
    const queue = new Queue();
    this.#queue = queue;
    if (this.#ending) queue.end(this.#ending);
    this.#begin();
    return {
      next: () => queue.next(),
      return: () => {
        this.close();
        return Promise.resolve({ done: true, value: undefined });
      },
    };
  }

  /** For Runwire: hand events over. */
  deliver(events: readonly SubscriptionEvent[]): void {
    for (const event of events) {
      if (this.#ending) return;
      if (event.type === "freshness") this.#freshness = event.freshness;
      if (this.#queue && !this.#queue.put(event)) {
        const message = `${MAX_WAITING} events were not read`;
        this.fail(new SubscriptionError(message, { code: "overflow" }));
        return;
      }
      this.#tell(event.type, event);
    }
  }

  /** For Runwire: end the subscription, and say why. */
  fail(error: RunwireError): void {
    this.#stop(this);
    this.finish(error);
  }

  /** For Runwire: nothing more will come. */
  finish(error: RunwireError | null, isDone = true): void {
    if (this.#ending) return;
    this.#ending = { error };
    this.#freshness = "closed";
    this.#queue?.end(this.#ending);
    if (error) this.#tell("error", error);
    else if (isDone) this.#tell("done", undefined);
    this.#listeners.clear();
  }

  #begin(): void {
    if (this.#isStarted || this.#ending) return;
    this.#isStarted = true;
    this.#start(this);
  }

  #tell(type: string, about: unknown): void {
    this.#listeners.get(type)?.tell(about as never);
  }
}

/** What waits for the iteration. A newer state of a run or text takes the place of the older. */
class Queue {
  #slots: Slot[] = [];
  #first = 0;
  readonly #newest = new Map<string, Slot>();
  #wanted: {
    resolve: (result: IteratorResult<SubscriptionEvent, undefined>) => void;
    reject: (error: RunwireError) => void;
  }[] = [];
  #ending: Ending | null = null;

  /** Returns false when the bound is reached. */
  put(event: SubscriptionEvent): boolean {
    const waiting = this.#wanted.shift();
    if (waiting) {
      waiting.resolve({ done: false, value: event });
      return true;
    }
    const key = conflation(event);
    const older = key === null ? undefined : this.#newest.get(key);
    if (older) {
      older.event = event;
      return true;
    }
    if (this.#slots.length - this.#first >= MAX_WAITING) return false;
    const slot = { event };
    this.#slots.push(slot);
    if (key !== null) this.#newest.set(key, slot);
    // What was put before this must not be replaced by what comes after it.
    else if ("stream" in event) this.#newest.delete(`text ${event.runId} ${event.stream}`);
    else this.#newest.clear();
    return true;
  }

  end(ending: Ending): void {
    this.#ending = ending;
    for (const { resolve, reject } of this.#wanted.splice(0)) this.#last().then(resolve, reject);
  }

  next(): Promise<IteratorResult<SubscriptionEvent, undefined>> {
    const slot = this.#slots[this.#first];
    if (slot) {
      this.#taken(slot);
      return Promise.resolve({ done: false, value: slot.event });
    }
    if (this.#ending) return this.#last();
    return new Promise((resolve, reject) => this.#wanted.push({ resolve, reject }));
  }

  /** The error once; whoever asks again is told that it is over. */
  #last(): Promise<IteratorResult<SubscriptionEvent, undefined>> {
    const error = this.#ending?.error ?? null;
    this.#ending = { error: null };
    return error ? Promise.reject(error) : Promise.resolve({ done: true, value: undefined });
  }

  #taken(slot: Slot): void {
    const key = conflation(slot.event);
    if (key !== null && this.#newest.get(key) === slot) this.#newest.delete(key);
    this.#first += 1;
    if (this.#first < 1024) return;
    this.#slots = this.#slots.slice(this.#first);
    this.#first = 0;
  }
}

function conflation(event: SubscriptionEvent): string | null {
  return event.type === "text" ? `text ${event.runId} ${event.stream}` : null;
}
