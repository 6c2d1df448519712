/**
 * A server whose sockets and event streams a test answers by hand. Use with vitest's fake timers.
 *
 * Event streams are refused by the network unless `passesEvents`, sockets where `passesSockets` is
 * false.
 */

import { vi } from "vitest";

import type { WebSocketClass } from "../../src/index.ts";

export type Message = { type: string } & Record<string, unknown>;

export class FakeServer {
  /** Every socket the client opened, oldest first. */
  readonly sockets: FakeSocket[] = [];
  /** Every event stream the client asked for, oldest first. */
  readonly streams: FakeEvents[] = [];
  passesSockets = true;
  passesEvents = false;

  readonly WebSocket: WebSocketClass = ((server: FakeServer) =>
    class extends FakeSocket {
      constructor(url: string, protocols: string[]) {
        super(url, protocols);
        server.sockets.push(this);
        if (!server.passesSockets) queueMicrotask(() => this.lose(1006, ""));
      }
    })(this);

  readonly fetch = ((url: string, request: RequestInit) => {
    if (!this.passesEvents) return Promise.reject(new TypeError("fetch failed"));
    const stream = new FakeEvents(url, request);
    this.streams.push(stream);
    return stream.response;
  }) as typeof fetch;

  /** What makes a client talk to this server. */
  get options(): { WebSocket: WebSocketClass; fetch: typeof fetch } {
    return { WebSocket: this.WebSocket, fetch: this.fetch };
  }

  /** The socket that is open or opening now; waits for the client's next try. */
  async current(): Promise<FakeSocket> {
    for (let waited = 0; waited <= 40_000; waited += 100) {
      const last = this.sockets.at(-1);
      if (last && !last.isClosed) return last;
      await vi.advanceTimersByTimeAsync(100);
    }
    throw new Error("the client opened no socket");
  }

  /** The event stream that is asked for now; waits for the client's next try. */
  async currentStream(): Promise<FakeEvents> {
    for (let waited = 0; waited <= 40_000; waited += 100) {
      const last = this.streams.at(-1);
      if (last && !last.isClosed) return last;
      await vi.advanceTimersByTimeAsync(100);
    }
    throw new Error("the client asked for no event stream");
  }

  /** Accept the client's next event stream. Returns what it asks for. */
  async acceptStream(epoch = "e1"): Promise<Message[]> {
    const stream = await this.currentStream();
    stream.open();
    stream.send([{ type: "ready", protocol: "runwire.v1", epoch, heartbeat: 15 }]);
    await settle();
    return stream.asked;
  }

  /** Accept the client's next socket and its token. Returns what it sent after that. */
  async accept(epoch = "e1"): Promise<Message[]> {
    const socket = await this.current();
    socket.open();
    socket.send_([{ type: "ready", protocol: "runwire.v1", epoch, heartbeat: 15 }]);
    await settle();
    return socket.take();
  }

  async send(...messages: Message[]): Promise<void> {
    (await this.current()).send_(messages);
    await settle();
  }

  async close(code: number, reason = ""): Promise<void> {
    (await this.current()).lose(code, reason);
    await settle();
  }
}

export class FakeSocket {
  readonly url: string;
  readonly protocols: string[];
  onopen: ((event: never) => void) | null = null;
  onmessage: ((event: never) => void) | null = null;
  onclose: ((event: never) => void) | null = null;
  onerror: ((event: never) => void) | null = null;
  isClosed = false;
  readonly #sent: Message[] = [];

  constructor(url: string, protocols: string[]) {
    this.url = url;
    this.protocols = protocols;
  }

  /** Called by the client. */
  send(data: string): void {
    this.#sent.push(JSON.parse(data) as Message);
  }

  /** Called by the client. */
  close(): void {
    this.isClosed = true;
  }

  open(): void {
    this.onopen?.({} as never);
  }

  send_(messages: Message[]): void {
    this.onmessage?.({ data: JSON.stringify(messages) } as never);
  }

  sendText(data: string): void {
    this.onmessage?.({ data } as never);
  }

  lose(code: number, reason: string): void {
    this.isClosed = true;
    this.onclose?.({ code, reason } as never);
  }

  /** What the client sent since the last look, without `auth`. */
  take(): Message[] {
    return this.#sent.splice(0).filter(({ type }) => type !== "auth");
  }

  /** Everything sent since the last look. */
  takeAll(): Message[] {
    return this.#sent.splice(0);
  }
}

export class FakeEvents {
  readonly url: string;
  readonly headers: Record<string, string>;
  readonly asked: Message[];
  readonly response: Promise<Response>;
  isClosed = false;
  #answer!: (response: Response) => void;
  #fail!: (error: Error) => void;
  #body: ReadableStreamDefaultController<Uint8Array> | undefined;

  constructor(url: string, { headers, body, signal }: RequestInit) {
    this.url = url;
    this.headers = headers as Record<string, string>;
    this.asked = JSON.parse(String(body)) as Message[];
    this.response = new Promise((resolve, reject) => {
      this.#answer = resolve;
      this.#fail = reject;
    });
    signal?.addEventListener("abort", () => this.lose(signal.reason as Error));
  }

  /** Whether the answer has begun and may go on. */
  get isOpen(): boolean {
    return this.#body !== undefined && !this.isClosed;
  }

  open(type = "text/event-stream; charset=utf-8"): void {
    if (this.#body) return;
    const body = new ReadableStream<Uint8Array>({ start: (control) => void (this.#body = control) });
    this.#answer(new Response(body, { headers: { "content-type": type } }));
  }

  refuse(status: number, error?: string): void {
    this.isClosed = true;
    const body = error === undefined ? "<html>no</html>" : JSON.stringify({ error });
    this.#answer(new Response(body, { status }));
  }

  send(messages: Message[]): void {
    this.sendText(`data: ${JSON.stringify(messages)}\n\n`);
  }

  sendText(text: string): void {
    this.#body?.enqueue(new TextEncoder().encode(text));
  }

  /** Break the answer off. */
  lose(error: Error = new TypeError("network error")): void {
    if (this.isClosed) return;
    this.isClosed = true;
    this.#fail(error);
    this.#body?.error(error);
  }

  /** End the answer as the server does once everything is done. */
  end(): void {
    this.isClosed = true;
    this.#body?.close();
  }
}

/** Let promises that are ready be answered. */
export async function settle(): Promise<void> {
  await vi.advanceTimersByTimeAsync(0);
}
