import type { Runwire } from "@runwire/client";
import { useEffect } from "react";

import { runsLink } from "./route.ts";
import { type Schedule, stateText, useSchedules } from "./schedules.ts";
import { dateText, spanText, useNow } from "./times.ts";

interface Props {
  runwire: Runwire;
}

export function SchedulesPage({ runwire }: Props) {
  const { schedules, count, error, showMore } = useSchedules(runwire);
  useEffect(() => void (document.title = "Schedules · Runwire"), []);
  return (
    <section className="page schedules" aria-label="Schedules">
      {error && (
        <p className="problem" role="alert">
          {error}
        </p>
      )}
      {schedules === null && <p className="empty">Loading…</p>}
      {schedules?.length === 0 && (
        <p className="empty">
          No schedules. <code>@schedules.task(cron=…)</code> or <code>runwire schedules create</code>{" "}
          makes one.
        </p>
      )}
      {schedules && schedules.length > 0 && (
        <div className="panel">
          <table>
            <thead>
              <tr>
                <th>Task</th>
                <th>Cron</th>
                <th>Next run</th>
                <th>Last run</th>
                <th>State</th>
              </tr>
            </thead>
            <tbody>
              {schedules.map((schedule) => (
                <Row key={schedule.id} schedule={schedule} />
              ))}
            </tbody>
          </table>
        </div>
      )}
      {schedules && count > schedules.length && (
        <button type="button" className="older" onClick={showMore}>
          Show more ({count - schedules.length})
        </button>
      )}
    </section>
  );
}

function Row({ schedule }: { schedule: Schedule }) {
  const { id, task, generator, timezone, nextRun, lastRun, type, deduplicationKey } = schedule;
  const now = useNow(nextRun ? 1000 : 0);
  return (
    <tr data-schedule={id} data-state={stateText(schedule)}>
      <td title={type === "DECLARATIVE" ? "Stands in the code of its task" : deduplicationKey}>
        <a href={runsLink({ task })}>
          <bdi>{task}</bdi>
        </a>
        {schedule.externalId && (
          <small>
            {" "}
            <bdi>{schedule.externalId}</bdi>
          </small>
        )}
      </td>
      <td title={generator.description}>
        <code>
          <bdi>{generator.expression}</bdi>
        </code>{" "}
        <small>{timezone}</small>
      </td>
      <td>
        {nextRun ? (
          <time dateTime={nextRun} title={dateText(nextRun)}>
            in {spanText(Math.max(0, Math.ceil((Date.parse(nextRun) - now) / 1000)) * 1000)}
          </time>
        ) : (
          "never"
        )}
      </td>
      <td>
        {lastRun && (
          <time dateTime={lastRun} title={lastRun}>
            {dateText(lastRun)}
          </time>
        )}
      </td>
      <td>
        <bdi>{stateText(schedule)}</bdi>
      </td>
    </tr>
  );
}
