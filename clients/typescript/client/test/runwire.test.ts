import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import {
  Runwire,
  type RunwireOptions,
  SubscriptionError,
  type SubscriptionEvent,
  TooLargeError,
  UnauthorizedError,
  UnreachableError,
} from "../src/index.ts";
import { FakeServer, type Message, settle } from "./support/fake-server.ts";

const RUN = {
  id: "run_a",
  taskIdentifier: "t",
  status: "EXECUTING",
  revision: 1,
  createdAt: "2026-11-23T20:00:00.000Z",
  updatedAt: "2026-11-23T20:00:00.000Z",
};

let server: FakeServer;
let runwire: Runwire;

function client(options: Partial<RunwireOptions> = {}): Runwire {
  return new Runwire({ url: "http://test/base/", token: "t", ...server.options, ...options });
}

beforeEach(() => {
  vi.useFakeTimers();
  server = new FakeServer();
  runwire = client();
});
afterEach(() => {
  runwire.close();
  vi.useRealTimers();
});

function begun(sub = "s1", run = RUN): Message[] {
  return [
    { type: "snapshot", sub, runs: [run], cursor: "c1", more: false },
    { type: "live", sub },
  ];
}

function chunks(seq: number, data: unknown[], attempt = 1): Message {
  return { type: "chunks", run: RUN.id, stream: "answer", seq, data, attempt };
}

