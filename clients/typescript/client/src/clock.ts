/**
 * The time as a connection sees it: it never goes back, and it knows when nothing could run.
 *
 * A laptop that sleeps, a page that is frozen, a process that is stopped: timers stand still, the
 * wall clock does not. Whoever looks first afterwards sees it, a timer after five seconds.
 */

const TICK_MS = 5_000;

export class Clock {
  readonly #onWake: (slept: number) => void;
  readonly #look = () => {
    if (typeof document === "undefined" || document.visibilityState !== "hidden") this.#wake();
  };
  #ticking: ReturnType<typeof setInterval> | null = null;
  /** How far the wall clock was set back. */
  #behind = 0;
  #last = 0;
  #seen = 0;

  /** `onWake` is told when a page is seen again, a network is back, or a sleep is over. */
  constructor(onWake: (slept: number) => void) {
    this.#onWake = onWake;
  }

  /** Milliseconds. */
  now(): number {
    this.#behind = Math.max(this.#behind, this.#last - Date.now());
    this.#last = Date.now() + this.#behind;
    return this.#last;
  }

  /** Milliseconds in which nothing could run, since somebody asked or looked. */
  slept(): number {
    const since = this.now() - this.#seen;
    this.#seen = this.#last;
    return this.#ticking && since > 2 * TICK_MS ? since - TICK_MS : 0;
  }

  /** Watch, or do not any more. */
  watch(on: boolean): void {
    if (on === (this.#ticking !== null)) return;
    if (this.#ticking) clearInterval(this.#ticking);
    this.#seen = this.now();
    this.#ticking = on ? setInterval(() => this.#tick(), TICK_MS) : null;
    if (typeof window === "undefined" || typeof document === "undefined") return;
    const change = on ? "addEventListener" : "removeEventListener";
    window[change]("online", this.#look);
    window[change]("pageshow", this.#look);
    document[change]("visibilitychange", this.#look);
    document[change]("resume", this.#look);
  }

  #tick(): void {
    const slept = this.slept();
    if (slept) this.#onWake(slept);
  }

  #wake(): void {
    this.#onWake(this.slept());
  }
}
