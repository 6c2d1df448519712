/** A WebSocket class whose sockets a test answers by hand. Use with vitest's fake timers. */

import { vi } from "vitest";

import type { WebSocketClass } from "../../src/index.ts";

export type Message = { type: string } & Record<string, unknown>;

export class FakeServer {
  /** Every socket the client opened, oldest first. */
  readonly sockets: FakeSocket[] = [];

  readonly WebSocket: WebSocketClass = ((server: FakeServer) =>
    class extends FakeSocket {
      constructor(url: string, protocols: string[]) {
        super(url, protocols);
        server.sockets.push(this);
      }
    })(this);

  /** The socket that is open or opening now; waits for the client's next try. */
  async current(): Promise<FakeSocket> {
    for (let waited = 0; waited <= 40_000; waited += 100) {
      const last = this.sockets.at(-1);
      if (last && !last.isClosed) return last;
      await vi.advanceTimersByTimeAsync(100);
    }
    throw new Error("the client opened no socket");
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

/** Let promises that are ready be answered. */
export async function settle(): Promise<void> {
  await vi.advanceTimersByTimeAsync(0);
}
