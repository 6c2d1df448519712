import { expect, test } from "vitest";

import { credentialOf } from "../src/session.ts";
import { parseRoute, runLink, runsLink, schedulesLink, triggerLink } from "../src/route.ts";

test("links lead back to where they came from", () => {
  expect(parseRoute(runLink("run_a"))).toEqual({ page: "run", id: "run_a" });
  expect(parseRoute(triggerLink("a/b c"))).toEqual({ page: "trigger", task: "a/b c" });
  expect(parseRoute(triggerLink())).toEqual({ page: "trigger", task: null });
  expect(parseRoute(schedulesLink())).toEqual({ page: "schedules" });
  const filter = { status: "FAILED", task: "t", tag: "user:1&x=<b>" };
  expect(parseRoute(runsLink(filter))).toEqual({ page: "runs", filter });
});

test("a broken fragment is the list of runs, or a run that does not exist", () => {
  const none = { status: "", task: "", tag: "" };
  expect(parseRoute("")).toEqual({ page: "runs", filter: none });
  expect(parseRoute("#/nowhere")).toEqual({ page: "runs", filter: none });
  expect(parseRoute("#/runs/%E0%A4%A")).toEqual({ page: "run", id: "%E0%A4%A" });
});

test("what is pasted to sign in is a link, a code or a key", () => {
  expect(credentialOf(" http://127.0.0.1:8420/#sign-in=abc-1 ")).toEqual({ code: "abc-1" });
  expect(credentialOf("abc-1")).toEqual({ code: "abc-1" });
  expect(credentialOf("tr_dev_sk_x")).toEqual({ apiKey: "tr_dev_sk_x" });
});
