import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import { Runwire, RunwireError, type SubscriptionEvent, type Updates } from "../src/index.ts";
import { FakeServer, type Message, settle } from "./support/fake-server.ts";

// Vitest fails the run for whatever rejects without a catch, here as everywhere.

function run(id: string, revision = 1): Message {
  const times = { createdAt: "2026-11-23T20:00:00.000Z", updatedAt: "2026-11-23T20:00:00.000Z" };
  return { id, taskIdentifier: "t", status: "EXECUTING", revision, ...times } as unknown as Message;
}

/** What the browser is asked to tell, and not told to stop telling. */
class Page extends EventTarget {
  listeners = 0;

  override addEventListener(...given: Parameters<EventTarget["addEventListener"]>): void {
    this.listeners += 1;
    super.addEventListener(...given);
  }

  override removeEventListener(...given: Parameters<EventTarget["removeEventListener"]>): void {
    this.listeners -= 1;
    super.removeEventListener(...given);
  }
}

describe("with a server that does what it likes", () => {
  let server: FakeServer;
  let page: Page;

  beforeEach(() => {
    vi.useFakeTimers();
    page = new Page();
    vi.stubGlobal("window", page);
    vi.stubGlobal("document", page);
    server = new FakeServer();
  });
  afterEach(() => {
    vi.unstubAllGlobals();
    vi.restoreAllMocks();
    vi.useRealTimers();
  });

  function nothingIsLeft(): void {
    expect(vi.getTimerCount()).toBe(0);
    expect(page.listeners).toBe(0);
    expect(server.sockets.filter(({ isClosed }) => !isClosed)).toEqual([]);
    expect(server.streams.filter(({ isClosed }) => !isClosed)).toEqual([]);
  }

  test.each([1, 2, 3, 4, 5, 6, 7, 8])("nothing is left of a client (seed %i)", async (seed) => {
    const random = generator(seed);
    const pick = <T>(among: readonly T[]): T => among[Math.floor(random() * among.length)] as T;
    vi.spyOn(Math, "random").mockImplementation(random);
    vi.stubGlobal("reportError", () => undefined);
    const clients: Runwire[] = [];
    const readers: Promise<unknown>[] = [];
    const listened: Updates[] = [];
    const iterators: AsyncIterator<SubscriptionEvent>[] = [];
    const token = () => {
      const chance = random();
      if (chance < 0.05) throw new TypeError("fetch failed");
      if (chance < 0.1) return Promise.reject(new TypeError("fetch failed"));
      if (chance < 0.12) return new Promise<string>(() => undefined);
      return "t";
    };
    const newest = (): Runwire => {
      const before = clients.at(-1);
      if (before && before.connection !== "closed") return before;
      const deadline = random() < 0.3 ? { deadline: 20 } : {};
      const made = new Runwire({ url: "http://test", token, ...server.options, ...deadline });
      made.onConnection(() => {
        if (random() < 0.05) throw new Error("the listener's own mistake");
      });
      clients.push(made);
      return made;
    };
    let subs = 0;
    const subscribe = (): Updates => {
      subs += 1;
      return pick([
        () => newest().subscribeToRun(`run_${subs}`, { streams: { "*": { from: pick(["start", "latest"]) } } }),
        () => newest().subscribeToRunsWithTag("x", { toText: () => pick([""]) }),
        () => newest().subscribeToBatch("batch_b"),
        () => newest().subscribeToRuns(),
      ])();
    };
    const say = (messages: Message[]): void => {
      const socket = server.sockets.at(-1);
      if (socket && !socket.isClosed) socket.send_(messages);
      const stream = server.streams.at(-1);
      if (stream?.isOpen) stream.send(messages);
    };
    const deeds: (() => unknown)[] = [
      () => listened.push(subscribe()) && listened.at(-1)?.on("run", () => undefined),
      () => listened.at(-1)?.on("freshness", () => random() < 0.2 && listened.pop()?.close()),
      () => listened.at(-1)?.on("error", () => random() < 0.5 && subscribe().on("done", () => undefined)),
      () => listened.splice(Math.floor(random() * listened.length), 1)[0]?.close(),
      () => readers.push(read(subscribe(), pick(["read", "break", "throw"]))),
      () => {
        const iterator = subscribe()[Symbol.asyncIterator]();
        readers.push(iterator.next().catch(known));
        iterators.push(iterator);
      },
      () => readers.push(iterators.pop()?.return?.() ?? Promise.resolve()),
      () => random() < 0.1 && clients.at(-1)?.close(),
      () => server.sockets.at(-1)?.open(),
      () => server.streams.at(-1)?.open(),
      () => say([{ type: "ready", protocol: "runwire.v1", epoch: pick(["e1", "e1", "e2"]), heartbeat: 15 }]),
      () => say([{ type: "snapshot", sub: `s${1 + Math.floor(random() * 20)}`, runs: [run("run_x")], more: false }]),
      () => say([{ type: "chunks", run: "run_x", stream: "log", seq: Math.floor(random() * 3), data: ["a"] }]),
      () => say([{ type: "patch", run: "run_x", from: 1, revision: 3, set: {} }]),
      () => say([{ type: "done", sub: `s${1 + Math.floor(random() * 20)}` }]),
      () => say([{ type: "error", sub: `s${1 + Math.floor(random() * 20)}`, code: "not_found", message: "" }]),
      () => say([{ type: "token_expiring", in: 30 }]),
      () => server.sockets.at(-1)?.isClosed === false && server.sockets.at(-1)?.sendText("garbage"),
      () => {
        const code = pick([1000, 1006, 4001, 4003, 4010, 4401, 4404]);
        if (server.sockets.at(-1)?.isClosed === false) server.sockets.at(-1)?.lose(code, "");
      },
      () => server.streams.at(-1)?.lose(),
      () => server.streams.at(-1)?.isOpen === false && server.streams.at(-1)?.refuse(pick([401, 404, 503])),
      () => void (server.passesEvents = random() < 0.7),
      () => void (server.passesSockets = random() < 0.5),
      () => page.dispatchEvent(new Event("online")),
      () => random() < 0.1 && vi.setSystemTime(Date.now() + 600_000),
    ];
    for (let turns = 0; turns < 400; turns += 1) {
      pick(deeds)();
      await vi.advanceTimersByTimeAsync(pick([0, 0, 10, 500, 5_000, 20_000]));
    }
    for (const client of clients) client.close();
    await vi.advanceTimersByTimeAsync(1_000);
    nothingIsLeft();
    // Every iteration is over: none hangs.
    await Promise.all(readers);
  });

  test("an iteration that nobody reads any more ends by itself, and is unsubscribed from", async () => {
    const runwire = new Runwire({ url: "http://test", token: "t", ...server.options });
    const iterator = runwire.subscribeToRun("run_a", { streams: ["log"] })[Symbol.asyncIterator]();
    void iterator.next();
    await server.accept();
    await server.send({ type: "snapshot", sub: "s1", runs: [run("run_a")], more: false });
    for (let seq = 0; seq < 11_000; seq += 1_000) {
      const data = Array.from({ length: 1_000 }, () => "x");
      await server.send({ type: "chunks", run: "run_a", stream: "log", seq, data });
    }
    expect(server.sockets[0]?.take()).toEqual([{ type: "unsubscribe", sub: "s1" }]);
    await vi.advanceTimersByTimeAsync(6_000);
    nothingIsLeft();
  });

  test("an iteration ends when its client is closed in the middle", async () => {
    const runwire = new Runwire({ url: "http://test", token: "t", ...server.options });
    const reading = read(runwire.subscribeToRun("run_a"), "read");
    await server.accept();
    await server.send({ type: "snapshot", sub: "s1", runs: [run("run_a")], more: false });
    runwire.close();
    expect(await reading).toBe("over");
    const late = runwire.subscribeToRun("run_b");
    expect(await read(late, "read")).toBeInstanceOf(RunwireError);
    nothingIsLeft();
  });

  test("whoever is told of a loss may close, subscribe or unsubscribe there and then", async () => {
    server.passesEvents = true;
    for (const carrier of ["socket", "events"] as const) {
      const accept = () => (carrier === "socket" ? server.accept() : server.acceptStream());
      const lose = () =>
        carrier === "socket" ? server.sockets.at(-1)?.lose(1006, "") : server.streams.at(-1)?.lose();
      const runwire = new Runwire({ url: "http://test", token: "t", carrier, ...server.options });
      const updates = runwire.subscribeToRun("run_a");
      let isOver = false;
      updates.on("freshness", ({ freshness }) => {
        if (freshness !== "connecting" || isOver) return;
        isOver = true;
        runwire.subscribeToRun("run_b").on("run", () => undefined);
        updates.close();
      });
      await accept();
      lose();
      // What began in that moment is asked for like everything else.
      expect((await accept()).map(({ to }) => to)).toEqual([{ run: "run_b" }]);
      runwire.close();
      await settle();
      nothingIsLeft();
    }
  });

  test("a client that is closed by whoever hears of another request opens none", async () => {
    server.passesEvents = true;
    const runwire = new Runwire({ url: "http://test", token: "t", carrier: "events", ...server.options });
    const updates = runwire.subscribeToRun("run_a");
    updates.on("freshness", ({ freshness }) => freshness === "connecting" && runwire.close());
    await server.acceptStream();
    runwire.subscribeToRun("run_b").on("run", () => undefined);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(server.streams).toHaveLength(1);
    nothingIsLeft();
  });

  test("text that the application cannot make ends that subscription, and no other", async () => {
    const runwire = new Runwire({ url: "http://test", token: "t", ...server.options });
    const errors: unknown[] = [];
    const told: unknown[] = [];
    const toText = () => {
      throw new TypeError("not this chunk");
    };
    const streams = { log: { as: "text" } } as const;
    runwire.subscribeToRun("run_a", { streams, toText }).on("error", (error) => void errors.push(error));
    runwire.subscribeToRun("run_a", { streams: ["log"] }).on("chunk", ({ chunk }) => void told.push(chunk));
    await server.accept();
    for (const sub of ["s1", "s2"]) {
      await server.send({ type: "snapshot", sub, runs: [run("run_a")], more: false });
    }
    await server.send({ type: "chunks", run: "run_a", stream: "log", seq: 0, data: ["a"] });
    expect(errors).toMatchObject([{ name: "SubscriptionError", cause: expect.any(TypeError) }]);
    expect(told).toEqual(["a"]);
    expect(server.sockets[0]?.take()).toEqual([{ type: "unsubscribe", sub: "s1" }]);
    runwire.close();
    nothingIsLeft();
  });
});

