import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import {
  ForbiddenError,
  MalformedError,
  NotFoundError,
  Runwire,
  type RunwireOptions,
  TooLargeError,
  UnauthorizedError,
  type Updates,
} from "../src/index.ts";
import { closeCodeOf } from "../src/events-carrier.ts";
import { FakeServer, type Message, settle } from "./support/fake-server.ts";
import { vectors } from "./support/samples.ts";

let server: FakeServer;
let runwire: Runwire;

function client(options: Partial<RunwireOptions> = {}): Runwire {
  return new Runwire({ url: "http://test/base/", token: "t", ...server.options, ...options });
}

beforeEach(() => {
  vi.useFakeTimers();
  server = new FakeServer();
  server.passesEvents = true;
  server.passesSockets = false;
  runwire = client();
});
afterEach(() => {
  runwire.close();
  vi.useRealTimers();
});

function begun(sub = "s1", id = "run_a"): Message[] {
  const times = { createdAt: "2026-11-23T20:00:00.000Z", updatedAt: "2026-11-23T20:00:00.000Z" };
  const run = { id, taskIdentifier: "t", status: "EXECUTING", revision: 1, ...times };
  return [
    { type: "snapshot", sub, runs: [run], cursor: `c-${sub}`, more: false },
    { type: "live", sub },
  ];
}

function chunks(seq: number, data: unknown[]): Message {
  return { type: "chunks", run: "run_a", stream: "answer", seq, data, attempt: 1 };
}

async function sends(...messages: Message[]): Promise<void> {
  server.streams.at(-1)?.send(messages);
  await settle();
}

function quiet(updates: Updates): Updates {
  updates.on("run", () => undefined);
  return updates;
}

