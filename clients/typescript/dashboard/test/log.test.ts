import { expect, test } from "vitest";

import { entryOf, urgency } from "../src/log.ts";

test("a line is read as it was written", () => {
  const time = "2026-11-24T20:00:00.000Z";
  const chunk = { time, level: "warn", message: "late", logger: "app", attributes: { order: 7 } };
  expect(entryOf({ seq: 3, chunk, attempt: 2 })).toEqual({
    seq: 3,
    attempt: 2,
    time,
    level: "warn",
    message: "late",
    logger: "app",
    attributes: '{"order":7}',
  });
});

test.each([
  ["plain text", "plain text"],
  [null, "null"],
  [[1], "[1]"],
  [{ level: "shout", message: { a: 1 }, time: "never" }, '{"a":1}'],
  [{}, ""],
])("what is no line is shown as well as it can be: %j", (chunk, message) => {
  const entry = entryOf({ seq: 0, chunk });
  expect(entry).toMatchObject({ message, level: "info", time: "", attributes: "", attempt: null });
});

test("levels go from debug to error", () => {
  const levels = (["error", "debug", "warn", "info", "log"] as const).toSorted(
    (one, other) => urgency(one) - urgency(other),
  );
  expect(levels).toEqual(["debug", "info", "log", "warn", "error"]);
});
