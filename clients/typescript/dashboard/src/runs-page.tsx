import { RUN_STATUSES, type Runwire } from "@runwire/client";
import { useEffect, useMemo, useRef, useState } from "react";

import { useShortcuts } from "./keyboard.ts";
import { go, NO_FILTER, parseRoute, type RunsFilter, runsLink, triggerLink } from "./route.ts";
import { RunList } from "./run-list.ts";
import { RunRow } from "./run-row.tsx";
import { statusText } from "./status-badge.tsx";
import { useStore } from "./store.ts";
import { useTasks } from "./tasks.ts";

interface Props {
  runwire: Runwire;
  filter: RunsFilter;
}

const GROUPS: [string, string][] = [
  ["Running", "DEQUEUED,EXECUTING"],
  ["Waiting", "PENDING_VERSION,DELAYED,QUEUED,WAITING"],
  ["Not successful", "FAILED,CRASHED,SYSTEM_FAILURE,TIMED_OUT,EXPIRED"],
];

const OFFERED: string[] = ["", ...GROUPS.map(([, value]) => value), ...RUN_STATUSES];

export function RunsPage({ runwire, filter }: Props) {
  const { status, task, tag } = filter;
  const list = useMemo(
    () => new RunList(runwire, { status, task, tag }),
    [runwire, status, task, tag],
  );
  useEffect(() => {
    list.open();
    return () => list.close();
  }, [list]);
  useEffect(() => void (document.title = "Runs · Runwire"), []);
  const { runs, isLoaded, hasOlder, isLoadingOlder, error } = useStore(list.store);
  const rows = useRef<HTMLUListElement>(null);
  useShortcuts({ j: () => step(rows.current, 1), k: () => step(rows.current, -1) });
  const isFiltered = Boolean(status || task || tag);
  const isSettled = isLoaded && !isLoadingOlder;

  return (
    <section className="page runs" aria-label="Runs">
      <Filters runwire={runwire} filter={filter} />
      {error && (
        <p className="problem" role="alert">
          {error}
        </p>
      )}
      <div className="run-head" aria-hidden="true">
        <span>Status</span>
        <span>Task</span>
        <span>Tags</span>
        <span>Duration</span>
        <span>Created</span>
      </div>
      <ul className="run-rows" ref={rows} data-loaded={isLoaded}>
        {runs.map((run) => (
          <RunRow key={run.id} run={run} />
        ))}
      </ul>
      {!isSettled && !runs.length && <p className="empty">Loading…</p>}
      {isSettled && !runs.length && <Nothing isFiltered={isFiltered} />}
      {hasOlder && (
        <button
          type="button"
          className="older"
          disabled={isLoadingOlder}
          onClick={() => void list.loadOlder()}
        >
          {isLoadingOlder ? "Loading…" : "Show older runs"}
        </button>
      )}
    </section>
  );
}

function Filters({ runwire, filter }: Props) {
  const { tasks } = useTasks(runwire);
  const [tag, setTag] = useState(filter.tag);
  const input = useRef<HTMLInputElement>(null);
  useShortcuts({ "/": () => input.current?.focus() });
  useEffect(() => setTag(filter.tag), [filter.tag]);
  // From the URL, which is ahead of what was drawn when one change follows another at once.
  const change = (part: Partial<RunsFilter>) => {
    const route = parseRoute(location.hash);
    go(runsLink({ ...(route.page === "runs" ? route.filter : filter), ...part }));
  };
  const isFiltered = Object.values(filter).some(Boolean);

  return (
    <form
      className="filters"
      onSubmit={(event) => {
        event.preventDefault();
        change({ tag: tag.trim() });
      }}
    >
      <label>
        <span>Status</span>
        <select value={filter.status} onChange={(event) => change({ status: event.target.value })}>
          <option value="">Any status</option>
          {!OFFERED.includes(filter.status) && (
            <option value={filter.status}>{statusesText(filter.status)}</option>
          )}
          {GROUPS.map(([name, value]) => (
            <option key={name} value={value}>
              {name}
            </option>
          ))}
          <optgroup label="Exactly">
            {RUN_STATUSES.map((each) => (
              <option key={each} value={each}>
                {statusText(each)}
              </option>
            ))}
          </optgroup>
        </select>
      </label>
      <label>
        <span>Task</span>
        <select value={filter.task} onChange={(event) => change({ task: event.target.value })}>
          <option value="">Any task</option>
          {filter.task && !tasks?.some(({ id }) => id === filter.task) && (
            <option value={filter.task}>{filter.task}</option>
          )}
          {tasks?.map(({ id }) => (
            <option key={id} value={id}>
              {id}
            </option>
          ))}
        </select>
      </label>
      <label className="grow">
        <span>Tag</span>
        <input
          ref={input}
          value={tag}
          placeholder="Any tag"
          spellCheck={false}
          maxLength={128}
          onChange={(event) => setTag(event.target.value)}
          onBlur={() => tag.trim() !== filter.tag && change({ tag: tag.trim() })}
        />
      </label>
      {isFiltered && (
        <button type="button" className="plain" onClick={() => go(runsLink(NO_FILTER))}>
          Clear
        </button>
      )}
      <a className="button primary" href={triggerLink(filter.task || undefined)}>
        New run
      </a>
    </form>
  );
}

/** What a URL that somebody wrote asks for. */
function statusesText(statuses: string): string {
  const known: readonly string[] = RUN_STATUSES;
  const isKnown = statuses.split(",").every((status) => known.includes(status));
  return isKnown ? statuses : `${statuses} (no such status)`;
}

function Nothing({ isFiltered }: { isFiltered: boolean }) {
  if (isFiltered) return <p className="empty">No run fits these filters.</p>;
  return (
    <div className="empty">
      <p>No runs yet.</p>
      <p>
        <a href={triggerLink()}>Trigger the first one</a>, or use the line that{" "}
        <code>runwire dev</code> printed.
      </p>
    </div>
  );
}

/** Move the focus from row to row. */
function step(rows: HTMLUListElement | null, by: 1 | -1): void {
  const links = [...(rows?.querySelectorAll("a.run-row") ?? [])] as HTMLAnchorElement[];
  const at = links.findIndex((link) => link === document.activeElement);
  const next = at < 0 ? 0 : Math.min(links.length - 1, Math.max(0, at + by));
  links[next]?.focus();
}