describe("with a real server", () => {
  test("fifty clients that come and go leave no request and no timer", async () => {
    // No back-off.
    const random = vi.spyOn(Math, "random").mockReturnValue(0);
    const ready = { type: "ready", protocol: "runwire.v1", epoch: "e1", heartbeat: 15 };
    const served = { requests: 0, open: 0 };
    const before = timers();
    const http = createServer((request: IncomingMessage, response: ServerResponse) => {
      served.requests += 1;
      served.open += 1;
      response.on("close", () => void (served.open -= 1));
      request.resume();
      const at = served.requests % 5;
      if (at === 0) return void request.socket.destroy();
      if (at === 1) return void response.writeHead(503, { connection: "close" }).end();
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write(`data: ${JSON.stringify([ready])}\n\n`);
      response.write(`data: ${JSON.stringify([{ type: "snapshot", sub: "s1", runs: [run("run_a")], more: false }])}\n\n`);
      if (at === 2) setTimeout(() => request.socket.destroy(), 5);
    });
    await new Promise<void>((listening) => void http.listen(0, "127.0.0.1", listening));
    const url = `http://127.0.0.1:${(http.address() as AddressInfo).port}`;
    for (let round = 0; round < 10; round += 1) {
      const clients = Array.from({ length: 5 }, () => new Runwire({ url, token: "t", carrier: "events" }));
      const reading = clients.map((client, at) =>
        read(client.subscribeToRun("run_a"), at % 2 ? "break" : "throw"),
      );
      await Promise.all(reading);
      const hanging = clients.map((client) => read(client.subscribeToRun("run_a"), "read"));
      for (const client of clients) client.close();
      await Promise.all(hanging);
    }
    await vi.waitFor(() => expect(served.open).toBe(0), 30_000);
    expect(served.requests).toBeGreaterThanOrEqual(50);
    // Node keeps connections without a request for a while.
    http.closeAllConnections();
    await new Promise<void>((closed) => void http.close(() => closed()));
    await vi.waitFor(() => expect(timers()).toBeLessThanOrEqual(before), 30_000);
    random.mockRestore();
  });
});

/** Timers of this process; the test runner may have some of its own. */
function timers(): number {
  return process.getActiveResourcesInfo().filter((name) => name === "Timeout").length;
}

async function read(updates: Updates, how: "read" | "break" | "throw"): Promise<unknown> {
  try {
    for await (const event of updates) {
      if (how === "break" && event.type === "run") break;
      if (how === "throw" && event.type === "run") throw new TypeError("the loop's own");
    }
    return "over";
  } catch (error) {
    return known(error);
  }
}

function known(error: unknown): unknown {
  if (error instanceof RunwireError || error instanceof TypeError) return error;
  throw error;
}

/** Random numbers that are the same in every run (a linear congruential generator). */
function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 1_664_525 + 1_013_904_223) % 2 ** 32;
    return state / 2 ** 32;
  };
}
