import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import {
  ConfigurationError,
  ForbiddenError,
  Runwire,
  type RunwireError,
  UnauthorizedError,
  type Updates,
} from "../src/index.ts";
import { FakeServer, type Message, settle } from "./support/fake-server.ts";

let server: FakeServer;
let runwire: Runwire | null = null;

beforeEach(() => {
  vi.useFakeTimers();
  server = new FakeServer();
});
afterEach(() => {
  runwire?.close();
  vi.useRealTimers();
});

interface Followed {
  updates: Updates;
  errors: RunwireError[];
}

function follow(token: unknown): Followed {
  runwire = new Runwire({ url: "http://test", token: token as string, ...server.options });
  const updates = runwire.subscribeToRun("run_a");
  const errors: RunwireError[] = [];
  updates.on("error", (error) => void errors.push(error));
  return { updates, errors };
}

function auths(): Message[] {
  return server.sockets.flatMap((socket) => socket.takeAll()).filter(({ type }) => type === "auth");
}

/** A promise that a test answers when it likes. */
function held<T>(): { promise: Promise<T>; resolve: (value: T) => void } {
  let resolve!: (value: T) => void;
  const promise = new Promise<T>((done) => (resolve = done));
  return { promise, resolve };
}

describe("a source of tokens", () => {
  test("that throws at once is asked again later, like one that rejects", async () => {
    let calls = 0;
    follow(() => {
      calls += 1;
      if (calls === 1) throw new TypeError("fetch failed");
      if (calls === 2) return Promise.reject(new TypeError("fetch failed"));
      return "good";
    });
    await server.accept();
    expect(runwire?.connection).toBe("live");
    expect(calls).toBe(3);
  });

  test("that says there will be none ends everything with what it said", async () => {
    const refusal = new ForbiddenError("signed out", { status: 403, code: "forbidden" });
    const { errors } = follow(() => Promise.reject(refusal));
    await settle();
    expect(errors).toEqual([refusal]);
    expect(server.sockets).toHaveLength(0);
    expect(vi.getTimerCount()).toBe(0);
  });

  test.each([undefined, null, 7, { token: "t" }])("that gives %j ends everything", async (given) => {
    const { errors } = follow(() => given);
    await settle();
    expect(errors).toEqual([expect.any(ConfigurationError)]);
    expect(server.sockets).toHaveLength(0);
  });

  test("that does not answer is asked again after thirty seconds, and its late answer not used", async () => {
    const [first, second] = [held<string>(), held<string>()];
    const answers = [first.promise, second.promise];
    const token = vi.fn(() => answers.shift());
    follow(token);
    await vi.advanceTimersByTimeAsync(29_000);
    expect(token).toHaveBeenCalledTimes(1);
    await vi.advanceTimersByTimeAsync(2_000);
    expect(token).toHaveBeenCalledTimes(2);
    first.resolve("first");
    await settle();
    expect(server.sockets).toHaveLength(0);
    second.resolve("second");
    (await server.current()).open();
    expect(auths()).toEqual([{ type: "auth", token: "second" }]);
  });

  test("that answers after the client was closed opens nothing", async () => {
    const slow = held<string>();
    follow(() => slow.promise);
    await settle();
    runwire?.close();
    slow.resolve("late");
    await vi.advanceTimersByTimeAsync(60_000);
    expect(server.sockets).toHaveLength(0);
    expect(vi.getTimerCount()).toBe(0);
  });
});

test("nobody is asked for a token after the client was closed by whoever heard of the loss", async () => {
  const token = vi.fn(() => "t");
  const { updates } = follow(token);
  await server.accept();
  updates.on("freshness", ({ freshness }) => freshness === "connecting" && runwire?.close());
  // As after a sleep: the silence is noticed and the next try begins in one step.
  vi.setSystemTime(Date.now() + 600_000);
  await vi.advanceTimersByTimeAsync(60_000);
  expect(runwire?.connection).toBe("closed");
  expect(token).toHaveBeenCalledTimes(1);
});

