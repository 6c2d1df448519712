import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import { Runwire, type RunwireOptions, type Updates } from "../src/index.ts";
import { FakeServer, type Message, settle } from "./support/fake-server.ts";

let server: FakeServer;
let runwire: Runwire;
let page: EventTarget & { visibilityState?: string };

function client(options: Partial<RunwireOptions> = {}): Runwire {
  return new Runwire({ url: "http://test", token: "t", ...server.options, ...options });
}

beforeEach(() => {
  vi.useFakeTimers();
  page = new EventTarget();
  vi.stubGlobal("window", page);
  vi.stubGlobal("document", page);
  server = new FakeServer();
  runwire = client();
});
afterEach(() => {
  runwire.close();
  vi.unstubAllGlobals();
  vi.useRealTimers();
});

/** Time in which no timer of the page runs. */
function sleep(seconds: number): void {
  vi.setSystemTime(Date.now() + seconds * 1000);
}

const RUN = {
  id: "run_a",
  taskIdentifier: "t",
  status: "EXECUTING",
  revision: 1,
  createdAt: "2026-11-23T20:00:00.000Z",
  updatedAt: "2026-11-23T20:00:00.000Z",
};
const BEGUN: Message[] = [
  { type: "snapshot", sub: "s1", runs: [RUN], cursor: "c1", more: false },
  { type: "live", sub: "s1" },
];

async function followed(options: Partial<RunwireOptions> = {}): Promise<Updates> {
  runwire = client(options);
  const updates = runwire.subscribeToRun("run_a", { streams: ["log"] });
  updates.on("run", () => undefined);
  await server.accept();
  await server.send(...BEGUN);
  return updates;
}

function last() {
  const socket = server.sockets.at(-1);
  if (!socket) throw new Error("there is no socket");
  return socket;
}

describe("a page that wakes from a long sleep", () => {
  test("opens another socket within five seconds, without anybody telling it", async () => {
    await followed();
    sleep(600);
    await vi.advanceTimersByTimeAsync(5_000);
    expect(server.sockets).toHaveLength(2);
    expect(server.sockets[0]?.isClosed).toBe(true);
    expect((await server.accept())[0]).toMatchObject({ cursor: "c1" });
  });

  test.each(["online", "visibilitychange", "pageshow", "resume"])(
    "opens another socket at once when the browser says %s",
    async (name) => {
      await followed();
      sleep(600);
      page.dispatchEvent(new Event(name));
      await settle();
      expect(server.sockets).toHaveLength(2);
      expect((await server.accept())[0]).toMatchObject({ cursor: "c1" });
      expect(runwire.connection).toBe("live");
    },
  );

  test("asks for a fresh token first, for the old one may have ended", async () => {
    const token = vi.fn((fresh: boolean) => Promise.resolve(fresh ? "new" : "old"));
    await followed({ token });
    sleep(600);
    page.dispatchEvent(new Event("online"));
    await settle();
    last().open();
    expect(last().takeAll()).toEqual([{ type: "auth", token: "new" }]);
    expect(token.mock.calls).toEqual([[false], [true]]);
  });

  test("and whose token is refused all the same asks once more, then says so", async () => {
    const errors: unknown[] = [];
    const updates = await followed({ token: () => "ended" });
    updates.on("error", (error) => void errors.push(error));
    sleep(600);
    page.dispatchEvent(new Event("online"));
    await server.close(4401, "the token has expired");
    expect(errors).toEqual([]);
    await server.close(4401, "the token has expired");
    expect(errors).toMatchObject([{ name: "UnauthorizedError", status: 401 }]);
  });

  test("goes on where it was, or is told of a gap", async () => {
    const told: unknown[] = [];
    const updates = await followed();
    updates.on("chunk", ({ chunk }) => void told.push(chunk));
    updates.on("gap", ({ reason }) => void told.push(reason));
    const chunks = { type: "chunks", run: "run_a", stream: "log", attempt: 1 };
    await server.send({ ...chunks, seq: 0, data: ["a"] });
    sleep(600);
    page.dispatchEvent(new Event("online"));
    expect((await server.accept())[0]).toMatchObject({ streams: { log: { from: 1 } } });
    await server.send({ type: "live", sub: "s1" }, { ...chunks, seq: 0, data: ["a", "b"] });
    sleep(90_000);
    page.dispatchEvent(new Event("online"));
    await server.accept();
    await server.send(
      { type: "gap", sub: "s1", reason: "retention", run: "run_a", stream: "log", next: 9 },
      { ...chunks, seq: 9, data: ["z"] },
    );
    expect(told).toEqual(["a", "b", "retention", "z"]);
  });

  test("does not count the sleep as time in which the server was away", async () => {
    const errors: unknown[] = [];
    const updates = await followed({ deadline: 60 });
    updates.on("error", (error) => void errors.push(error));
    // As when a lid is closed: the network goes first.
    server.passesSockets = false;
    last().lose(1006, "");
    await settle();
    sleep(600);
    server.passesSockets = true;
    await vi.advanceTimersByTimeAsync(5_000);
    await server.accept();
    expect(errors).toEqual([]);
    expect(runwire.connection).toBe("live");
  });
});

describe("a page that looked away for a moment", () => {
  test("asks for a sign of life, and goes on when there is one", async () => {
    await followed();
    sleep(20);
    page.dispatchEvent(new Event("visibilitychange"));
    expect(last().take()).toEqual([{ type: "ping" }]);
    await server.send({ type: "pong" });
    await vi.advanceTimersByTimeAsync(30_000);
    expect(server.sockets).toHaveLength(1);
    expect(last().isClosed).toBe(false);
  });

  test("asks nothing when it is hidden", async () => {
    await followed();
    page.visibilityState = "hidden";
    page.dispatchEvent(new Event("visibilitychange"));
    expect(last().take()).toEqual([]);
  });

  test("does not take a heartbeat that waited for it for a loss", async () => {
    await followed();
    sleep(60);
    // The page's messages come before its timers.
    await server.send({ type: "hb", t: "" });
    await vi.advanceTimersByTimeAsync(5_000);
    expect(server.sockets).toHaveLength(1);
    expect(last().take()).toEqual([{ type: "ping" }]);
  });
});

test("a clock that is set back delays nothing", async () => {
  await followed();
  vi.setSystemTime(Date.now() - 86_400_000);
  await vi.advanceTimersByTimeAsync(45_000);
  expect(server.sockets.length).toBeGreaterThan(1);
  expect(server.sockets[0]?.isClosed).toBe(true);
});

test("nobody listens to the page once nothing is followed", async () => {
  const added = vi.spyOn(page, "addEventListener");
  const removed = vi.spyOn(page, "removeEventListener");
  const updates = await followed();
  const names = added.mock.calls.map(([name]) => name);
  expect(names).not.toHaveLength(0);
  updates.close();
  expect(removed.mock.calls.map(([name]) => name)).toEqual(names);
  await vi.advanceTimersByTimeAsync(6_000);
  expect(vi.getTimerCount()).toBe(0);
});
