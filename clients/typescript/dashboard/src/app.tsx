/** The page: signed in or not, and which of its views. */

import { Runwire, UnauthorizedError } from "@runwire/client";
import { useEffect, useMemo, useRef, useState } from "react";

import { Header } from "./header.tsx";
import { useShortcuts } from "./keyboard.ts";
import { parseRoute, runsLink, triggerLink, useFragment, go } from "./route.ts";
import { RunPage } from "./run-page.tsx";
import { RunsPage } from "./runs-page.tsx";
import { SchedulesPage } from "./schedules-page.tsx";
import { Session } from "./session.ts";
import { SignInPage } from "./sign-in-page.tsx";
import { TriggerPage } from "./trigger-page.tsx";

type SignedIn = "asking" | "yes" | "no";

/** Where the server is: the page's own place, which may be below a path. */
const BASE = new URL(".", document.baseURI).href.replace(/\/$/, "");

export function App() {
  const session = useMemo(() => new Session(BASE), []);
  const [signedIn, setSignedIn] = useState<SignedIn>("asking");
  const [problem, setProblem] = useState("");

  const code = codeIn(useFragment());
  const isEntered = useRef(false);

  useEffect(() => {
    session.onEnded = () => setSignedIn("no");
  }, [session]);
  // When the page opens, and again when a sign-in link is opened in a page that is there already.
  useEffect(() => {
    if (isEntered.current && code === null) return;
    isEntered.current = true;
    enter(session, code).then(
      () => setSignedIn("yes"),
      (error: Error) => {
        // Whoever comes for the first time has done nothing wrong.
        const isStranger = code === null && error instanceof UnauthorizedError;
        setProblem(isStranger ? "" : error.message);
        setSignedIn("no");
      },
    );
  }, [session, code]);

  if (signedIn === "asking") return <main className="quiet">Signing in…</main>;
  if (signedIn === "no") {
    return (
      <SignInPage session={session} problem={problem} onSignedIn={() => setSignedIn("yes")} />
    );
  }
  return <SignedInApp session={session} onSignedOut={() => setSignedIn("no")} />;
}

function codeIn(fragment: string): string | null {
  return /^#sign-in=(.+)$/.exec(fragment)?.[1] ?? null;
}

/** By the code in the link, once; else by the session of an earlier visit. */
async function enter(session: Session, code: string | null): Promise<void> {
  if (code === null) return void (await session.token());
  history.replaceState(null, "", `${location.pathname}${location.search}#/`);
  dispatchEvent(new HashChangeEvent("hashchange"));
  try {
    await session.signIn({ code });
  } catch (error) {
    // The link was used before, perhaps by this very browser.
    await session.token().catch(() => {
      throw error;
    });
  }
}

function SignedInApp({ session, onSignedOut }: { session: Session; onSignedOut: () => void }) {
  const [runwire, setRunwire] = useState<Runwire | null>(null);
  const route = parseRoute(useFragment());
  useShortcuts({ n: () => go(triggerLink()), g: () => go(runsLink()) });

  useEffect(() => {
    const client = new Runwire({ url: BASE, token: (fresh) => session.token(fresh) });
    setRunwire(client);
    return () => client.close();
  }, [session]);

  if (!runwire) return null;
  const signOut = () => void session.signOut().then(onSignedOut, onSignedOut);
  return (
    <>
      <Header runwire={runwire} page={route.page} onSignOut={signOut} />
      <main>
        {route.page === "runs" && <RunsPage runwire={runwire} filter={route.filter} />}
        {route.page === "run" && <RunPage key={route.id} runwire={runwire} id={route.id} />}
        {route.page === "schedules" && <SchedulesPage runwire={runwire} />}
        {route.page === "trigger" && <TriggerPage runwire={runwire} chosen={route.task} />}
      </main>
    </>
  );
}
