/** The schedules of the environment, looked at now and then. */

import type { Runwire } from "@runwire/client";
import { useEffect, useState } from "react";

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
}

const REFRESH_MS = 5_000;
const SHOWN = 100;

export function useSchedules(runwire: Runwire): Schedules {
  const [state, setState] = useState<Schedules>({ schedules: null, count: 0, error: null });
  useEffect(() => {
    let isGone = false;
    const load = () =>
      runwire.request(`/api/v1/schedules?perPage=${SHOWN}`).then(
        (answer) => {
          const { data, pagination } = answer as {
            data: Schedule[];
            pagination: { count: number };
          };
          if (!isGone) setState({ schedules: data, count: pagination.count, error: null });
        },
        (error: Error) => !isGone && setState((was) => ({ ...was, error: error.message })),
      );
    void load();
    const interval = setInterval(() => void load(), REFRESH_MS);
    return () => {
      isGone = true;
      clearInterval(interval);
    };
  }, [runwire]);
  return state;
}

/** What a schedule is at, in a word or the sentence that says why it does nothing. */
export function stateText(schedule: Schedule): string {
  if (!schedule.active) return "inactive";
  if (schedule.error) return schedule.error;
  return schedule.suspended ? "waits for a worker" : "active";
}
