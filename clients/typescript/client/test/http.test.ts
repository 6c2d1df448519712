import { expect, test, vi } from "vitest";

import { NotFoundError, Runwire, RunwireError, ServerError } from "../src/index.ts";

interface Call {
  url: string;
  init: RequestInit & { headers: Record<string, string> };
}

function client(answers: (Response | Error)[], token: string | (() => string) = "t") {
  const calls: Call[] = [];
  const fetch = ((url: string, init: Call["init"]) => {
    calls.push({ url, init });
    const answer = answers.shift();
    return answer instanceof Response ? Promise.resolve(answer) : Promise.reject(answer);
  }) as unknown as typeof globalThis.fetch;
  const runwire = new Runwire({ url: "http://test/", token, fetch });
  return { runwire, calls };
}

function json(body: unknown, status = 200, headers = {}): Response {
  return new Response(JSON.stringify(body), { status, headers });
}

test("a trigger sends the payload as JSON text and returns the run's own token", async () => {
  const { runwire, calls } = client([json({ id: "run_a" }, 200, { "x-trigger-jwt": "jwt" })]);
  const triggered = await runwire.trigger("my/task", { n: 1 }, { tags: ["a"] });
  expect(triggered).toEqual({ id: "run_a", isCached: false, publicAccessToken: "jwt" });
  expect(calls[0]?.url).toBe("http://test/api/v1/tasks/my%2Ftask/trigger");
  expect(calls[0]?.init.headers["authorization"]).toBe("Bearer t");
  expect(JSON.parse(String(calls[0]?.init.body))).toEqual({
    payload: '{"n":1}',
    options: { tags: ["a"] },
  });
});

test("what fails on the way is repeated with the same request key, then thrown", async () => {
  vi.spyOn(Math, "random").mockReturnValue(0);
  const away = new TypeError("fetch failed");
  const { runwire, calls } = client([away, json({ error: "later" }, 503), json({ id: "run_a" })]);
  await runwire.trigger("t");
  const keys = calls.map(({ init }) => init.headers["x-trigger-request-idempotency-key"]);
  expect(new Set(keys).size).toBe(1);
  const gone = client([away, away, away]);
  await expect(gone.runwire.retrieve("run_a")).rejects.toBeInstanceOf(RunwireError);
  const broken = client([json({}, 500), json({}, 500), json({ error: "no", code: "internal" }, 500)]);
  await expect(broken.runwire.cancel("run_a")).rejects.toBeInstanceOf(ServerError);
  vi.restoreAllMocks();
});

test("a refusal is a typed error with the server's words", async () => {
  const { runwire, calls } = client([json({ error: "no such run", code: "not_found" }, 404)]);
  const refusal = await runwire.retrieve("run_x").catch((error: unknown) => error);
  expect(refusal).toBeInstanceOf(NotFoundError);
  expect(refusal).toMatchObject({ message: "no such run", code: "not_found", status: 404 });
  expect(calls).toHaveLength(1);
});

test("a token that ended is replaced once", async () => {
  const token = vi.fn((fresh?: boolean) => (fresh ? "new" : "old"));
  const { runwire, calls } = client([json({}, 401), json({ id: "run_b" })], token);
  expect(await runwire.replay("run_a")).toEqual({ id: "run_b" });
  expect(calls.map(({ init }) => init.headers["authorization"])).toEqual(["Bearer old", "Bearer new"]);
});

test("a list says its filters in the query and its pages by cursor", async () => {
  const { runwire, calls } = client([json({ data: [], pagination: { next: "n" } })]);
  const page = await runwire.list({ status: ["FAILED", "CRASHED"], tag: ["user:1"], parent: "run_a", size: 50 });
  expect(page).toEqual({ runs: [], next: "n", previous: null });
  const query = new URL(calls[0]?.url ?? "").searchParams;
  expect(query.get("filter[status]")).toBe("FAILED,CRASHED");
  expect(query.get("filter[tag]")).toBe("user:1");
  expect(query.get("filter[parent]")).toBe("run_a");
  expect(query.get("page[size]")).toBe("50");
});

test("input is sent once, whatever is repeated", async () => {
  vi.spyOn(Math, "random").mockReturnValue(0);
  const { runwire, calls } = client([json({}, 503), json({ ok: true })]);
  await runwire.sendInput("run_a", "my/answers", { approved: true });
  expect(calls[0]?.url).toBe("http://test/realtime/v1/streams/run_a/input/my%2Fanswers");
  expect(calls.map(({ init }) => String(init.body))).toEqual(['{"data":{"approved":true}}', '{"data":{"approved":true}}']);
  const parts = calls.map(({ init }) => init.headers["x-part-id"]);
  expect(parts[0]).toMatch(/^[0-9a-f]{32}$/);
  expect(new Set(parts).size).toBe(1);
  vi.restoreAllMocks();
});

test("a wait token is completed with a value or with none", async () => {
  const { runwire, calls } = client([json({ success: true }), json({ success: true })]);
  await runwire.completeToken("waitpoint_a", { status: "approved" });
  await runwire.completeToken("waitpoint_b");
  expect(calls.map(({ url }) => url)).toEqual([
    "http://test/api/v1/waitpoints/tokens/waitpoint_a/complete",
    "http://test/api/v1/waitpoints/tokens/waitpoint_b/complete",
  ]);
  expect(calls.map(({ init }) => JSON.parse(String(init.body)))).toEqual([
    { data: { status: "approved" } },
    { data: null },
  ]);
});