describe("the socket", () => {
  test("is opened below the url's path, and the token goes in the first message only", async () => {
    runwire.subscribeToRun("run_a").on("run", () => undefined);
    const socket = await server.current();
    expect(socket.url).toBe("ws://test/base/realtime/v1/socket");
    expect(socket.protocols).toEqual(["runwire.v1"]);
    socket.open();
    expect(socket.takeAll()).toEqual([{ type: "auth", token: "t" }]);
  });

  test("is one for all subscriptions, and closes when the last one has been gone a while", async () => {
    const first = runwire.subscribeToRun("run_a");
    const second = runwire.subscribeToBatch("batch_b");
    first.on("run", () => undefined);
    second.on("run", () => undefined);
    const sent = await server.accept();
    expect(sent.map(({ to }) => to)).toEqual([{ run: "run_a" }, { batch: "batch_b" }]);
    first.close();
    second.close();
    expect(server.sockets[0]?.take()).toEqual([
      { type: "unsubscribe", sub: "s1" },
      { type: "unsubscribe", sub: "s2" },
    ]);
    expect(server.sockets[0]?.isClosed).toBe(false);
    await vi.advanceTimersByTimeAsync(6_000);
    expect(server.sockets).toHaveLength(1);
    expect(server.sockets[0]?.isClosed).toBe(true);
    expect(runwire.connection).toBe("idle");
  });

  test("is followed by another one once it is full, and has room again when one is over", async () => {
    const all = Array.from({ length: 101 }, (_, at) => runwire.subscribeToRun(`run_${at}`));
    for (const updates of all.slice(0, 100)) updates.on("run", () => undefined);
    expect(await server.accept()).toHaveLength(100);
    expect(runwire.connection).toBe("live");
    all[100]?.on("run", () => undefined);
    expect(runwire.connection).toBe("connecting");
    await settle();
    expect((await server.accept()).map(({ sub }) => sub)).toEqual(["s101"]);
    expect(server.sockets).toHaveLength(2);
    expect(runwire.connection).toBe("live");
    all[7]?.close();
    runwire.subscribeToRun("run_z").on("run", () => undefined);
    await settle();
    expect(server.sockets[0]?.take()).toMatchObject([
      { type: "unsubscribe", sub: "s8" },
      { type: "subscribe", sub: "s102" },
    ]);
    runwire.close();
    expect(server.sockets.map(({ isClosed }) => isClosed)).toEqual([true, true]);
    expect(runwire.connection).toBe("closed");
  });

  test("is not shared by two readers of a stream of whom one begins where only the server knows", async () => {
    const streams = { log: { from: "latest" } } as const;
    runwire.subscribeToRun("run_a", { streams: ["log"] }).on("run", () => undefined);
    runwire.subscribeToRun("run_b", { streams }).on("run", () => undefined);
    expect(await server.accept()).toHaveLength(2);
    runwire.subscribeToRun("run_a", { streams }).on("run", () => undefined);
    await settle();
    expect(await server.accept()).toMatchObject([{ sub: "s3", to: { run: "run_a" } }]);
    expect(server.sockets).toHaveLength(2);
  });

  test("is not lost to a subscription too large for a frame, which ends with an error", async () => {
    const streams = Array.from({ length: 1000 }, (_, at) => "k".repeat(120) + at);
    const errors: unknown[] = [];
    runwire.subscribeToRun("run_a").on("run", () => undefined);
    runwire.subscribeToRun("run_b", { streams }).on("error", (error) => void errors.push(error));
    expect((await server.accept()).map(({ sub }) => sub)).toEqual(["s1"]);
    expect(errors).toMatchObject([{ code: "too_large", cause: expect.any(TooLargeError) }]);
  });

  test("is given up after 37.5 s of silence, and the subscription resumes on another", async () => {
    runwire.subscribeToRun("run_a").on("run", () => undefined);
    await server.accept();
    await server.send(...begun());
    await vi.advanceTimersByTimeAsync(30_000);
    await server.send({ type: "hb", t: "" });
    await vi.advanceTimersByTimeAsync(37_000);
    expect(server.sockets).toHaveLength(1);
    expect(server.sockets[0]?.isClosed).toBe(false);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(server.sockets[0]?.isClosed).toBe(true);
    expect((await server.accept())[0]).toMatchObject({ type: "subscribe", cursor: "c1" });
  });

  test("is opened again at once when the browser is back online", async () => {
    const page = new EventTarget();
    vi.stubGlobal("window", page);
    vi.stubGlobal("document", page);
    vi.spyOn(Math, "random").mockReturnValue(0.999);
    try {
      runwire = client({ carrier: "socket" });
      runwire.subscribeToRun("run_a").on("run", () => undefined);
      for (let tries = 0; tries < 6; tries += 1) await server.close(1006);
      const tried = server.sockets.length;
      await vi.advanceTimersByTimeAsync(1_000);
      expect(server.sockets).toHaveLength(tried);
      expect(runwire.connection).toBe("reconnecting");
      page.dispatchEvent(new Event("online"));
      await settle();
      expect(server.sockets).toHaveLength(tried + 1);
    } finally {
      vi.restoreAllMocks();
      vi.unstubAllGlobals();
    }
  });

  test("is asked for a sign of life when the page becomes visible", async () => {
    const page = new EventTarget();
    vi.stubGlobal("window", page);
    vi.stubGlobal("document", page);
    try {
      runwire.subscribeToRun("run_a").on("run", () => undefined);
      await server.accept();
      page.dispatchEvent(new Event("visibilitychange"));
      expect(server.sockets[0]?.take()).toEqual([{ type: "ping" }]);
      await vi.advanceTimersByTimeAsync(5_100);
      expect(server.sockets[0]?.isClosed).toBe(true);
    } finally {
      vi.unstubAllGlobals();
    }
  });

  test("survives garbage by resuming on another one", async () => {
    runwire.subscribeToRun("run_a").on("run", () => undefined);
    await server.accept();
    await server.send(...begun());
    server.sockets[0]?.sendText("garbage");
    expect(server.sockets[0]?.isClosed).toBe(true);
    expect((await server.accept())[0]).toMatchObject({ cursor: "c1" });
  });
});

