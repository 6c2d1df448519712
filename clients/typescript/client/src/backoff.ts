/** How long to wait before the next try. Full jitter, so that a thousand browsers do not return at once. */

export const FIRST_MS = 500;
export const LONGEST_MS = 30_000;
/** A socket that lived this long starts the count again. */
export const STABLE_MS = 60_000;

/** Milliseconds before try number `attempt` (from 0), `random` in [0, 1). */
export function backoff(attempt: number, random: number): number {
  return random * Math.min(LONGEST_MS, FIRST_MS * 2 ** Math.min(attempt, 16));
}
