/** The schedules of the environment, looked at now and then. */

import type { Runwire } from "@runwire/client";
import { useCallback, useEffect, useState } from "react";

export interface Schedule {
  readonly id: string;
  readonly type: "DECLARATIVE" | "IMPERATIVE";
  readonly task: string;
  readonly active: boolean;
  readonly suspended: boolean;
  readonly deduplicationKey: string;
  readonly externalId?: string;
  readonly generator: { readonly expression: string; readonly description: string };
  readonly timezone: string;
  readonly window?: string;
  readonly nextRun?: string;
  readonly lastRun?: string;
  readonly error?: string;
}

export interface Schedules {
  /** The oldest ones; null while they are not known. */
  readonly schedules: readonly Schedule[] | null;
  readonly count: number;
  readonly error: string | null;
  /** Shows another page of them. */
  readonly showMore: () => void;
}

interface Page {
  readonly data: readonly Schedule[];
  readonly pagination: { readonly count: number };
}

const REFRESH_MS = 5_000;
export const PAGE = 100;

export function useSchedules(runwire: Runwire): Schedules {
  const [state, setState] = useState<Omit<Schedules, "showMore">>({
    schedules: null,
    count: 0,
    error: null,
  });
  const [pages, setPages] = useState(1);
  const showMore = useCallback(() => setPages((shown) => shown + 1), []);
  useEffect(() => {
    let isGone = false;
    const load = () =>
      loadPages(runwire, pages).then(
        (loaded) => !isGone && setState({ ...loaded, error: null }),
        (error: Error) => !isGone && setState((was) => ({ ...was, error: error.message })),
      );
    void load();
    const interval = setInterval(() => void load(), REFRESH_MS);
    return () => {
      isGone = true;
      clearInterval(interval);
    };
  }, [runwire, pages]);
  return { ...state, showMore };
}

/** Load the first pages, and how many schedules there are in all. */
async function loadPages(runwire: Runwire, pages: number) {
  const byId = new Map<string, Schedule>();
  let count = 0;
  for (let page = 1; page <= pages; page += 1) {
    const answer = await runwire.request(`/api/v1/schedules?perPage=${PAGE}&page=${page}`);
    const { data, pagination } = answer as Page;
    // One that moves up between two requests is there twice.
    for (const schedule of data) byId.set(schedule.id, schedule);
    count = pagination.count;
    if (data.length < PAGE) break;
  }
  return { schedules: [...byId.values()], count };
}

/** What a schedule is at, in a word or the sentence that says why it does nothing. */
export function stateText(schedule: Schedule): string {
  if (!schedule.active) return "inactive";
  if (schedule.error) return schedule.error;
  return schedule.suspended ? "waits for a worker" : "active";
}