describe("what is told of a subscription", () => {
  test("is stale, not live, while the server has lost its database", async () => {
    const told: string[] = [];
    const updates = runwire.subscribeToRun("run_a");
    updates.on("freshness", ({ freshness }) => void told.push(freshness));
    await server.accept();
    await server.send({ type: "state", state: "stale", since: "" }, ...begun());
    expect(runwire.connection).toBe("stale");
    expect(told).toEqual(["syncing", "stale"]);
    await server.send({ type: "state", state: "live", since: "" });
    expect(told).toEqual(["syncing", "stale", "live"]);
    expect(runwire.connection).toBe("live");
  });

  test.each(["internal", "unavailable", "rate_limited"])(
    "is no error where the server cannot take it for now (%s): it is asked for again",
    async (code) => {
      const errors: unknown[] = [];
      const updates = runwire.subscribeToRun("run_a");
      updates.on("error", (error) => void errors.push(error));
      await server.accept();
      await server.send(...begun());
      await server.send({ type: "error", sub: "s1", code, message: "not now" });
      expect(updates.freshness).toBe("connecting");
      await vi.advanceTimersByTimeAsync(600);
      expect(server.sockets[0]?.take()).toMatchObject([{ type: "subscribe", cursor: "c1" }]);
      await server.send({ type: "live", sub: "s1" });
      expect(updates.freshness).toBe("live");
      expect(errors).toEqual([]);
      expect(server.sockets).toHaveLength(1);
    },
  );

  test("is an error where the server cannot take it for longer than the deadline", async () => {
    runwire = client({ deadline: 20 });
    const errors: unknown[] = [];
    runwire.subscribeToRun("run_a").on("error", (error) => void errors.push(error));
    await server.accept();
    for (let seconds = 0; seconds < 120 && !errors.length; seconds += 1) {
      await server.send({ type: "error", sub: "s1", code: "internal", message: "not now" });
      await vi.advanceTimersByTimeAsync(1_000);
    }
    expect(errors).toEqual([expect.any(UnreachableError)]);
    await vi.advanceTimersByTimeAsync(6_000);
    expect(vi.getTimerCount()).toBe(0);
  });

  test("in every revision does not share a socket with what is told the latest", async () => {
    runwire.subscribeToRuns().on("run", () => undefined);
    runwire.subscribeToRunsWithTag("x", { mode: "every" }).on("run", () => undefined);
    runwire.subscribeToBatch("batch_b", { mode: "every" }).on("run", () => undefined);
    await settle();
    expect(server.sockets).toHaveLength(2);
    expect((await server.accept()).map(({ mode }) => mode)).toEqual(["every", "every"]);
  });
});

describe("tokens", () => {
  test("are asked for again while the socket is open, before they end", async () => {
    const token = vi.fn((fresh: boolean) => Promise.resolve(fresh ? "new" : "old"));
    runwire = client({ token });
    runwire.subscribeToRun("run_a").on("run", () => undefined);
    const socket = await server.current();
    socket.open();
    expect(socket.takeAll()).toEqual([{ type: "auth", token: "old" }]);
    await server.send({ type: "ready", protocol: "runwire.v1", epoch: "e", heartbeat: 15 });
    socket.takeAll();
    await vi.advanceTimersByTimeAsync(15_000);
    await server.send({ type: "token_expiring", in: 30 });
    expect(socket.takeAll()).toEqual([{ type: "auth", token: "new" }]);
    // The server's answer to it starts nothing over.
    await server.send({ type: "ready", protocol: "runwire.v1", epoch: "e", heartbeat: 15 });
    expect(socket.takeAll()).toEqual([]);
  });

  test("that cannot be had for now are asked for later", async () => {
    const token = vi.fn<() => Promise<string>>();
    token.mockRejectedValueOnce(new TypeError("fetch failed")).mockResolvedValue("t");
    runwire = client({ token });
    runwire.subscribeToRun("run_a").on("run", () => undefined);
    expect(await server.accept()).toHaveLength(1);
    expect(token).toHaveBeenCalledTimes(2);
  });

  test("that are refused for good end the subscription", async () => {
    const refusal = new UnauthorizedError("no session", { status: 401, code: "unauthorized" });
    runwire = client({ token: () => Promise.reject(refusal) });
    const iterator = runwire.subscribeToRun("run_a")[Symbol.asyncIterator]();
    await expect(iterator.next()).rejects.toBe(refusal);
    expect(await iterator.next()).toEqual({ done: true, value: undefined });
    expect(server.sockets).toHaveLength(0);
  });
});

