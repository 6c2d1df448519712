import type { Json } from "@runwire/client";
import { memo, type ReactNode, useMemo, useState } from "react";

/** Longer text is shown in part until asked for. */
const MOST = 20_000;

/** A JSON value, laid out and coloured. Its parts are text to React, whatever they contain. */
export const JsonView = memo(function JsonView({ value, name }: { value: Json; name: string }) {
  const [isWhole, setWhole] = useState(false);
  const text = useMemo(
    () => (typeof value === "string" ? value : JSON.stringify(value, null, 2)),
    [value],
  );
  const isCut = !isWhole && text.length > MOST;
  const shown = isCut ? text.slice(0, MOST) : text;
  return (
    <>
      <pre className="json" data-json={name}>
        {typeof value === "string" || text.length > MOST ? shown : coloured(shown)}
        {isCut && "…"}
      </pre>
      {isCut && (
        <button type="button" className="plain" onClick={() => setWhole(true)}>
          Show all {Math.round(text.length / 1024).toLocaleString()} KiB
        </button>
      )}
    </>
  );
});

const TOKEN = /("(?:[^"\\]|\\.)*")(\s*:)?|\b(true|false|null)\b|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

function coloured(text: string): ReactNode[] {
  const parts: ReactNode[] = [];
  let at = 0;
  for (const match of text.matchAll(TOKEN)) {
    const [token, quoted, colon] = match;
    const kind = quoted ? (colon ? "name" : "text") : match[3] ? "word" : "count";
    const colored = quoted ?? token;
    parts.push(text.slice(at, match.index));
    parts.push(
      <span key={match.index} className={`json-${kind}`}>
        {colored}
      </span>,
    );
    at = match.index + colored.length;
  }
  parts.push(text.slice(at));
  return parts;
}
