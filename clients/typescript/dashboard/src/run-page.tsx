import type { Run, Runwire } from "@runwire/client";
import { type ReactNode, useEffect, useMemo, useState } from "react";

import { ChildList } from "./child-list.tsx";
import { FollowedRun } from "./followed-run.ts";
import { JsonView } from "./json-view.tsx";
import { useShortcuts } from "./keyboard.ts";
import { LogView } from "./log-view.tsx";
import { go, runLink, runsLink, triggerLink } from "./route.ts";
import { Worked } from "./run-row.tsx";
import { StatusBadge } from "./status-badge.tsx";
import { useStore } from "./store.ts";
import { StreamView } from "./stream-view.tsx";
import { Timeline } from "./timeline.tsx";
import { dateText } from "./times.ts";

interface Props {
  runwire: Runwire;
  id: string;
}

export function RunPage({ runwire, id }: Props) {
  const followed = useMemo(() => new FollowedRun(runwire, id), [runwire, id]);
  useEffect(() => {
    followed.open();
    return () => followed.close();
  }, [followed]);
  const { run, streams, log, gap, error, isMissing } = useStore(followed.store);
  useShortcuts({ u: () => go(runsLink()), Escape: () => go(runsLink()) });
  useEffect(() => {
    document.title = `${run ? run.taskIdentifier : id} · Runwire`;
  }, [run, id]);

  if (!run) {
    return (
      <section className="page">
        <p className="empty" role={error ? "alert" : undefined}>
          {isMissing ? `There is no run ${id}.` : (error ?? "Loading…")}
        </p>
      </section>
    );
  }
  return (
    <article className="page run" aria-label={`Run ${run.id}`} data-status={run.status}>
      <RunHead run={run} runwire={runwire} />
      {error && (
        <p className="problem" role="alert">
          {error}
        </p>
      )}
      {gap && <p className="notice">Some history could not be resumed ({gap}); this is the state now.</p>}
      <div className="run-columns">
        <div className="run-main">
          {streams.map((stream) => (
            <StreamView key={stream.key} stream={stream} isRunning={!run.isCompleted} />
          ))}
          {log.length > 0 && <LogView entries={log} />}
          <ChildList runwire={runwire} run={run} />
          <Failure run={run} />
          {run.output !== undefined && (
            <Panel title="Output">
              <JsonView value={run.output} name="output" />
            </Panel>
          )}
          {run.metadata && Object.keys(run.metadata).length > 0 && (
            <Panel title="Metadata">
              <JsonView value={run.metadata} name="metadata" />
            </Panel>
          )}
          <Panel title="Payload">
            {run.payload === undefined ? (
              <p className="nothing">No payload</p>
            ) : (
              <JsonView value={run.payload} name="payload" />
            )}
          </Panel>
        </div>
        <aside className="run-side">
          <Timeline run={run} runwire={runwire} />
          <Facts run={run} />
        </aside>
      </div>
    </article>
  );
}

function RunHead({ run, runwire }: { run: Run; runwire: Runwire }) {
  const [problem, setProblem] = useState("");
  const [isBusy, setBusy] = useState(false);
  const act = (action: () => Promise<void>) => {
    setBusy(true);
    setProblem("");
    action()
      .catch((error: Error) => setProblem(error.message))
      .finally(() => setBusy(false));
  };
  const replay = async () => go(runLink((await runwire.replay(run.id)).id));
  const isStopping = Boolean(run.cancelRequestedAt) && !run.isCompleted;

  return (
    <header className="run-top">
      <p className="crumbs">
        <a href={runsLink()}>Runs</a> / <code>{run.id}</code>
      </p>
      <div className="run-title">
        <h1>{run.taskIdentifier}</h1>
        <StatusBadge status={run.status} />
        <Worked run={run} />
        <span className="actions">
          {!run.isCompleted && (
            <button
              type="button"
              disabled={isBusy || isStopping}
              onClick={() => act(() => runwire.cancel(run.id))}
            >
              {isStopping ? "Canceling…" : "Cancel"}
            </button>
          )}
          <button type="button" disabled={isBusy} onClick={() => act(replay)}>
            Replay
          </button>
        </span>
      </div>
      <p className="tags">
        {run.tags?.map((tag) => (
          <a className="tag" key={tag} href={runsLink({ tag })}>
            {tag}
          </a>
        ))}
      </p>
      {problem && (
        <p className="problem" role="alert">
          {problem}
        </p>
      )}
    </header>
  );
}

function Failure({ run }: { run: Run }) {
  const { error } = run;
  if (!error) return null;
  return (
    <Panel title={error.name ?? "Error"} tone="bad">
      <p className="error-message">{error.message}</p>
      {error.stackTrace && <pre className="stack">{error.stackTrace}</pre>}
    </Panel>
  );
}

function Facts({ run }: { run: Run }) {
  const facts: [string, ReactNode][] = [
    ["Run", <code key="id">{run.id}</code>],
    ["Task", <a key="task" href={triggerLink(run.taskIdentifier)}>{run.taskIdentifier}</a>],
    ["Attempt", run.maxAttempts ? `${run.attempt ?? 0} of ${run.maxAttempts}` : run.attempt],
    ["Queue", run.queue],
    ["Concurrency key", run.concurrencyKey],
    ["Created", dateText(run.createdAt)],
    ["Delayed until", run.delayedUntil && !run.startedAt ? dateText(run.delayedUntil) : undefined],
    ["Started", run.startedAt && dateText(run.startedAt)],
    ["Finished", run.finishedAt && dateText(run.finishedAt)],
    ["Parent", run.parentId && <a key="parent" href={runLink(run.parentId)}>{run.parentId}</a>],
    ["Batch", run.batchId && <code key="batch">{run.batchId}</code>],
    ["Idempotency key", run.idempotencyKey && <code key="key">{run.idempotencyKey}</code>],
    ["Version", run.version],
    ["Worker", run.workerId && <code key="worker">{run.workerId}</code>],
    ["Test", run.isTest ? "yes" : undefined],
  ];
  return (
    <Panel title="About">
      <dl className="facts">
        {facts
          .filter(([, value]) => value !== undefined && value !== "")
          .map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{value}</dd>
            </div>
          ))}
      </dl>
    </Panel>
  );
}

function Panel({ title, tone, children }: { title: string; tone?: "bad"; children: ReactNode }) {
  return (
    <section className="panel" data-tone={tone} aria-label={title}>
      <h2>{title}</h2>
      {children}
    </section>
  );
}