describe("an iteration", () => {
  test("yields what is told and ends when the server is done", async () => {
    const seen: SubscriptionEvent[] = [];
    const reading = (async () => {
      for await (const event of runwire.subscribeToRun("run_a", { streams: ["answer"] })) {
        if (event.type !== "freshness") seen.push(event);
      }
    })();
    await server.accept();
    await server.send(...begun(), chunks(0, ["a", "b"]));
    await server.send(
      { type: "eof", run: RUN.id, stream: "answer", next: 2, reason: "completed" },
      { type: "run", run: { ...RUN, status: "COMPLETED", revision: 2 } },
      { type: "done", sub: "s1" },
    );
    await reading;
    expect(seen.map(({ type }) => type)).toEqual(["run", "chunk", "chunk", "eof", "run"]);
    expect(seen.at(-1)).toMatchObject({ run: { isCompleted: true, isSuccess: true } });
  });

  test("throws a typed error when the server refuses", async () => {
    const iterator = runwire.subscribeToRun("run_a")[Symbol.asyncIterator]();
    const over = untilOver(iterator).catch((error: unknown) => error);
    await server.accept();
    await server.send({ type: "error", sub: "s1", code: "not_found", message: "no such run" });
    expect(await over).toMatchObject({
      name: "SubscriptionError",
      code: "not_found",
      cause: { name: "NotFoundError", status: 404 },
    });
  });

  test("does not outlast the deadline when the server stays away", async () => {
    runwire = client({ deadline: 20 });
    const iterator = runwire.subscribeToRun("run_a")[Symbol.asyncIterator]();
    const over = untilOver(iterator).catch((error: unknown) => error);
    for (let tries = 0; tries < 200 && runwire.connection !== "idle"; tries += 1) {
      const last = server.sockets.at(-1);
      if (last && !last.isClosed) last.lose(1006, "");
      await vi.advanceTimersByTimeAsync(250);
    }
    expect(await over).toBeInstanceOf(UnreachableError);
    expect(runwire.connection).toBe("idle");
  });

  test("left early leaves the subscription", async () => {
    const reading = (async () => {
      for await (const event of runwire.subscribeToRun("run_a")) if (event.type === "run") break;
    })();
    await server.accept();
    await server.send(...begun());
    await reading;
    expect(server.sockets[0]?.take()).toEqual([{ type: "unsubscribe", sub: "s1" }]);
  });

  test("that is not read is ended with an error rather than with all the memory", async () => {
    const updates = runwire.subscribeToRun("run_a", { streams: ["answer"] });
    const iterator = updates[Symbol.asyncIterator]();
    void iterator.next();
    await server.accept();
    await server.send(...begun());
    for (let seq = 0; seq < 12_000; seq += 500) {
      await server.send(chunks(seq, Array.from({ length: 500 }, (_, at) => `${seq + at}`)));
    }
    await expect(untilOver(iterator)).rejects.toBeInstanceOf(SubscriptionError);
  });
});

describe("a stream read as text", () => {
  function text(): { last: () => { text: string; restarts: number }; count: () => number } {
    const told: { text: string; restarts: number }[] = [];
    const updates = runwire.subscribeToRun("run_a", { streams: { answer: { as: "text" } } });
    updates.on("text", (event) => void told.push(event));
    return { last: () => told.at(-1) ?? { text: "", restarts: 0 }, count: () => told.length };
  }

  test("begins with the text so far and grows", async () => {
    const { last } = text();
    expect((await server.accept())[0]).toMatchObject({
      streams: { answer: { from: "start", as: "text" } },
    });
    await server.send(...begun());
    await server.send({ type: "text", run: RUN.id, stream: "answer", upTo: 3, value: "abc" });
    await server.send(chunks(2, ["c", "d"]), chunks(4, ["e"]));
    expect(last()).toMatchObject({ text: "abcde", restarts: 0, next: 5 });
  });

  test("is whole after a lost socket, and nothing is in it twice", async () => {
    const { last } = text();
    await server.accept();
    await server.send(...begun(), chunks(0, ["a", "b"]));
    await server.close(1006);
    expect((await server.accept())[0]).toMatchObject({
      streams: { answer: { from: 2, as: "chunks" } },
    });
    await server.send({ type: "live", sub: "s1" }, chunks(1, ["b", "c"]), chunks(3, ["d"]));
    expect(last()).toMatchObject({ text: "abcd", restarts: 0 });
  });

  test("starts over with another execution, whatever its number", async () => {
    const { last } = text();
    await server.accept();
    await server.send(...begun(), chunks(0, ["a", "b"]));
    await server.send(
      { type: "attempt", run: RUN.id, stream: "answer", attempt: 2, fromSeq: 2 },
      chunks(2, ["x"], 2),
    );
    expect(last()).toMatchObject({ text: "x", restarts: 1 });
    // A run that was given back keeps its attempt.
    const again = { type: "attempt", run: RUN.id, stream: "answer", attempt: 2, fromSeq: 3 };
    await server.send(again);
    expect(last()).toMatchObject({ text: "", restarts: 2 });
    await server.close(1006);
    await server.accept();
    await server.send({ type: "live", sub: "s1" }, again, chunks(3, ["y"], 2));
    expect(last()).toMatchObject({ text: "y", restarts: 2 });
  });

  test("begins with the text before another execution, then starts over", async () => {
    const { last } = text();
    await server.accept();
    await server.send(
      ...begun(),
      { type: "text", run: RUN.id, stream: "answer", upTo: 2, value: "ab" },
      { type: "attempt", run: RUN.id, stream: "answer", attempt: 1, fromSeq: 2 },
      chunks(2, ["x"], 1),
    );
    expect(last()).toMatchObject({ text: "x", restarts: 1 });
  });

  test("starts over after a gap", async () => {
    const { last } = text();
    await server.accept();
    await server.send(...begun(), chunks(0, ["a", "b"]));
    await server.send(
      { type: "gap", sub: "s1", reason: "epoch_changed", run: RUN.id, stream: "answer", next: 0 },
      chunks(0, ["q"]),
    );
    expect(last()).toMatchObject({ text: "q", restarts: 1 });
  });

  test("starts over where the server has another history", async () => {
    const { last } = text();
    await server.accept("e1");
    await server.send(...begun(), chunks(0, ["a", "b"]));
    await server.close(1006);
    expect((await server.accept("e2"))[0]).toEqual({
      type: "subscribe",
      sub: "s1",
      to: { run: "run_a" },
      mode: "latest",
      streams: { answer: { from: 0, as: "text" } },
    });
    expect(last()).toMatchObject({ text: "", restarts: 1 });
    await server.send(...begun(), chunks(0, ["x"]));
    expect(last()).toMatchObject({ text: "x", restarts: 1 });
  });

  test("is joined of what completions say, and of JSON where nothing is said", async () => {
    const { last } = text();
    await server.accept();
    const said = (content: string) => ({ choices: [{ delta: { content } }] });
    await server.send(...begun(), chunks(0, [said("Hi "), { choices: [] }, said("you"), { n: 1 }]));
    expect(last().text).toBe('Hi you{"n":1}\n');
  });
});

