import { useEffect, useRef } from "react";

import type { StreamText } from "./followed-run.ts";

interface Props {
  stream: StreamText;
  isRunning: boolean;
}

/** One stream as growing text. Text nodes only, and only what is new: nothing is parsed as HTML. */
export function StreamView({ stream, isRunning }: Props) {
  const output = useRef<HTMLPreElement>(null);
  const drawn = useRef({ restarts: -1, length: 0 });

  useEffect(() => {
    const element = output.current;
    if (!element) return;
    const was = drawn.current;
    const isAtEnd = element.scrollHeight - element.scrollTop - element.clientHeight < 40;
    const isSame = was.restarts === stream.restarts && was.length <= stream.text.length;
    if (!isSame) element.replaceChildren();
    const added = isSame ? stream.text.slice(was.length) : stream.text;
    if (added) element.append(added);
    drawn.current = { restarts: stream.restarts, length: stream.text.length };
    if (isAtEnd) element.scrollTop = element.scrollHeight;
  }, [stream]);

  // A view that is mounted again (or twice, while developing) starts with an empty element.
  useEffect(() => () => void (drawn.current = { restarts: -1, length: 0 }), []);

  const isOpen = isRunning && stream.ended === null;
  return (
    <section className="panel stream" aria-label={`Stream ${stream.key}`}>
      <h2>
        <span className="stream-key">{stream.key}</span>
        <span className="stream-facts">
          {stream.restarts > 0 && stream.attempt !== null && <>attempt {stream.attempt} · </>}
          {stream.chunks.toLocaleString()} {stream.chunks === 1 ? "chunk" : "chunks"}
          {isOpen && <span className="pulse"> · streaming</span>}
        </span>
      </h2>
      <pre ref={output} className="stream-text" data-stream={stream.key} data-open={isOpen} tabIndex={0} />
    </section>
  );
}
