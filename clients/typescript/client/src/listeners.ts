/** Whoever listens. One that throws makes its own mistake, and nothing else stops for it. */

export class Listeners<T> {
  readonly #all = new Set<(told: T) => void>();

  /** Returns what stops listening. */
  add(listener: (told: T) => void): () => void {
    this.#all.add(listener);
    return () => void this.#all.delete(listener);
  }

  tell(told: T): void {
    for (const listener of [...this.#all]) {
      try {
        listener(told);
      } catch (error) {
        // Told like any other error of the page.
        if (typeof reportError === "function") reportError(error);
        else console.error(error);
      }
    }
  }
}
