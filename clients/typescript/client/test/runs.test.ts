import { expect, test } from "vitest";

import { HeldRuns, runOf } from "../src/runs.ts";
import { RUN_STATUSES } from "../src/codes.ts";
import type { JsonObject, Patch, WireRun } from "../src/wire.ts";

function run(revision: number, more: JsonObject = {}): WireRun {
  const at = "2026-11-23T20:00:00.000Z";
  const known = { id: "run_a", taskIdentifier: "t", createdAt: at, updatedAt: at };
  return { ...known, status: "EXECUTING", revision, ...more };
}

function patch(from: number, revision: number, more: Partial<Patch> = {}): Patch {
  return { type: "patch", run: "run_a", from, revision, set: {}, ...more };
}

test("a patch that only overlaps what is held is not applied: the run is asked for, once", () => {
  const runs = new HeldRuns();
  runs.put(run(5));
  expect(runs.patch(patch(4, 6))).toBe("refetch");
  expect(runs.patch(patch(6, 7))).toBe("refetching");
  expect(runs.get("run_a")?.revision).toBe(5);
  expect(runs.put(run(7))).toBe(true);
  expect(runs.patch(patch(7, 8))).toBe("news");
});

test("a run that was asked for on a socket that is gone is asked for again on the next", () => {
  const runs = new HeldRuns();
  expect(runs.patch(patch(1, 2))).toBe("refetch");
  runs.disconnect();
  expect(runs.patch(patch(1, 2))).toBe("refetch");
});

test("a patch sets whole metadata before it applies operations to it", () => {
  const runs = new HeldRuns();
  runs.put(run(1, { metadata: { old: true } }));
  const operations = [{ type: "increment", key: "n", value: 1 }];
  runs.patch(patch(1, 2, { set: { metadata: { n: 1 } }, metadata: operations }));
  expect(runs.get("run_a")?.["metadata"]).toEqual({ n: 2 });
});

test("metadata operations that cannot be applied cost reading the run again", () => {
  const runs = new HeldRuns();
  runs.put(run(1, { metadata: { text: "x" } }));
  const operations = [{ type: "set", key: "$.text.deeper", value: 1 }];
  expect(runs.patch(patch(1, 2, { metadata: operations }))).toBe("refetch");
  expect(runs.get("run_a")?.revision).toBe(1);
});

test("after a gap the next state is taken whatever its revision", () => {
  const runs = new HeldRuns();
  runs.put(run(9));
  expect(runs.put(run(3))).toBe(false);
  runs.doubt("run_a");
  expect(runs.patch(patch(9, 10))).toBe("refetch");
  expect(runs.put(run(3))).toBe(true);
  expect(runs.get("run_a")?.revision).toBe(3);
});

test("every status is exactly one of queued, executing, waiting and completed", () => {
  for (const status of RUN_STATUSES) {
    const { isQueued, isExecuting, isWaiting, isCompleted, ...rest } = runOf(run(1, { status }));
    expect([isQueued, isExecuting, isWaiting, isCompleted].filter(Boolean)).toHaveLength(1);
    const outcomes = [rest.isSuccess, rest.isFailed, rest.isCancelled].filter(Boolean);
    expect(outcomes).toHaveLength(isCompleted ? 1 : 0);
  }
});
