/**
 * The runs that a socket has been told about, each at its newest revision. [core]
 *
 * A run that two subscriptions follow is sent once, so this is kept per socket, and it outlives the
 * socket: a patch after a resume applies to what was held before.
 */

import { FINAL_STATUSES, type RunStatus } from "./codes.ts";
import { applyMetadata } from "./metadata.ts";
import type { Json, JsonObject, Patch, WireRun } from "./wire.ts";

/** A run as the application sees it. What its token may not see, or was not asked for, is absent. */
export interface Run {
  readonly id: string;
  readonly taskIdentifier: string;
  readonly status: RunStatus;
  /** +1 with every change. */
  readonly revision: number;
  readonly createdAt: string;
  readonly updatedAt: string;
  readonly queuedAt?: string;
  readonly startedAt?: string;
  readonly finishedAt?: string;
  readonly delayedUntil?: string;
  readonly expiredAt?: string;
  readonly cancelRequestedAt?: string;
  readonly durationMs?: number;
  readonly attempt?: number;
  readonly maxAttempts?: number;
  readonly tags?: readonly string[];
  readonly metadata?: JsonObject;
  readonly payload?: Json;
  readonly output?: Json;
  readonly error?: RunError;
  readonly realtimeStreams?: readonly string[];
  readonly queue?: string;
  readonly concurrencyKey?: string;
  readonly priority?: number;
  readonly version?: string;
  readonly ttl?: string | number;
  readonly maxDuration?: number;
  readonly idempotencyKey?: string;
  readonly batchId?: string;
  readonly parentId?: string;
  readonly rootId?: string;
  readonly depth?: number;
  readonly isTest?: boolean;
  readonly workerId?: string;
  readonly isQueued: boolean;
  readonly isExecuting: boolean;
  readonly isWaiting: boolean;
  /** It is final, whatever the outcome. */
  readonly isCompleted: boolean;
  readonly isSuccess: boolean;
  readonly isFailed: boolean;
  readonly isCancelled: boolean;
}

export interface RunError {
  readonly name?: string;
  readonly message: string;
  readonly stackTrace?: string;
  readonly code?: string;
}

const FINAL: ReadonlySet<string> = new Set(FINAL_STATUSES);
const QUEUED: ReadonlySet<string> = new Set(["PENDING_VERSION", "DELAYED", "QUEUED"]);
const EXECUTING: ReadonlySet<string> = new Set(["DEQUEUED", "EXECUTING"]);

/** The run with the flags that follow from its status. */
export function runOf(wire: WireRun): Run {
  const { status } = wire;
  const isCompleted = FINAL.has(status);
  const isSuccess = status === "COMPLETED";
  const isCancelled = status === "CANCELED";
  return {
    ...(wire as unknown as Run),
    isQueued: QUEUED.has(status),
    isExecuting: EXECUTING.has(status),
    isWaiting: status === "WAITING",
    isCompleted,
    isSuccess,
    isFailed: isCompleted && !isSuccess && !isCancelled,
    isCancelled,
  };
}

interface HeldRun {
  readonly run: WireRun;
  /** A gap was announced: take the next state whatever its revision. */
  readonly isDoubtful: boolean;
}

export class HeldRuns {
  readonly #held = new Map<string, HeldRun>();
  /** Runs asked for again; further patches wait for the answer. */
  readonly #refetching = new Set<string>();

  get(id: string): WireRun | undefined {
    return this.#held.get(id)?.run;
  }

  /** Take a whole run. Returns whether it is news. */
  put(run: WireRun): boolean {
    const held = this.#held.get(run.id);
    this.#refetching.delete(run.id);
    // The same revision again may come with more fields than before.
    if (held && !held.isDoubtful && run.revision < held.run.revision) return false;
    this.#held.set(run.id, { run, isDoubtful: false });
    return true;
  }

  /** Take a patch: news, old, or not of what is held: then the run must be fetched again. */
  patch(patch: Patch): "news" | "old" | "refetch" | "refetching" {
    const held = this.#held.get(patch.run);
    if (this.#refetching.has(patch.run)) return "refetching";
    if (held && !held.isDoubtful && patch.revision <= held.run.revision) return "old";
    const run = held && !held.isDoubtful ? patched(held.run, patch) : null;
    if (!run) {
      this.#refetching.add(patch.run);
      return "refetch";
    }
    this.#held.set(patch.run, { run, isDoubtful: false });
    return "news";
  }

  /** Continuity of this run was lost. */
  doubt(id: string): void {
    const held = this.#held.get(id);
    if (held) this.#held.set(id, { ...held, isDoubtful: true });
  }

  /** The socket is gone, and with it the answers that were awaited. */
  disconnect(): void {
    this.#refetching.clear();
  }

  /** Forget every run that nobody follows any more. */
  keep(isFollowed: (id: string) => boolean): void {
    for (const id of this.#held.keys()) if (!isFollowed(id)) this.#held.delete(id);
    for (const id of this.#refetching) if (!isFollowed(id)) this.#refetching.delete(id);
  }
}

/** The run after a patch, or null when the patch is not of this revision or cannot be applied. */
function patched(run: WireRun, patch: Patch): WireRun | null {
  if (patch.from !== run.revision) return null;
  const next: WireRun = { ...run, revision: patch.revision };
  for (const [name, value] of Object.entries(patch.set)) {
    if (value === null) delete next[name];
    else next[name] = value;
  }
  const document = (next["metadata"] ?? {}) as JsonObject;
  // A value too large for the feed is fetched when touched; there is nothing here to change.
  if (!patch.metadata || "$large" in document) return next;
  try {
    return { ...next, metadata: applyMetadata(document, patch.metadata) };
  } catch {
    return null;
  }
}
