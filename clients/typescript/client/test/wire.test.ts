import { expect, test, vi } from "vitest";

import { NO_RECONNECT, CloseCode } from "../src/codes.ts";
import { Runwire } from "../src/index.ts";
import { mayReconnect, parseFrame } from "../src/wire.ts";
import { FakeServer } from "./support/fake-server.ts";
import { samples } from "./support/samples.ts";

const CLIENT = new Set(["auth", "subscribe", "unsubscribe", "refetch", "ping"]);
const fromServer = samples().filter(({ message }) => !CLIENT.has(message.type));

test.each(fromServer)("$name is understood, and nothing breaks for want of its run", async (sample) => {
  vi.useFakeTimers();
  const server = new FakeServer();
  const runwire = new Runwire({ url: "http://test", token: "t", ...server.options });
  runwire.subscribeToRuns().on("error", () => undefined);
  await server.accept(String(sample.message["epoch"]));
  await server.send(sample.message);
  expect(server.sockets).toHaveLength(1);
  expect(server.sockets[0]?.isClosed).toBe(false);
  runwire.close();
  vi.useRealTimers();
});

test("every server frame is an array of messages", () => {
  const messages = fromServer.map(({ message }) => message);
  expect(parseFrame(JSON.stringify(messages))).toEqual(messages);
  for (const text of ["{}", "[1]", '[{"no":"type"}]', "nonsense", "null"]) {
    expect(() => parseFrame(text)).toThrow(SyntaxError);
  }
});

test("close codes say by their range whether to come back", () => {
  expect(mayReconnect(1006)).toBe(true);
  expect(mayReconnect(CloseCode.SLOW)).toBe(true);
  expect(mayReconnect(CloseCode.REVOKED)).toBe(false);
  expect(mayReconnect(NO_RECONNECT.last + 1)).toBe(true);
});
