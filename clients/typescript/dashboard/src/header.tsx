import type { ConnectionState, Runwire } from "@runwire/client";
import { useCallback, useSyncExternalStore } from "react";

import { runsLink, schedulesLink, triggerLink } from "./route.ts";

interface Props {
  runwire: Runwire;
  page: "runs" | "run" | "schedules" | "trigger";
  onSignOut: () => void;
}

export function Header({ runwire, page, onSignOut }: Props) {
  return (
    <header className="top">
      <a className="brand" href={runsLink()}>
        <Mark />
        <span className="brand-name">Runwire</span>
      </a>
      <nav>
        <a href={runsLink()} aria-current={page === "runs" ? "page" : undefined}>
          Runs
        </a>
        <a href={schedulesLink()} aria-current={page === "schedules" ? "page" : undefined}>
          Schedules
        </a>
        <a href={triggerLink()} aria-current={page === "trigger" ? "page" : undefined}>
          New run
        </a>
      </nav>
      <Connection runwire={runwire} />
      <button type="button" className="plain" onClick={onSignOut}>
        Sign out
      </button>
    </header>
  );
}

const WORDS: Record<ConnectionState, [string, string]> = {
  idle: ["Idle", "Nothing on this page needs the connection"],
  connecting: ["Connecting", "Opening the socket"],
  live: ["Live", "What you see is the state now"],
  stale: ["Stale", "The server has lost its database; what you see may be old"],
  reconnecting: ["Reconnecting", "The connection was lost; it goes on where it stopped"],
  closed: ["Closed", "The connection was closed"],
};

function Connection({ runwire }: { runwire: Runwire }) {
  const subscribe = useCallback((changed: () => void) => runwire.onConnection(changed), [runwire]);
  const state = useSyncExternalStore(subscribe, () => runwire.connection);
  const [word, meaning] = WORDS[state];
  return (
    <span className="connection" data-state={state} role="status" title={meaning}>
      {word}
    </span>
  );
}

export function Mark() {
  return (
    <svg viewBox="0 0 32 32" width="24" height="24" aria-hidden="true">
      <rect className="mark-ground" width="32" height="32" rx="8" />
      <path className="mark-wire" d="M5 20h6l4-9 5 13 3-7h4" />
    </svg>
  );
}
