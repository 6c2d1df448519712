/** The newest runs that a run triggered, and where they stand. */

import { type Run, type Runwire, RunwireError, type Updates } from "@runwire/client";

import { newestFirst } from "./run-list.ts";
import { Store } from "./store.ts";

/** Shown at first, and with each look further back. */
const PAGE = 25;
/** Nothing rings for a child that is new. */
const LOOK_MS = 2_000;
/** Followed one by one: the newest of those that are not over. */
const MOST_FOLLOWED = 50;
const FIELDS = ["startedAt", "finishedAt", "durationMs"];

export interface ChildRunsState {
  readonly runs: readonly Run[];
  readonly hasOlder: boolean;
  readonly error: string | null;
}

export class ChildRuns {
  readonly store = new Store<ChildRunsState>({ runs: [], hasOlder: false, error: null });
  readonly #runwire: Runwire;
  readonly #parent: string;
  readonly #rows = new Map<string, Run>();
  readonly #followed = new Map<string, Updates>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #isOpen = false;
  #isParentOver = false;
  /** Where the oldest page ends; undefined before the first. */
  #older: string | null | undefined;

  constructor(runwire: Runwire, parent: string) {
    this.#runwire = runwire;
    this.#parent = parent;
  }

  open(): void {
    this.#isOpen = true;
    void this.#look();
  }

  close(): void {
    this.#isOpen = false;
    clearTimeout(this.#timer);
    for (const updates of this.#followed.values()) updates.close();
    this.#followed.clear();
  }

  /** Look once more: a run that is over triggers nothing. */
  parentIsOver(): void {
    this.#isParentOver = true;
    clearTimeout(this.#timer);
    if (this.#isOpen) void this.#look();
  }

  async loadOlder(): Promise<void> {
    if (this.#older) await this.#read(this.#older);
  }

  async #look(): Promise<void> {
    await this.#read();
    if (!this.#isOpen || this.#isParentOver) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.#look(), LOOK_MS);
  }

  async #read(after?: string): Promise<void> {
    let error: string | null = null;
    try {
      const page = await this.#runwire.list({ parent: this.#parent, size: PAGE, ...(after && { after }) });
      if (!this.#isOpen) return;
      if (after || this.#older === undefined) this.#older = page.next;
      for (const run of page.runs) this.#take(run);
    } catch (problem) {
      error = problem instanceof RunwireError ? problem.message : String(problem);
    }
    this.#follow();
    this.#changed(error);
  }

  #take(run: Run): void {
    const held = this.#rows.get(run.id);
    if (!held || held.revision <= run.revision) this.#rows.set(run.id, run);
  }

  #follow(): void {
    const open = this.#sorted().filter(({ isCompleted }) => !isCompleted);
    for (const { id } of open.slice(0, MOST_FOLLOWED)) {
      if (!this.#isOpen || this.#followed.has(id)) continue;
      const updates = this.#runwire.subscribeToRun(id, { fields: FIELDS });
      this.#followed.set(id, updates);
      updates.on("run", ({ run }) => {
        this.#take(run);
        this.#changed(null);
      });
      const end = () => {
        updates.close();
        this.#followed.delete(id);
      };
      updates.on("done", end);
      updates.on("error", end);
    }
  }

  #changed(error: string | null): void {
    this.store.change(() => ({ runs: this.#sorted(), hasOlder: Boolean(this.#older), error }));
  }

  #sorted(): Run[] {
    return [...this.#rows.values()].sort(newestFirst);
  }
}
