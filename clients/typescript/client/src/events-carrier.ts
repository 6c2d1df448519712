/**
 * Server-sent events dressed as a WebSocket: one `POST` that asks for everything, and its answer.
 *
 * What is sent in the turn in which it opens (`auth`, each `subscribe`) makes the request; there is
 * no way to say more afterwards, so the rest is ignored: whoever wants something else opens another.
 * The answer is the server's messages, `ready` first. What breaks it off is closed with 1006, a
 * status that refuses it with the close code that means the same.
 */

import type { WebSocketLike } from "./carriers.ts";
import { CloseCode, FRAME_TOO_LARGE } from "./codes.ts";
import { EventStreamParser } from "./event-stream.ts";
import type { ClientMessage, Subscribe } from "./wire.ts";

const NORMAL = 1000;
const ABNORMAL = 1006;

const CODE_OF_STATUS: Readonly<Record<number, number>> = {
  401: CloseCode.INVALID_TOKEN,
  403: CloseCode.FORBIDDEN,
  404: CloseCode.NOT_FOUND,
  // These pass.
  408: ABNORMAL,
  425: ABNORMAL,
  413: FRAME_TOO_LARGE,
  429: CloseCode.OVERLOADED,
  503: CloseCode.OVERLOADED,
};

export class EventsCarrier implements WebSocketLike {
  onopen: ((event: never) => void) | null = null;
  onmessage: ((event: never) => void) | null = null;
  onclose: ((event: never) => void) | null = null;
  onerror: ((event: never) => void) | null = null;
  readonly #url: string;
  readonly #fetch: typeof fetch;
  readonly #request = new AbortController();
  readonly #asked: Subscribe[] = [];
  // Not before the turn is over: what is subscribed to in one turn goes with one request.
  readonly #turn = setTimeout(() => this.#open(), 0);
  #token = "";

  constructor(url: string, fetcher: typeof fetch) {
    this.#url = url;
    this.#fetch = fetcher;
  }

  send(data: string): void {
    const message = JSON.parse(data) as ClientMessage;
    if (message.type === "auth") this.#token = message.token;
    else if (message.type === "subscribe") this.#asked.push(message);
  }

  close(): void {
    clearTimeout(this.#turn);
    this.#request.abort();
  }

  #open(): void {
    this.onopen?.({} as never);
    if (this.#asked.length && !this.#request.signal.aborted) void this.#post();
  }

  /** Never rejects. */
  async #post(): Promise<void> {
    try {
      const response = await this.#fetch.call(globalThis, this.#url, {
        method: "POST",
        headers: {
          authorization: `Bearer ${this.#token}`,
          "content-type": "application/json",
          accept: "text/event-stream",
        },
        body: JSON.stringify(this.#asked),
        cache: "no-store",
        signal: this.#request.signal,
      });
      if (response.ok) await this.#read(response);
      else this.#end(closeCodeOf(response.status), await reasonOf(response));
    } catch {
      this.#end(ABNORMAL, "");
    }
  }

  async #read(response: Response): Promise<void> {
    const type = response.headers.get("content-type") ?? "";
    // A page to sign in to a network, say.
    if (!type.startsWith("text/event-stream") || !response.body) {
      this.#end(ABNORMAL, `the answer is no event stream but ${type || "nothing"}`);
      return;
    }
    const parser = new EventStreamParser();
    const reader = response.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return this.#end(NORMAL, "");
      for (const data of parser.push(value)) this.onmessage?.({ data } as never);
    }
  }

  #end(code: number, reason: string): void {
    if (this.#request.signal.aborted) return;
    // Whatever is still on its way of the answer is not wanted.
    this.#request.abort();
    this.onclose?.({ code, reason } as never);
  }
}

/** The close code that says what a status says that refuses the request. */
export function closeCodeOf(status: number): number {
  return CODE_OF_STATUS[status] ?? (status >= 400 && status < 500 ? CloseCode.MALFORMED : ABNORMAL);
}

async function reasonOf(response: Response): Promise<string> {
  const told: unknown = await response.json().catch(() => null);
  const { error } = (told ?? {}) as { error?: unknown };
  return typeof error === "string" ? error : `the server answered with status ${response.status}`;
}