describe("a token that is about to end", () => {
  async function expiring(token: (fresh: boolean) => unknown): Promise<Followed> {
    const followed = follow(token);
    await server.accept();
    expect(auths()).toEqual([]);
    await vi.advanceTimersByTimeAsync(15_000);
    await server.send({ type: "token_expiring", in: 30 });
    return followed;
  }

  test("is replaced on the open socket", async () => {
    await expiring((fresh) => (fresh ? "new" : "old"));
    expect(auths()).toEqual([{ type: "auth", token: "new" }]);
    expect(server.sockets).toHaveLength(1);
  });

  test("so soon that the server warns at once does not make a storm", async () => {
    let count = 0;
    const token = vi.fn(() => `token ${(count += 1)}`);
    await expiring(token);
    expect(auths()).toHaveLength(1);
    for (let warnings = 0; warnings < 10; warnings += 1) {
      await server.send({ type: "token_expiring", in: 3 });
    }
    expect(auths()).toEqual([]);
    expect(token).toHaveBeenCalledTimes(2);
  });

  test("is not shown again where its source has no other", async () => {
    const token = vi.fn(() => "the same");
    await expiring(token);
    expect(token).toHaveBeenCalledTimes(2);
    expect(auths()).toEqual([]);
    expect(runwire?.connection).toBe("live");
  });

  test("and cannot be replaced is used to its end, then asked for until there is one", async () => {
    let isBack = false;
    const { errors } = await expiring((fresh) => {
      if (fresh && !isBack) throw new TypeError("fetch failed");
      return isBack ? "new" : "old";
    });
    expect(runwire?.connection).toBe("live");
    await server.close(4003, "the token has expired");
    await vi.advanceTimersByTimeAsync(5_000);
    expect(server.sockets).toHaveLength(1);
    isBack = true;
    (await server.current()).open();
    expect(auths()).toEqual([{ type: "auth", token: "new" }]);
    expect(errors).toEqual([]);
  });

  test("and whose source says there will be none lives to its end, then everything is over", async () => {
    const refusal = new UnauthorizedError("signed out", { status: 401, code: "unauthorized" });
    const { errors } = await expiring((fresh) => {
      if (fresh) throw refusal;
      return "old";
    });
    expect(errors).toEqual([]);
    await server.close(4003, "the token has expired");
    await vi.advanceTimersByTimeAsync(1_000);
    expect(errors).toEqual([refusal]);
    expect(runwire?.connection).toBe("idle");
  });

  test("whose successor comes when the socket is gone is used for the next one", async () => {
    const slow = held<string>();
    const answers: unknown[] = ["old", slow.promise, "newer"];
    await expiring(() => answers.shift());
    await server.close(1006);
    slow.resolve("slow");
    await settle();
    (await server.current()).open();
    expect(auths()).toEqual([{ type: "auth", token: "newer" }]);
  });

  test("whose successor is another tenant's is asked for once more, then refused", async () => {
    const { errors } = await expiring((fresh) => (fresh ? "foreign" : "old"));
    expect(auths()).toEqual([{ type: "auth", token: "foreign" }]);
    await server.close(4401, "the new token is of another environment");
    expect(errors).toEqual([]);
    await server.close(4401, "the token is invalid");
    expect(errors).toMatchObject([{ status: 401, message: "the token is invalid" }]);
  });
});

test("a token that has expired is replaced, and the subscription goes on where it was", async () => {
  const { updates, errors } = follow((fresh: boolean) => (fresh ? "new" : "old"));
  updates.on("run", () => undefined);
  await server.accept();
  const run = { id: "run_a", taskIdentifier: "t", status: "EXECUTING", revision: 1 };
  const times = { createdAt: "2026-11-23T20:00:00.000Z", updatedAt: "2026-11-23T20:00:00.000Z" };
  await server.send({
    type: "snapshot",
    sub: "s1",
    runs: [{ ...run, ...times }],
    cursor: "c1",
    more: false,
  });
  await server.close(4003, "the token has expired");
  const socket = await server.current();
  socket.open();
  expect(auths()).toEqual([{ type: "auth", token: "new" }]);
  expect((await server.accept())[0]).toMatchObject({ type: "subscribe", cursor: "c1" });
  expect(errors).toEqual([]);
});

test("a token that has expired and is all there is ends everything", async () => {
  const { errors } = follow("the one");
  await server.accept();
  await server.close(4003, "the token has expired");
  expect(errors).toMatchObject([{ status: 401, message: "the token has expired" }]);
});