describe("where websockets do not pass", () => {
  test("a run is read by server-sent events after two tries", async () => {
    const told: unknown[] = [];
    const updates = runwire.subscribeToRun("run_a", { streams: { answer: { as: "text" } } });
    updates.on("text", ({ text }) => void told.push(text));
    updates.on("done", () => void told.push("done"));
    expect(await server.acceptStream()).toEqual([
      {
        type: "subscribe",
        sub: "s1",
        to: { run: "run_a" },
        mode: "latest",
        streams: { answer: { from: "start", as: "text" } },
      },
    ]);
    expect(server.sockets).toHaveLength(2);
    const [stream] = server.streams;
    expect(stream?.url).toBe("http://test/base/realtime/v1/events");
    expect(stream?.headers).toMatchObject({
      authorization: "Bearer t",
      "content-type": "application/json",
    });
    expect(runwire.connection).toBe("live");
    await sends(...begun(), chunks(0, ["é", "b"]));
    expect(updates.freshness).toBe("live");
    await sends({ type: "done", sub: "s1" });
    expect(stream?.isClosed).toBe(true);
    expect(told).toEqual(["éb", "done"]);
    expect(runwire.connection).toBe("idle");
    expect(server.streams).toHaveLength(1);
  });

  test("nothing is live before the server has said so", async () => {
    const updates = quiet(runwire.subscribeToRun("run_a"));
    const stream = await server.currentStream();
    expect(runwire.connection).toBe("reconnecting");
    stream.open();
    await settle();
    expect(runwire.connection).toBe("reconnecting");
    expect(updates.freshness).toBe("syncing");
  });

  test("the carriers take turns while neither of them passes", async () => {
    server.passesEvents = false;
    const order: string[] = [];
    const options = server.options;
    runwire = client({
      WebSocket: class extends (options.WebSocket as never as new (...a: unknown[]) => object) {
        constructor(...given: unknown[]) {
          super(...given);
          order.push("socket");
        }
      } as never as NonNullable<RunwireOptions["WebSocket"]>,
      fetch: ((...given: Parameters<typeof fetch>) => {
        order.push("events");
        return options.fetch(...given);
      }) as typeof fetch,
    });
    quiet(runwire.subscribeToRun("run_a"));
    await vi.advanceTimersByTimeAsync(120_000);
    expect(order.slice(0, 7)).toEqual([
      "socket",
      "socket",
      "events",
      "socket",
      "events",
      "socket",
      "events",
    ]);
  });

  test("a lost event stream is followed by one try of the socket, and goes on where it was", async () => {
    const told: unknown[] = [];
    const updates = runwire.subscribeToRun("run_a", { streams: ["answer"] });
    updates.on("chunk", ({ chunk }) => void told.push(chunk));
    await server.acceptStream();
    await sends(...begun(), chunks(0, ["a", "b"]));
    server.streams[0]?.lose();
    await settle();
    expect(updates.freshness).toBe("connecting");
    expect((await server.acceptStream())[0]).toMatchObject({
      cursor: "c-s1",
      streams: { answer: { from: 2 } },
    });
    expect(server.sockets).toHaveLength(3);
    await sends({ type: "live", sub: "s1" }, chunks(1, ["b", "c"]));
    expect(told).toEqual(["a", "b", "c"]);
  });

  test("an answer that ends although something is followed is asked for again", async () => {
    quiet(runwire.subscribeToRun("run_a"));
    await server.acceptStream();
    await sends(...begun());
    server.streams[0]?.end();
    await settle();
    expect((await server.acceptStream())[0]).toMatchObject({ cursor: "c-s1" });
  });

  test("a websocket that passes by then is what carries it from there on", async () => {
    quiet(runwire.subscribeToRun("run_a"));
    await server.acceptStream();
    await sends(...begun());
    server.passesSockets = true;
    server.streams[0]?.lose();
    expect((await server.accept())[0]).toMatchObject({ type: "subscribe", cursor: "c-s1" });
    expect(server.streams).toHaveLength(1);
  });

  test("one page has one event stream, whatever it follows", async () => {
    const first = quiet(runwire.subscribeToRun("run_a"));
    quiet(runwire.subscribeToRun("run_b"));
    expect(await server.acceptStream()).toHaveLength(2);
    await sends(...begun("s1", "run_a"), ...begun("s2", "run_b"));
    // Further ones, in one turn, make it ask again for all of them at once.
    quiet(runwire.subscribeToBatch("batch_c"));
    quiet(runwire.subscribeToRuns());
    const asked = await server.acceptStream();
    expect(asked.map(({ sub, cursor }) => [sub, cursor])).toEqual([
      ["s1", "c-s1"],
      ["s2", "c-s2"],
      ["s3", undefined],
      ["s4", undefined],
    ]);
    first.close();
    expect((await server.acceptStream()).map(({ sub }) => sub)).toEqual(["s2", "s3", "s4"]);
    expect(server.streams.map(({ isClosed }) => isClosed)).toEqual([true, true, false]);
    expect(server.sockets).toHaveLength(2);
  });

  test("the last subscription to leave ends the event stream, and the next one needs no socket", async () => {
    const updates = quiet(runwire.subscribeToRun("run_a"));
    await server.acceptStream();
    updates.close();
    await settle();
    expect(server.streams[0]?.isClosed).toBe(true);
    expect(runwire.connection).toBe("idle");
    quiet(runwire.subscribeToRun("run_b"));
    await server.acceptStream();
    expect(server.sockets).toHaveLength(2);
  });

  test("a run that came with a patch it does not fit is asked for whole", async () => {
    const told: number[] = [];
    runwire.subscribeToRun("run_a").on("run", ({ run }) => void told.push(run.revision));
    await server.acceptStream();
    await sends(...begun());
    await sends({ type: "patch", run: "run_a", from: 4, revision: 5, set: {} });
    const asked = await server.acceptStream();
    expect(asked[0]).not.toHaveProperty("cursor");
    const [snapshot, live] = begun();
    const [run] = snapshot?.["runs"] as Message[];
    await sends({ ...snapshot, type: "snapshot", runs: [{ ...run, revision: 5 }] }, live as Message);
    expect(told).toEqual([1, 5]);
  });

  test("another history is read from its beginning, though the old one was asked for", async () => {
    const told: unknown[] = [];
    const updates = runwire.subscribeToRun("run_a", { streams: ["answer"] });
    updates.on("gap", ({ reason }) => void told.push(reason));
    updates.on("chunk", ({ chunk }) => void told.push(chunk));
    await server.acceptStream("e1");
    await sends(...begun(), chunks(0, ["a", "b"]));
    server.streams[0]?.lose();
    expect((await server.acceptStream("e2"))[0]).toMatchObject({ cursor: "c-s1" });
    const asked = await server.acceptStream("e2");
    expect(asked[0]).not.toHaveProperty("cursor");
    expect(asked[0]).toMatchObject({ streams: { answer: { from: 0 } } });
    await sends(...begun(), chunks(0, ["x"]));
    expect(told).toEqual(["a", "b", "epoch_changed", "x"]);
  });

  test("what does not fit into the one request ends with an error, the rest goes on", async () => {
    const errors: unknown[] = [];
    const streams = Array.from({ length: 100 }, (_, at) => "k".repeat(120) + at);
    for (let at = 0; at < 100; at += 1) {
      runwire.subscribeToRun(`run_${at}`, { streams }).on("error", (error) => void errors.push(error));
    }
    const asked = await server.acceptStream();
    expect(JSON.stringify(asked).length).toBeLessThanOrEqual(1024 * 1024);
    expect(asked.length + errors.length).toBe(100);
    expect(errors[0]).toMatchObject({ code: "too_large" });
    expect(runwire.connection).toBe("live");
  });

  test("silence is a loss, and a heartbeat is none", async () => {
    quiet(runwire.subscribeToRun("run_a"));
    await server.acceptStream();
    for (let beats = 0; beats < 4; beats += 1) {
      await vi.advanceTimersByTimeAsync(15_000);
      await sends({ type: "hb", t: "" });
    }
    expect(server.streams[0]?.isClosed).toBe(false);
    await vi.advanceTimersByTimeAsync(38_000);
    expect(server.streams[0]?.isClosed).toBe(true);
  });

  test("an answer that never comes is given up after ten seconds", async () => {
    quiet(runwire.subscribeToRun("run_a"));
    const stream = await server.currentStream();
    await vi.advanceTimersByTimeAsync(10_100);
    expect(stream.isClosed).toBe(true);
  });

  test("a page of somebody else's, or garbage, is a loss", async () => {
    quiet(runwire.subscribeToRun("run_a"));
    (await server.currentStream()).open("text/html");
    await settle();
    expect(runwire.connection).toBe("reconnecting");
    expect(server.streams[0]?.isClosed).toBe(true);
    await server.acceptStream();
    server.streams.at(-1)?.sendText("data: nonsense\n\n");
    await settle();
    expect(runwire.connection).toBe("reconnecting");
    expect(server.streams).toHaveLength(2);
  });

  test("a fresh token means to ask again with it, before the old one ends", async () => {
    const tokens = ["old", "new"];
    runwire = client({ token: () => Promise.resolve(tokens.shift() ?? "none"), carrier: "events" });
    quiet(runwire.subscribeToRun("run_a"));
    await server.acceptStream();
    await sends(...begun());
    await vi.advanceTimersByTimeAsync(15_000);
    await sends({ type: "token_expiring", in: 30 });
    expect((await server.acceptStream())[0]).toMatchObject({ cursor: "c-s1" });
    expect(server.streams.map(({ headers }) => headers["authorization"])).toEqual([
      "Bearer old",
      "Bearer new",
    ]);
    expect(server.streams[0]?.isClosed).toBe(true);
  });
});

