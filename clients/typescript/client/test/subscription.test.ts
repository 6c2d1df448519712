import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import { ApiError, type Json, Runwire, SubscriptionError, type Updates } from "../src/index.ts";
import type { Freshness } from "../src/events.ts";
import { TABLE, type Turn } from "../src/subscription.ts";
import { FakeServer, type Message, settle } from "./support/fake-server.ts";
import { vectors } from "./support/samples.ts";

interface Told {
  run?: string;
  revision?: number;
  has?: Record<string, Json>;
  without?: string[];
  chunk?: Json;
  stream?: string;
  seq?: number;
  restart?: true;
  eof?: string;
  gap?: string;
  removed?: string;
  done?: true;
  error?: string;
}

interface Step {
  connected?: { epoch: string };
  receive?: Message[];
  lost?: number;
  state?: string;
  send?: Message[];
  told?: Told[];
  broken?: true;
}

interface Vector {
  name: string;
  subscribe: {
    to: { run: string } | { tags: string[] };
    mode?: "latest" | "every";
    fields?: string[];
    streams?: Record<string, { from: number | "start" | "latest" }>;
  };
  steps: Step[];
}

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

describe("a subscription tells what the Python one tells", () => {
  test.each(vectors<{ vectors: Vector[] }>("subscription.json").vectors)("$name", async (vector) => {
    const server = new FakeServer();
    const runwire = new Runwire({ url: "http://test", token: "t", ...server.options });
    const updates = subscribe(runwire, vector);
    const told = listen(updates);
    await settle();
    for (const step of vector.steps) await take(step, server, updates, told);
    runwire.close();
  });
});

async function take(step: Step, server: FakeServer, updates: Updates, told: Told[]): Promise<void> {
  let sent: Message[] = [];
  let socket = server.sockets.at(-1);
  if (step.connected) {
    sent = await server.accept(step.connected.epoch);
    socket = server.sockets.at(-1);
  }
  if (step.receive) {
    await server.send(...step.receive.map((message) => named(message, "s1")));
    sent = socket?.take() ?? [];
  }
  if (step.lost !== undefined) await server.close(step.lost);
  const news = told.splice(0);
  if (step.told) {
    expect(news.length, JSON.stringify(news)).toBe(step.told.length);
    step.told.forEach((expected, at) => expectTold(news[at] ?? {}, expected));
  }
  if (step.send) expect(sent.map(plain)).toEqual(step.send.map(plain));
  if (step.state) expect(stateOf(updates.freshness)).toBe(step.state);
  // A subscription that is over may leave its socket open for the next one.
  const isGone = step.broken === true || step.lost !== undefined;
  if (updates.freshness !== "closed") expect(socket?.isClosed).toBe(isGone);
}

function subscribe(runwire: Runwire, { subscribe: { to, ...options } }: Vector): Updates {
  return "run" in to
    ? runwire.subscribeToRun(to.run, options)
    : runwire.subscribeToRunsWithTag(to.tags, options);
}

/** Everything the subscription tells, in the words of the vectors. */
function listen(updates: Updates): Told[] {
  const told: Told[] = [];
  let isRestart = false;
  updates.on("run", ({ run }) =>
    void told.push({ ...(run as unknown as Told), run: run.id, revision: run.revision }));
  updates.on("attempt", () => void (isRestart = true));
  updates.on("chunk", ({ stream, seq, chunk }) => {
    told.push({ chunk, stream, seq, ...(isRestart && { restart: true }) });
    isRestart = false;
  });
  updates.on("eof", ({ stream }) => void told.push({ eof: stream }));
  updates.on("gap", ({ reason }) => void told.push({ gap: reason }));
  updates.on("removed", ({ runId }) => void told.push({ removed: runId }));
  updates.on("done", () => void told.push({ done: true }));
  updates.on("error", (error) => void told.push({ error: codeOf(error) }));
  return told;
}

function expectTold(news: Told, { has, without, ...expected }: Told): void {
  expect(news).toMatchObject({ ...expected, ...has });
  for (const field of without ?? []) expect(news).not.toHaveProperty(field);
}

function codeOf(error: unknown): string {
  return error instanceof ApiError || error instanceof SubscriptionError ? error.code : "unknown";
}

function named(message: Message, sub: string): Message {
  return message["sub"] === "$sub" ? { ...message, sub } : message;
}

/** A message without the subscription's name and without what is the default anyway. */
function plain({ sub: _, ...message }: Message): Message {
  const streams = message["streams"] as Record<string, { from: unknown; as?: string }> | undefined;
  if (!streams) return message;
  const short = Object.entries(streams).map(([key, { from }]) => [key, { from }]);
  return { ...message, streams: Object.fromEntries(short) };
}

function stateOf(freshness: Freshness): string {
  return freshness === "connecting" ? "away" : freshness;
}

describe("the freshness of a subscription", () => {
  interface StateVector {
    state: string;
    event: string;
    expect: string;
  }
  const FRESHNESS: Record<string, Freshness> = {
    away: "connecting",
    waiting: "connecting",
    syncing: "syncing",
    live: "live",
    stale: "stale",
    closed: "closed",
  };
  const TURNS: Record<string, Turn> = {
    asked: "sent",
    live: "live",
    stale: "stale",
    gap: "gap",
    lost: "lost",
    failed: "lost",
    ended: "end",
  };
  // What waits to be read is bounded here, and what waits to be asked for again is asked for anew.
  const told = vectors<{ vectors: StateVector[] }>("subscription_states.json").vectors.filter(
    ({ state, event }) => state !== "waiting" && state in FRESHNESS && event in TURNS,
  );

  test.each(told)("is what every client says: $state, when $event", ({ state, event, expect: to }) => {
    const from = FRESHNESS[state] as Freshness;
    // Here the end of a synchronisation and the return of the database are two things.
    const turn = state === "stale" && event === "live" ? "fresh" : (TURNS[event] as Turn);
    expect(TABLE[from][turn]).toBe(FRESHNESS[to]);
  });

  const states = Object.keys(TABLE) as Freshness[];
  const turns = Object.keys(TABLE.live) as Turn[];

  test("is closed for good once it has ended", () => {
    for (const state of states) expect(TABLE[state].end).toBe("closed");
    for (const turn of turns) expect(TABLE.closed[turn]).toBe("closed");
  });

  test("is not live without a socket, nor before the server said so", () => {
    for (const state of states.filter((each) => each !== "closed")) {
      expect(TABLE[state].lost).toBe("connecting");
      expect(TABLE[state].gap).not.toBe("live");
    }
    for (const turn of turns) expect(TABLE.connecting[turn]).not.toBe("live");
  });
});