describe("two subscriptions to one stream", () => {
  test("each get it from where they asked, though the socket carries it once", async () => {
    const first: number[] = [];
    const second: number[] = [];
    const streams = ["answer"];
    runwire.subscribeToRun("run_a", { streams }).on("chunk", ({ seq }) => void first.push(seq));
    await server.accept();
    await server.send(...begun(), chunks(0, ["a", "b"]));
    runwire.subscribeToRun("run_a", { streams }).on("chunk", ({ seq }) => void second.push(seq));
    await settle();
    // On its way before the server had read the second request.
    await server.send(chunks(2, ["c"]));
    await server.send(...begun("s2"), chunks(0, ["a", "b", "c", "d"]));
    expect(first).toEqual([0, 1, 2, 3]);
    expect(second).toEqual([0, 1, 2, 3]);
    expect(server.sockets).toHaveLength(1);
  });

  test("need not both be told of a run: one that joined and is not held is asked for", async () => {
    const told: string[] = [];
    runwire.subscribeToRuns().on("run", ({ run }) => void told.push(run.id));
    await server.accept();
    await server.send({ type: "snapshot", sub: "s1", runs: [], more: false });
    await server.send({ type: "joined", sub: "s1", run: "run_a" });
    expect(server.sockets[0]?.take()).toEqual([{ type: "refetch", run: "run_a" }]);
    await server.send({ type: "run", run: RUN });
    expect(told).toEqual(["run_a"]);
  });

  test("live on each other's patches", async () => {
    const told: (number | string)[] = [];
    runwire.subscribeToRun("run_a").on("run", ({ run }) => void told.push(run.revision));
    runwire.subscribeToRuns({}, { fields: ["tags"] }).on("run", ({ run }) => {
      told.push(Object.keys(run).includes("metadata") ? "too much" : `feed ${run.revision}`);
    });
    await server.accept();
    await server.send(...begun("s1"), ...begun("s2"));
    await server.send({
      type: "patch",
      run: RUN.id,
      from: 1,
      revision: 2,
      set: {},
      metadata: [{ type: "set", key: "a", value: 1 }],
    });
    expect(told).toEqual([1, "feed 1", 2, "feed 2"]);
  });
});

test("a listener that throws stops nobody else", async () => {
  const reported = vi.fn();
  vi.stubGlobal("reportError", reported);
  const told: number[] = [];
  const updates = runwire.subscribeToRun("run_a");
  updates.on("run", () => {
    throw new Error("the page's own mistake");
  });
  updates.on("run", ({ run }) => void told.push(run.revision));
  await server.accept();
  await server.send(...begun());
  expect(told).toEqual([1]);
  expect(reported).toHaveBeenCalledOnce();
  vi.unstubAllGlobals();
});

async function untilOver(iterator: AsyncIterator<SubscriptionEvent>): Promise<void> {
  while (!(await iterator.next()).done);
}
