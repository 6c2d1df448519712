import type { Run } from "@runwire/client";
import { memo } from "react";

import { runLink } from "./route.ts";
import { StatusBadge } from "./status-badge.tsx";
import { agoText, dateText, spanText, useNow, workedFor } from "./times.ts";

/** Drawn again only when its own run changes. */
export const RunRow = memo(function RunRow({ run }: { run: Run }) {
  return (
    <li>
      <a className="run-row" href={runLink(run.id)} data-run={run.id}>
        <StatusBadge status={run.status} />
        <span className="run-task">
          <b>{run.taskIdentifier}</b>
          <code>{run.id}</code>
        </span>
        <span className="tags">
          {run.tags?.map((tag) => (
            <span className="tag" key={tag}>
              {tag}
            </span>
          ))}
        </span>
        <Worked run={run} />
        <Ago time={run.createdAt} />
      </a>
    </li>
  );
});

/** How long the run has worked, ticking while it does. */
export function Worked({ run }: { run: Run }) {
  const isTicking = Boolean(run.startedAt) && !run.isCompleted;
  const now = useNow(isTicking ? 200 : 0);
  const worked = workedFor(run, now);
  return (
    <span className="number" data-ticking={isTicking}>
      {worked === null ? "–" : spanText(worked)}
    </span>
  );
}

function Ago({ time }: { time: string }) {
  const now = useNow(5_000);
  return (
    <time className="ago" dateTime={time} title={dateText(time)}>
      {agoText(time, now)}
    </time>
  );
}
