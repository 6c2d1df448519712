/** What a subscription tells the application. */

import type { RunwireError } from "./errors.ts";
import type { Run } from "./runs.ts";
import type { Json } from "./wire.ts";

export interface RunEvent {
  readonly type: "run";
  readonly run: Run;
}
/** The run left a tag, batch or runs subscription. */
export interface RemovedEvent {
  readonly type: "removed";
  readonly runId: string;
}
export interface ChunkEvent {
  readonly type: "chunk";
  readonly runId: string;
  readonly stream: string;
  readonly seq: number;
  readonly chunk: Json;
  /** Of the run's own execution; absent when somebody else wrote it. */
  readonly attempt?: number;
  readonly writer?: string;
}
/** A stream read `as: "text"` grew. */
export interface TextEvent {
  readonly type: "text";
  readonly runId: string;
  readonly stream: string;
  /** The whole text so far. */
  readonly text: string;
  /** Seq of the chunk that comes next. */
  readonly next: number;
  /** How often the text started over: with another execution of the run, or after a gap. */
  readonly restarts: number;
}
/** Another execution of the run, an attempt or one begun anew, writes from `fromSeq` on. */
export interface AttemptEvent {
  readonly type: "attempt";
  readonly runId: string;
  readonly stream: string;
  readonly attempt: number;
  readonly fromSeq: number;
}
/** This attempt's writer is done; a later attempt may still write. */
export interface EndEvent {
  readonly type: "end";
  readonly runId: string;
  readonly stream: string;
  readonly attempt: number;
  readonly next: number;
}
/** Nothing will ever follow in this stream: the run is final. */
export interface EofEvent {
  readonly type: "eof";
  readonly runId: string;
  readonly stream: string;
  readonly next: number;
  readonly reason: string;
}
/** Continuity is broken: what follows is the state now, not what was missed. */
export interface GapEvent {
  readonly type: "gap";
  readonly reason: string;
  readonly runId?: string;
  readonly stream?: string;
}
/** How fresh what was told is. */
export interface FreshnessEvent {
  readonly type: "freshness";
  readonly freshness: Freshness;
}

export type Freshness =
  | "connecting" // no socket, or not yet accepted on it
  | "syncing" // the state now is on its way
  | "live"
  | "stale" // the server has lost its database
  | "closed";

export type SubscriptionEvent =
  | RunEvent
  | RemovedEvent
  | ChunkEvent
  | TextEvent
  | AttemptEvent
  | EndEvent
  | EofEvent
  | GapEvent
  | FreshnessEvent;

/** What `on` can be asked for: every event by its type, and how a subscription ended. */
export type Listeners = {
  [E in SubscriptionEvent as E["type"]]: (event: E) => void;
} & {
  /** Nothing more will come: the run is final and its streams are read. */
  done: () => void;
  error: (error: RunwireError) => void;
};
