import { useEffect, useRef, useState } from "react";

import { type Level, type LogEntry, MAX_ENTRIES, urgency } from "./log.ts";
import { clockText } from "./times.ts";

interface Props {
  entries: readonly LogEntry[];
}

/** The log of a run, growing; it stays at its end unless somebody has scrolled up. */
export function LogView({ entries }: Props) {
  const [least, setLeast] = useState<Level>("debug");
  const list = useRef<HTMLOListElement>(null);
  const isAtEnd = useRef(true);
  const shown = entries.filter(({ level }) => urgency(level) >= urgency(least));

  useEffect(() => {
    const element = list.current;
    if (element && isAtEnd.current) element.scrollTop = element.scrollHeight;
  }, [shown.length]);

  const attempts = new Set(entries.map(({ attempt }) => attempt)).size;
  return (
    <section className="panel log" aria-label="Log">
      <h2>
        <span>Log</span>
        <span className="log-facts">
          {entries.length >= MAX_ENTRIES ? `the last ${MAX_ENTRIES.toLocaleString()}` : entries.length}{" "}
          {entries.length === 1 ? "line" : "lines"}
          <label>
            <span>from</span>
            <select
              aria-label="Least urgent level"
              value={least}
              onChange={(event) => setLeast(event.target.value as Level)}
            >
              {(["debug", "info", "log", "warn", "error"] as const).map((level) => (
                <option key={level}>{level}</option>
              ))}
            </select>
          </label>
        </span>
      </h2>
      <ol
        ref={list}
        className="log-lines"
        tabIndex={0}
        onScroll={({ currentTarget: { scrollHeight, scrollTop, clientHeight } }) => {
          isAtEnd.current = scrollHeight - scrollTop - clientHeight < 40;
        }}
      >
        {shown.map((entry) => (
          <LogLine key={entry.seq} entry={entry} isAttemptShown={attempts > 1} />
        ))}
      </ol>
    </section>
  );
}

function LogLine({ entry, isAttemptShown }: { entry: LogEntry; isAttemptShown: boolean }) {
  const { time, level, message, logger, attributes, attempt } = entry;
  return (
    <li data-level={level}>
      <time dateTime={time} title={time}>
        {time && clockText(time)}
      </time>
      <b>{level}</b>
      <span className="log-text">
        {isAttemptShown && attempt !== null && <em>attempt {attempt} </em>}
        {logger && <em>{logger} </em>}
        {/* Isolated, so that an override of the direction of text ends with it. */}
        <bdi>{message}</bdi>
        {attributes && (
          <code>
            <bdi>{attributes}</bdi>
          </code>
        )}
      </span>
    </li>
  );
}
