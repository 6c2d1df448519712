import type { Run, Runwire } from "@runwire/client";
import { useEffect, useMemo } from "react";

import { ChildRuns } from "./child-runs.ts";
import { runLink } from "./route.ts";
import { Worked } from "./run-row.tsx";
import { StatusBadge } from "./status-badge.tsx";
import { useStore } from "./store.ts";

/** The runs that a run triggered; nothing where there are none. */
export function ChildList({ runwire, run }: { runwire: Runwire; run: Run }) {
  const { id, isCompleted } = run;
  const children = useMemo(() => new ChildRuns(runwire, id), [runwire, id]);
  useEffect(() => {
    children.open();
    return () => children.close();
  }, [children]);
  useEffect(() => {
    if (isCompleted) children.parentIsOver();
  }, [children, isCompleted]);
  const { runs, hasOlder, error } = useStore(children.store);

  if (!runs.length && !error) return null;
  return (
    <section className="panel" aria-label="Runs it triggered">
      <h2>Runs it triggered</h2>
      {error && (
        <p className="problem" role="alert">
          {error}
        </p>
      )}
      <ul className="children">
        {runs.map((child) => (
          <li key={child.id}>
            <a href={runLink(child.id)} data-run={child.id} data-status={child.status}>
              <StatusBadge status={child.status} />
              <span className="run-task">
                <b>{child.taskIdentifier}</b>
                <code>{child.id}</code>
              </span>
              <Worked run={child} />
            </a>
          </li>
        ))}
      </ul>
      {hasOlder && (
        <button type="button" className="older" onClick={() => void children.loadOlder()}>
          Show older runs
        </button>
      )}
    </section>
  );
}
