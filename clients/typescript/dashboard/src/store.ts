/** State that changes faster than a screen is drawn: many changes, one render per frame. */

import { useSyncExternalStore } from "react";

/** A hidden page draws no frames; it still has to know. */
const HIDDEN_MS = 250;

export class Store<T> {
  readonly #listeners = new Set<() => void>();
  #value: T;
  #compute: (() => T) | null = null;

  constructor(value: T) {
    this.#value = value;
  }

  readonly get = (): T => this.#value;

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  };

  /** Have the value computed and told with the next frame. */
  change(compute: () => T): void {
    const isScheduled = this.#compute !== null;
    this.#compute = compute;
    if (isScheduled) return;
    if (document.hidden) setTimeout(() => this.#tell(), HIDDEN_MS);
    else requestAnimationFrame(() => this.#tell());
  }

  #tell(): void {
    if (!this.#compute) return;
    this.#value = this.#compute();
    this.#compute = null;
    for (const listener of [...this.#listeners]) listener();
  }
}

export function useStore<T>(store: Store<T>): T {
  return useSyncExternalStore(store.subscribe, store.get);
}
