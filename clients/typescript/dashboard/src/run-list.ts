/** The runs of the list, live: newest first, at most MAX_ROWS. */

import {
  type Freshness,
  type Run,
  type RunFilter,
  type RunStatus,
  type Runwire,
  RunwireError,
  type Updates,
} from "@runwire/client";

import type { RunsFilter } from "./route.ts";
import { Store } from "./store.ts";

/** What a page stays fast with, and one snapshot holds. */
export const MAX_ROWS = 1000;
const PAGE = 100;
const FIELDS = [
  "startedAt",
  "finishedAt",
  "durationMs",
  "tags",
  "attempt",
  "isTest",
  "batchId",
  "delayedUntil",
  "cancelRequestedAt",
];

export interface RunListState {
  readonly runs: readonly Run[];
  readonly freshness: Freshness;
  readonly isLoaded: boolean;
  readonly hasOlder: boolean;
  readonly isLoadingOlder: boolean;
  readonly error: string | null;
}

const EMPTY: RunListState = {
  runs: [],
  freshness: "connecting",
  isLoaded: false,
  hasOlder: false,
  isLoadingOlder: false,
  error: null,
};

export class RunList {
  readonly store = new Store<RunListState>(EMPTY);
  readonly #runwire: Runwire;
  readonly #filter: RunsFilter;
  readonly #rows = new Map<string, Run>();
  #updates: Updates | null = null;
  #rest: Omit<RunListState, "runs"> = EMPTY;
  /** Where the page of older runs that was read last ends; null before the first. */
  #older: string | null = null;

  constructor(runwire: Runwire, filter: RunsFilter) {
    this.#runwire = runwire;
    this.#filter = filter;
  }

  open(): void {
    const updates = this.#subscribe();
    this.#updates = updates;
    updates.on("run", ({ run }) => this.#take(run));
    updates.on("removed", ({ runId }) => {
      this.#rows.delete(runId);
      this.#changed({});
    });
    updates.on("freshness", ({ freshness }) => {
      const isLive = freshness === "live";
      const isFirst = isLive && !this.#rest.isLoaded;
      this.#changed({ freshness, ...(isLive && { error: null, isLoaded: true }) });
      // A feed does not go back for ever: whether there are older runs is another question.
      if (isFirst) void this.loadOlder();
    });
    updates.on("error", (error) => this.#changed({ error: error.message, isLoaded: true }));
  }

  close(): void {
    this.#updates?.close();
  }

  /** Read the page below the last row. */
  async loadOlder(): Promise<void> {
    if (this.#rest.isLoadingOlder) return;
    this.#changed({ isLoadingOlder: true });
    try {
      const { status, task, tag } = this.#filter;
      const last = this.#sorted().at(-1);
      const page = await this.#runwire.list({
        ...(status && { status: status.split(",") as RunStatus[] }),
        ...(task && { task: [task] }),
        ...(tag && { tag: [tag] }),
        ...(this.#older ? { after: this.#older } : last && { createdTo: last.createdAt }),
        size: PAGE,
      });
      this.#older = page.next;
      for (const run of page.runs) this.#take(run);
      const hasOlder = this.#rows.size < MAX_ROWS && page.next !== null;
      this.#changed({ isLoadingOlder: false, hasOlder });
    } catch (error) {
      const message = error instanceof RunwireError ? error.message : String(error);
      this.#changed({ isLoadingOlder: false, error: message });
    }
  }

  #subscribe(): Updates {
    const { status, task, tag } = this.#filter;
    if (tag) return this.#runwire.subscribeToRunsWithTag(tag, { createdAt: "30d", fields: FIELDS });
    const filter: RunFilter = {
      ...(status && { status: status.split(",") as RunStatus[] }),
      ...(task && { task: [task] }),
    };
    return this.#runwire.subscribeToRuns(filter, { fields: FIELDS });
  }

  #take(run: Run): void {
    const held = this.#rows.get(run.id);
    if (held && held.revision > run.revision) return;
    if (this.#fits(run)) this.#rows.set(run.id, run);
    else this.#rows.delete(run.id);
    this.#changed({});
  }

  #fits(run: Run): boolean {
    const { status, task } = this.#filter;
    return (!status || status.split(",").includes(run.status)) && (!task || run.taskIdentifier === task);
  }

  #changed(rest: Partial<RunListState>): void {
    this.#rest = { ...this.#rest, ...rest };
    this.store.change(() => ({ ...this.#rest, runs: this.#sorted() }));
  }

  #sorted(): Run[] {
    const runs = [...this.#rows.values()].sort(newestFirst);
    for (const run of runs.splice(MAX_ROWS)) this.#rows.delete(run.id);
    return runs;
  }
}

/** The order of lists of runs. */
export function newestFirst(left: Run, right: Run): number {
  if (left.createdAt !== right.createdAt) return left.createdAt < right.createdAt ? 1 : -1;
  return left.id < right.id ? 1 : -1;
}
