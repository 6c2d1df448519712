/** Times and spans as people read them, and a clock that components tick by. */

import { useSyncExternalStore } from "react";
import type { Run } from "@runwire/client";

/** "0.4s", "12.3s", "4m 05s", "2h 11m", "3d 4h" */
export function spanText(ms: number): string {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)}ms`;
  if (seconds < 60) return `${seconds.toFixed(1)}s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}m ${pad(Math.floor(seconds) % 60)}s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours}h ${pad(minutes % 60)}m`;
  return `${Math.floor(hours / 24)}d ${hours % 24}h`;
}

export function agoText(time: string, now: number): string {
  const seconds = Math.floor((now - Date.parse(time)) / 1000);
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${seconds}s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)}h ago`;
  return new Date(time).toLocaleDateString(undefined, { day: "numeric", month: "short" });
}

/** The hour with milliseconds, for a timeline. */
export function clockText(time: string): string {
  const at = new Date(time);
  const hour = at.toLocaleTimeString(undefined, { hour12: false });
  return `${hour}.${String(at.getMilliseconds()).padStart(3, "0")}`;
}

export function dateText(time: string): string {
  return new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

/** How long a run has worked, in milliseconds; null while it has not begun. */
export function workedFor(run: Run, now: number): number | null {
  if (!run.startedAt) return null;
  if (!run.isCompleted) return now - Date.parse(run.startedAt);
  if (run.finishedAt) return Date.parse(run.finishedAt) - Date.parse(run.startedAt);
  return run.durationMs ?? null;
}

/** The time now, again every `every` milliseconds; it stands still while `every` is 0. */
export function useNow(every: number): number {
  const clock = clocks.get(every) ?? new Clock(every);
  clocks.set(every, clock);
  return useSyncExternalStore(clock.subscribe, clock.now);
}

/** One interval for all components that tick at the same pace. */
class Clock {
  readonly #every: number;
  readonly #listeners = new Set<() => void>();
  #now = Date.now();
  #interval: ReturnType<typeof setInterval> | null = null;

  constructor(every: number) {
    this.#every = every;
  }

  readonly now = (): number => this.#now;

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    if (this.#every && !this.#interval) {
      this.#now = Date.now();
      this.#interval = setInterval(() => this.#tick(), this.#every);
    }
    return () => {
      this.#listeners.delete(listener);
      if (this.#listeners.size || !this.#interval) return;
      clearInterval(this.#interval);
      this.#interval = null;
    };
  };

  #tick(): void {
    this.#now = Date.now();
    for (const listener of [...this.#listeners]) listener();
  }
}

const clocks = new Map<number, Clock>();

function pad(part: number): string {
  return String(part).padStart(2, "0");
}
