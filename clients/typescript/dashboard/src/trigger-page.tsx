import type { Json, Runwire, TriggerOptions } from "@runwire/client";
import { type KeyboardEvent, useEffect, useId, useRef, useState } from "react";

import { go, runLink, triggerLink } from "./route.ts";
import { fieldsOf, skeletonOf } from "./skeleton.ts";
import { type Task, useTasks } from "./tasks.ts";

interface Props {
  runwire: Runwire;
  chosen: string | null;
}

export function TriggerPage({ runwire, chosen }: Props) {
  const { tasks, error } = useTasks(runwire);
  useEffect(() => void (document.title = "New run · Runwire"), []);
  const task = tasks?.find(({ id }) => id === chosen) ?? (chosen ? null : tasks?.[0]) ?? null;
  const list = useRef<HTMLElement>(null);
  useEffect(() => scrollTo(list.current), [task?.id]);

  return (
    <section className="page trigger" aria-label="New run">
      <h1>New run</h1>
      {error && (
        <p className="problem" role="alert">
          {error}
        </p>
      )}
      {tasks && !tasks.length && (
        <p className="empty">
          No worker has announced a task yet. Start one: <code>runwire worker my_tasks</code>
        </p>
      )}
      {tasks && chosen && !task && (
        <p className="problem" role="alert">
          No worker has announced a task {chosen}.
        </p>
      )}
      <div className="trigger-columns">
        {tasks && tasks.length > 0 && (
          <nav className="task-list" aria-label="Tasks" ref={list}>
            {tasks.map((each) => (
              <a
                key={each.id}
                href={triggerLink(each.id)}
                aria-current={each === task ? "true" : undefined}
              >
                <b>{each.id}</b>
                {each.description && <span>{each.description}</span>}
              </a>
            ))}
          </nav>
        )}
        {task && <TriggerForm key={task.id} runwire={runwire} task={task} />}
      </div>
    </section>
  );
}

function TriggerForm({ runwire, task }: { runwire: Runwire; task: Task }) {
  const [text, setText] = useState(() => remembered(task.id) ?? firstPayload(task));
  const [tags, setTags] = useState("");
  const [problem, setProblem] = useState("");
  const [isBusy, setBusy] = useState(false);
  const ids = { payload: useId(), tags: useId(), problem: useId() };
  const fields = fieldsOf(task.payloadSchema ?? null);
  const parsed = parse(text);

  const submit = () => {
    if (isBusy) return;
    if (!parsed.isValid) return setProblem(parsed.problem);
    setBusy(true);
    setProblem("");
    remember(task.id, text);
    runwire
      .trigger(task.id, parsed.value, optionsOf(tags))
      .then(({ id }) => go(runLink(id)))
      .catch((error: Error) => setProblem(error.message))
      .finally(() => setBusy(false));
  };
  const pressed = (event: KeyboardEvent) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
  };

  return (
    <form
      className="trigger-form"
      onKeyDown={pressed}
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      <h2>{task.id}</h2>
      {task.description && <p className="about">{task.description}</p>}
      <div className="label-row">
        <label htmlFor={ids.payload}>Payload, as JSON</label>
        <span className="editor-actions">
          <button
            type="button"
            className="plain"
            disabled={!parsed.isValid || parsed.value === undefined}
            onClick={() => parsed.isValid && setText(JSON.stringify(parsed.value, null, 2))}
          >
            Format
          </button>
          <button type="button" className="plain" onClick={() => setText(firstPayload(task))}>
            Reset
          </button>
        </span>
      </div>
      <textarea
        id={ids.payload}
        name="payload"
        value={text}
        rows={Math.min(24, Math.max(8, text.split("\n").length + 1))}
        spellCheck={false}
        autoCapitalize="off"
        aria-invalid={!parsed.isValid}
        aria-describedby={ids.problem}
        onChange={(event) => {
          setText(event.target.value);
          setProblem("");
        }}
      />
      <p id={ids.problem} className="problem" role="alert" hidden={!problem && parsed.isValid}>
        {problem || (!parsed.isValid && parsed.problem)}
      </p>
      {fields.length > 0 && (
        <dl className="fields">
          {fields.map((field) => (
            <div key={field.name}>
              <dt>
                <code>{field.name}</code>
                {field.isRequired && <span className="required">required</span>}
              </dt>
              <dd>
                {field.type}
                {field.description && ` · ${field.description}`}
              </dd>
            </div>
          ))}
        </dl>
      )}
      <label htmlFor={ids.tags}>Tags, separated by commas</label>
      <input
        id={ids.tags}
        name="tags"
        value={tags}
        placeholder="user:42, nightly"
        spellCheck={false}
        onChange={(event) => setTags(event.target.value)}
      />
      <div className="submit-row">
        <button className="primary" disabled={isBusy || !parsed.isValid}>
          {isBusy ? "Starting…" : "Run"}
        </button>
        <span className="hint">Ctrl + Enter</span>
      </div>
    </form>
  );
}

/** Show the chosen task in its list, and leave the page where it is. */
function scrollTo(list: HTMLElement | null): void {
  const chosen = list?.querySelector<HTMLElement>("[aria-current]");
  if (!list || !chosen) return;
  const [top, bottom] = [chosen.offsetTop - list.offsetTop, chosen.offsetHeight];
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + bottom > list.scrollTop + list.clientHeight) {
    list.scrollTop = top + bottom - list.clientHeight;
  }
}

type Parsed = { isValid: true; value: Json | undefined } | { isValid: false; problem: string };

function parse(text: string): Parsed {
  if (!text.trim()) return { isValid: true, value: undefined };
  try {
    return { isValid: true, value: JSON.parse(text) as Json };
  } catch (error) {
    return { isValid: false, problem: `Not valid JSON: ${(error as Error).message}` };
  }
}

function optionsOf(tags: string): TriggerOptions {
  const given = tags
    .split(",")
    .map((tag) => tag.trim())
    .filter(Boolean);
  return given.length ? { tags: given } : {};
}

function firstPayload(task: Task): string {
  return JSON.stringify(skeletonOf(task.payloadSchema ?? null), null, 2);
}

/** What was sent to a task last, for as long as the tab lives. */
function remembered(task: string): string | null {
  return sessionStorage.getItem(`payload ${task}`);
}

function remember(task: string, text: string): void {
  try {
    sessionStorage.setItem(`payload ${task}`, text);
  } catch {
    // Full: the payload was large, and nothing depends on it.
  }
}