describe("an event stream that is refused", () => {
  test.each([
    [401, UnauthorizedError],
    [403, ForbiddenError],
    [404, NotFoundError],
    [400, MalformedError],
    [413, TooLargeError],
  ])("with status %i ends everything with a typed error", async (status, kind) => {
    runwire = client({ carrier: "events" });
    const errors: unknown[] = [];
    runwire.subscribeToRun("run_a").on("error", (error) => void errors.push(error));
    (await server.currentStream()).refuse(status, "in words");
    await settle();
    expect(errors).toEqual([expect.any(kind)]);
    expect(errors).toMatchObject([{ status, message: "in words" }]);
    expect(runwire.connection).toBe("idle");
  });

  test.each([429, 503, 500, 502])("with status %i is asked for again", async (status) => {
    runwire = client({ carrier: "events" });
    quiet(runwire.subscribeToRun("run_a"));
    (await server.currentStream()).refuse(status);
    await server.acceptStream();
    expect(runwire.connection).toBe("live");
  });

  test("because of its token is asked for once more with a fresh one", async () => {
    const token = vi.fn((fresh: boolean) => (fresh ? "new" : "old"));
    runwire = client({ carrier: "events", token });
    quiet(runwire.subscribeToRun("run_a"));
    (await server.currentStream()).refuse(401, "the token has expired");
    await server.acceptStream();
    expect(server.streams.at(-1)?.headers["authorization"]).toBe("Bearer new");
  });

  test("means by its status what the Python client takes it for", () => {
    const { statuses } = vectors<{ statuses: Record<string, number> }>("connection.json");
    for (const [status, code] of Object.entries(statuses)) {
      expect([status, closeCodeOf(Number(status))]).toEqual([status, code]);
    }
  });
});

describe("the carrier that is asked for", () => {
  test("is the only one that is used", async () => {
    runwire = client({ carrier: "socket" });
    quiet(runwire.subscribeToRun("run_a"));
    await vi.advanceTimersByTimeAsync(60_000);
    expect(server.streams).toHaveLength(0);
    expect(server.sockets.length).toBeGreaterThan(3);
    runwire.close();
    const before = server.sockets.length;
    runwire = client({ carrier: "events" });
    quiet(runwire.subscribeToRun("run_a"));
    await server.acceptStream();
    expect(server.sockets).toHaveLength(before);
  });

  test("is events where there is no WebSocket", async () => {
    vi.stubGlobal("WebSocket", undefined);
    try {
      runwire = new Runwire({ url: "http://test", token: "t", fetch: server.fetch });
      quiet(runwire.subscribeToRun("run_a"));
      await server.acceptStream();
      expect(runwire.connection).toBe("live");
    } finally {
      vi.unstubAllGlobals();
    }
  });
});
