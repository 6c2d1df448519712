import type { Json, JsonObject, Run, Runwire } from "@runwire/client";
import { useEffect, useState } from "react";

import { clockText, dateText, spanText } from "./times.ts";

interface Moment {
  readonly revision: number;
  readonly type: string;
  readonly createdAt: string;
  readonly delta: { readonly set?: JsonObject };
}

interface Entry {
  readonly revision: number;
  readonly title: string;
  readonly detail: string;
  readonly at: string;
  readonly tone: string;
  /** How many moments of one kind stand here together. */
  readonly count: number;
}

/** Metadata may change many times a second, and the whole timeline is read each time. */
const EVERY_MS = 1_000;
const LONG = 200;
const LONG_EVERY_MS = 5_000;
const LONGEST_DETAIL = 200;

export function Timeline({ run, runwire }: { run: Run; runwire: Runwire }) {
  const moments = useMoments(run, runwire);
  const entries = entriesOf(moments);
  const first = entries[0];
  return (
    <section className="panel" aria-label="Timeline">
      <h2>Timeline</h2>
      <ol className="timeline">
        {entries.map((entry) => (
          <li key={entry.revision} data-tone={entry.tone}>
            <span className="moment">
              {entry.title}
              {entry.count > 1 && <span className="count"> × {entry.count}</span>}
            </span>
            <time dateTime={entry.at} title={dateText(entry.at)}>
              {entry === first ? clockText(entry.at) : `+${sinceText(first, entry)}`}
            </time>
            {entry.detail && <span className="moment-detail">{entry.detail}</span>}
          </li>
        ))}
      </ol>
    </section>
  );
}

/** Read again when the run has moved, but not too often. */
function useMoments(run: Run, runwire: Runwire): readonly Moment[] {
  const { id, revision, isCompleted } = run;
  const [read, setRead] = useState<{ moments: readonly Moment[]; at: number }>({
    moments: [],
    at: 0,
  });
  useEffect(() => {
    if (read.moments.at(-1)?.revision === revision) return;
    let isGone = false;
    const pause = read.moments.length < LONG ? EVERY_MS : LONG_EVERY_MS;
    const wait = isCompleted ? 0 : Math.max(0, read.at + pause - Date.now());
    const timer = setTimeout(() => {
      runwire.request(`/api/v1/runs/${encodeURIComponent(id)}/events`).then(
        (answer) => {
          if (!isGone) setRead({ moments: (answer as { data: Moment[] }).data, at: Date.now() });
        },
        // The rest of the page says what is wrong; the timeline keeps what it has.
        () => undefined,
      );
    }, wait);
    return () => {
      isGone = true;
      clearTimeout(timer);
    };
    // Not on what was read: a page a revision behind is put right by the next change.
  }, [id, revision, isCompleted, runwire]);
  return read.moments;
}

const TITLES: Readonly<Record<string, string>> = {
  created: "Created",
  queued: "Queued",
  delayed: "Delayed",
  executing: "Started",
  retrying: "Attempt failed, will retry",
  waiting: "Waiting",
  canceling: "Cancel requested",
  metadata: "Metadata changed",
  tags: "Tagged",
  streams: "Stream opened",
  batch: "Added to a batch",
  released: "Released by its worker",
};

function entriesOf(moments: readonly Moment[]): Entry[] {
  const entries: Entry[] = [];
  for (const moment of moments) {
    const entry = entryOf(moment);
    const last = entries.at(-1);
    if (last && moment.type === "metadata" && last.title === entry.title) {
      entries[entries.length - 1] = { ...last, count: last.count + 1 };
    } else {
      entries.push(entry);
    }
  }
  return entries;
}

function entryOf({ revision, type, createdAt, delta }: Moment): Entry {
  const set = delta.set ?? {};
  const status = textOf(set["status"]);
  const isFinal = type === "final";
  const attempt = typeof set["attempt"] === "number" ? set["attempt"] : null;
  return {
    revision,
    title: isFinal ? finalTitle(status) : (TITLES[type] ?? type),
    detail: detailOf(set, attempt),
    at: createdAt,
    tone: isFinal ? finalTone(status) : type === "retrying" ? "bad" : type,
    count: 1,
  };
}

function finalTitle(status: string): string {
  return status ? status.charAt(0) + status.slice(1).toLowerCase().replaceAll("_", " ") : "Finished";
}

function finalTone(status: string): string {
  if (status === "COMPLETED") return "good";
  return status === "CANCELED" || status === "EXPIRED" ? "ended" : "bad";
}

function detailOf(set: JsonObject, attempt: number | null): string {
  const { error, tags, realtimeStreams, delayedUntil } = set;
  const failed = typeof error === "object" && error && !Array.isArray(error) ? error : null;
  return [
    attempt !== null && attempt > 0 ? `attempt ${attempt}` : "",
    firstLine(textOf(failed?.["message"])),
    Array.isArray(realtimeStreams) ? realtimeStreams.map(textOf).join(", ") : "",
    Array.isArray(tags) ? tags.map(textOf).join(", ") : "",
    textOf(delayedUntil) && `until ${clockText(textOf(delayedUntil))}`,
  ]
    .filter(Boolean)
    .join(" · ");
}

/** The page shows the whole error elsewhere. */
function firstLine(text: string): string {
  const [line = ""] = text.split("\n");
  const cut = line.length > LONGEST_DETAIL ? line.slice(0, LONGEST_DETAIL) : line;
  return cut.length < text.trimEnd().length ? `${cut.trimEnd()}…` : cut;
}

function sinceText(first: Entry | undefined, entry: Entry): string {
  return spanText(first ? Date.parse(entry.at) - Date.parse(first.at) : 0);
}

function textOf(value: Json | undefined): string {
  return typeof value === "string" ? value : "";
}
