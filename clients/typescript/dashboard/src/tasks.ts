/** The tasks that workers have announced. */

import type { Json, Runwire } from "@runwire/client";
import { useEffect, useState } from "react";

export interface Task {
  readonly id: string;
  readonly queue: string;
  readonly description?: string;
  readonly payloadSchema?: Json;
}

export interface Tasks {
  /** Null while they are not known. */
  readonly tasks: readonly Task[] | null;
  readonly error: string | null;
}

/** Workers come and go. */
const REFRESH_MS = 10_000;

export function useTasks(runwire: Runwire): Tasks {
  const [state, setState] = useState<Tasks>({ tasks: null, error: null });
  useEffect(() => {
    let isGone = false;
    const load = () =>
      runwire.request("/api/v1/tasks").then(
        (answer) => {
          const { data } = answer as { data: Task[] };
          const tasks = [...data].sort((left, right) => left.id.localeCompare(right.id));
          if (!isGone) setState((was) => (isSame(was.tasks, tasks) ? was : { tasks, error: null }));
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

function isSame(left: readonly Task[] | null, right: readonly Task[]): boolean {
  return left !== null && JSON.stringify(left) === JSON.stringify(right);
}
