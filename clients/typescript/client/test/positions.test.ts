import { expect, test } from "vitest";

import { MAX_CLIENT_FRAME_BYTES } from "../src/codes.ts";
import { planOf, type SubscriptionOptions } from "../src/plan.ts";
import * as subscription from "../src/subscription.ts";
import type { StreamMessage, Subscribe, Target } from "../src/wire.ts";

const FEED: Target = { tags: ["x"] };

function begun(
  to: Target,
  streams: SubscriptionOptions["streams"],
  ...messages: StreamMessage[]
): subscription.Subscription {
  const plan = planOf("s1", to, streams === undefined ? {} : { streams });
  let state = subscription.turn(subscription.begin(plan), "sent").state;
  for (const run of new Set(messages.map((message) => message.run))) {
    state = subscription.receive(state, { type: "joined", sub: "s1", run }, () => undefined).state;
  }
  for (const message of messages) state = subscription.receiveStream(state, message).state;
  return state;
}

function live(state: subscription.Subscription): subscription.Subscription {
  return subscription.receive(state, { type: "live", sub: "s1" }, () => undefined).state;
}

function chunks(run: string, stream: string, seq: number, data: string[] = []): StreamMessage {
  return { type: "chunks", run, stream, seq, data };
}

function resumed(state: subscription.Subscription): Subscribe {
  return subscription.request(subscription.lose(state).state);
}

test("a feed says where it stands in each stream of each run", () => {
  const state = begun(
    FEED,
    { "*": { from: "latest" } },
    chunks("run_a", "text", 7),
    chunks("run_b", "text", 0, ["a", "b"]),
    chunks("run_b", "log", 3, ["c"]),
    { type: "eof", run: "run_b", stream: "log", next: 4, reason: "completed" },
  );
  expect(resumed(state)).toMatchObject({
    streams: { "*": { from: "latest" } },
    positions: { run_a: { text: 7 }, run_b: { text: 2, log: 4 } },
  });
});

test("a feed that is live and has read nothing says so: what comes is news", () => {
  const state = begun(FEED, ["log"]);
  expect(resumed(state)).not.toHaveProperty("positions");
  expect(resumed(live(state)).positions).toEqual({});
});

test("a feed that reads no streams has no positions", () => {
  expect(resumed(live(begun(FEED, undefined)))).not.toHaveProperty("positions");
});

test("one run's streams are named in the request, unless their beginning is the server's to know", () => {
  const told = chunks("run_a", "log", 7);
  const named = live(begun({ run: "run_a" }, ["log"], told));
  expect(resumed(named)).not.toHaveProperty("positions");
  const latest = live(begun({ run: "run_a" }, { "*": { from: -3 } }, told));
  expect(resumed(latest)).toMatchObject({ positions: { run_a: { log: 7 } } });
});

test("after a gap, and in another history, it begins as at the beginning", () => {
  const streams = { log: { from: "latest" } } as const;
  const gap = { type: "gap", sub: "s1", reason: "overflow" } as const;
  const cut = subscription.receive(live(begun(FEED, streams)), gap, () => undefined).state;
  expect(resumed(cut)).not.toHaveProperty("positions");
  expect(resumed(live(cut)).positions).toEqual({});
  const other = subscription.beginAgain(live(begun(FEED, streams, chunks("run_a", "log", 7))));
  expect(resumed(other.state)).not.toHaveProperty("positions");
});

test("positions that do not fit into a frame are left out, those of streams that are over first", () => {
  const keys = Array.from({ length: 64 }, (_, at) => "é".repeat(50) + at);
  const messages = Array.from({ length: 40 }, (_, at) => `run_${at}`).flatMap((run) =>
    keys.map((key) => chunks(run, key, 5)),
  );
  const over: StreamMessage[] = keys.map((stream) => {
    return { type: "eof", run: "run_0", stream, next: 5, reason: "completed" };
  });
  const request = resumed(live(begun(FEED, { "*": { from: "latest" } }, ...messages, ...over)));
  const bytes = new TextEncoder().encode(JSON.stringify(request)).length;
  expect(bytes).toBeLessThanOrEqual(MAX_CLIENT_FRAME_BYTES);
  expect(bytes).toBeGreaterThan(MAX_CLIENT_FRAME_BYTES - 1_000);
  expect(request.positions).not.toHaveProperty("run_0");
  expect(request.positions).toHaveProperty("run_1");
});
