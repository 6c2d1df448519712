/**
 * The messages of the websocket protocol `runwire.v1`, as runwire/wire.py has them.
 *
 * tests/wire/ holds one sample of each, which this package and the Python one both read.
 */

import { FRAME_TOO_LARGE, NO_RECONNECT, type RunStatus } from "./codes.ts";

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
export type JsonObject = { [key: string]: Json };

/** A run as it is sent: only these five are sure to be there. */
export interface WireRun extends JsonObject {
  id: string;
  taskIdentifier: string;
  status: RunStatus;
  revision: number;
  createdAt: string;
  updatedAt: string;
}

export type Mode = "latest" | "every";
/** The next seq wanted, all there is, only what comes from now on, or -N: the last N chunks. */
export type StreamStart = number | "start" | "latest";

export interface StreamRequest {
  from?: StreamStart;
  as?: "chunks" | "text";
}

export interface RunFilter {
  task?: string[];
  status?: RunStatus[];
  /** The last so many seconds ("1h" or a number), or since an ISO time. */
  createdAt?: string | number;
}

export type Target =
  | { run: string }
  | { tags: string[]; createdAt?: string | number }
  | { batch: string }
  | { runs: RunFilter };

export interface Auth {
  type: "auth";
  token: string;
}
export interface Subscribe {
  type: "subscribe";
  sub: string;
  to: Target;
  mode?: Mode;
  fields?: string[];
  cursor?: string;
  await?: number;
  streams?: Record<string, StreamRequest>;
  /** When it goes on: the next seq wanted, by run and key. What is not named is news. */
  positions?: Record<string, Record<string, number>>;
  /** With a cursor: no run is held here; each comes as it was there (`base`) before its news. */
  whole?: boolean;
}
export interface Unsubscribe {
  type: "unsubscribe";
  sub: string;
}
export interface Refetch {
  type: "refetch";
  run: string;
}
export interface Ping {
  type: "ping";
}
export type ClientMessage = Auth | Subscribe | Unsubscribe | Refetch | Ping;

export interface Ready {
  type: "ready";
  protocol: string;
  epoch: string;
  heartbeat: number;
}
export interface Snapshot {
  type: "snapshot";
  sub: string;
  runs: WireRun[];
  cursor?: string;
  more: boolean;
}
/** For whoever subscribes with `whole`: a run as it was at its cursor. */
export interface Base {
  type: "base";
  sub: string;
  run: WireRun;
}
export interface Live {
  type: "live";
  sub: string;
}
export interface Joined {
  type: "joined";
  sub: string;
  run: string;
}
export interface Removed {
  type: "removed";
  sub: string;
  run: string;
}
export interface RunMessage {
  type: "run";
  run: WireRun;
}
export interface Patch {
  type: "patch";
  run: string;
  from: number;
  revision: number;
  set: JsonObject;
  metadata?: JsonObject[];
}
export interface Chunks {
  type: "chunks";
  run: string;
  stream: string;
  seq: number;
  data: Json[];
  attempt?: number;
  writer?: string;
}
export interface Text {
  type: "text";
  run: string;
  stream: string;
  upTo: number;
  value: string;
}
export interface Attempt {
  type: "attempt";
  run: string;
  stream: string;
  attempt: number;
  fromSeq: number;
}
export interface End {
  type: "end";
  run: string;
  stream: string;
  attempt: number;
  next: number;
}
export interface Eof {
  type: "eof";
  run: string;
  stream: string;
  next: number;
  reason: string;
}
export interface Done {
  type: "done";
  sub: string;
}
export interface Cursor {
  type: "cursor";
  sub: string;
  cursor: string;
}
export interface Gap {
  type: "gap";
  sub: string;
  reason: string;
  run?: string;
  stream?: string;
  next?: number;
}
export interface State {
  type: "state";
  state: "live" | "stale";
  since: string;
}
export interface TokenExpiring {
  type: "token_expiring";
  in: number;
}
export interface ErrorMessage {
  type: "error";
  code: string;
  message: string;
  sub?: string;
}
export interface Heartbeat {
  type: "hb";
  t: string;
}
export interface Pong {
  type: "pong";
}

export type StreamMessage = Chunks | Text | Attempt | End | Eof;
export type SubscriptionMessage = Snapshot | Base | Live | Joined | Removed | Done | Cursor | Gap;
export type ServerMessage =
  | Ready
  | RunMessage
  | Patch
  | StreamMessage
  | SubscriptionMessage
  | State
  | TokenExpiring
  | ErrorMessage
  | Heartbeat
  | Pong;

/** The messages of one server frame. Throws on text that is not an array of messages. */
export function parseFrame(text: string): ServerMessage[] {
  const frame: unknown = JSON.parse(text);
  if (!Array.isArray(frame) || !frame.every(isMessage)) {
    throw new SyntaxError("a server frame is an array of messages");
  }
  return frame;
}

function isMessage(value: unknown): value is ServerMessage {
  return typeof value === "object" && value !== null && "type" in value;
}

/** Whether a socket closed with this code may be opened again and resumed. */
export function mayReconnect(code: number): boolean {
  const isOutside = code < NO_RECONNECT.first || code > NO_RECONNECT.last;
  return isOutside && code !== FRAME_TOO_LARGE;
}
