/** What carries the messages: a websocket, or server-sent events dressed as one. */

import { EVENTS_PATH, PROTOCOL, SOCKET_PATH } from "./codes.ts";
import type { Carrier } from "./connection.ts";
import { ConfigurationError } from "./errors.ts";
import { EventsCarrier } from "./events-carrier.ts";

/** The part of the browser's WebSocket that is used. */
export interface WebSocketLike {
  onopen: ((event: never) => void) | null;
  onmessage: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  send(data: string): void;
  close(code?: number): void;
}
export type WebSocketClass = new (url: string, protocols: string[]) => WebSocketLike;

export interface CarrierOptions {
  /** http:// or https:// */
  readonly url: string;
  readonly WebSocket: WebSocketClass | undefined;
  readonly fetch: typeof fetch;
}

/** Begin to open one. Throws ConfigurationError where that cannot be. */
export function openCarrier(carrier: Carrier, options: CarrierOptions): WebSocketLike {
  const { url, WebSocket, fetch } = options;
  if (carrier === "events") return new EventsCarrier(url + EVENTS_PATH, fetch);
  if (!WebSocket) {
    throw new ConfigurationError("there is no WebSocket here: pass one as an option");
  }
  const address = url.replace(/^http/, "ws") + SOCKET_PATH;
  try {
    return new WebSocket(address, [PROTOCOL]);
  } catch (error) {
    throw new ConfigurationError(`${address} cannot be opened: ${String(error)}`);
  }
}
