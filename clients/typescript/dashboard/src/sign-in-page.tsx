import { type FormEvent, useEffect, useState } from "react";

import { Mark } from "./header.tsx";
import { credentialOf, type Session } from "./session.ts";

interface Props {
  session: Session;
  problem: string;
  onSignedIn: () => void;
}

export function SignInPage({ session, problem, onSignedIn }: Props) {
  const [pasted, setPasted] = useState("");
  const [error, setError] = useState(problem);
  const [isBusy, setBusy] = useState(false);

  useEffect(() => setError(problem), [problem]);

  const submit = (event: FormEvent) => {
    event.preventDefault();
    setBusy(true);
    session
      .signIn(credentialOf(pasted))
      .then(onSignedIn, (refused: Error) => setError(refused.message))
      .finally(() => setBusy(false));
  };

  return (
    <main className="sign-in">
      <div className="sign-in-card">
        <h1>
          <Mark /> Runwire
        </h1>
        <p>
          Open the sign-in link that <code>runwire dev</code> prints when it starts. A link works
          once and for ten minutes; restart it to get a new one.
        </p>
        <form onSubmit={submit}>
          <label htmlFor="pasted">Or paste a sign-in link or an API key</label>
          <div className="inline-form">
            <input
              id="pasted"
              type="password"
              autoComplete="off"
              spellCheck={false}
              value={pasted}
              onChange={(event) => setPasted(event.target.value)}
            />
            <button className="primary" disabled={isBusy || !pasted.trim()}>
              Sign in
            </button>
          </div>
        </form>
        {error && (
          <p className="problem" role="alert">
            {error}
          </p>
        )}
      </div>
    </main>
  );
}
