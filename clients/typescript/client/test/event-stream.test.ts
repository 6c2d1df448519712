import { expect, test } from "vitest";

import { EventStreamParser } from "../src/event-stream.ts";

function parsed(text: string, size = Infinity): string[] {
  const parser = new EventStreamParser();
  const bytes = new TextEncoder().encode(text);
  const events: string[] = [];
  for (let at = 0; at < bytes.length; at += size) {
    events.push(...parser.push(bytes.subarray(at, at + Math.min(size, bytes.length))));
  }
  return events;
}

const STREAMS: [string, string, string[]][] = [
  ["one event", "data: [1]\n\n", ["[1]"]],
  ["an id before the data", 'id: e30=\ndata: [{"type":"hb"}]\n\n', ['[{"type":"hb"}]']],
  ["lines that end in CRLF", "data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", ["a\nb", "c"]],
  ["lines that end in CR", "data: a\rdata: b\r\rdata: c\r\r", ["a\nb", "c"]],
  ["ends of lines in every mixture", "data: a\r\n\ndata: b\n\r\n\rdata: c\n\n", ["a", "b", "c"]],
  ["comments and other fields", ": hi\nevent: x\nretry: 1\ndatum: y\n:\ndata: a\n\n", ["a"]],
  ["data of several lines", "data: a\ndata:\ndata: b\n\n", ["a\n\nb"]],
  ["a field without a colon", "data\n\n", [""]],
  ["no space, and a space that belongs to it", "data:a\ndata:  b:c\n\n", ["a\n b:c"]],
  ["a byte order mark", "\uFEFFdata: a\n\n", ["a"]],
  ["signs of several bytes", "data: é€😀\u2028\u0085\n\n", ["é€😀\u2028\u0085"]],
  ["blank lines between", "\n\n\ndata: a\n\n\n\n", ["a"]],
  ["an event that is not complete", "data: a\n\ndata: b\n", ["a"]],
];

test.each(STREAMS)("%s, however the bytes come", (_name, text, events) => {
  for (const size of [1, 2, 3, 5, 7, Infinity]) expect(parsed(text, size)).toEqual(events);
});

test("bytes that are no UTF-8 break nothing but their event", () => {
  const parser = new EventStreamParser();
  const bad = Uint8Array.from([...new TextEncoder().encode("data: "), 0xff, 0xc3, 10, 10]);
  expect(parser.push(bad)).toEqual(["\uFFFD\uFFFD"]);
  expect(parser.push(new TextEncoder().encode("data: a\n\n"))).toEqual(["a"]);
});

test("an event without an end does not take all the memory", () => {
  const parser = new EventStreamParser();
  const piece = new TextEncoder().encode(`data: ${"x".repeat(500_000)}\n`);
  expect(() => {
    for (let pieces = 0; pieces < 10; pieces += 1) parser.push(piece);
  }).toThrow(RangeError);
  const line = new TextEncoder().encode("x".repeat(500_000));
  expect(() => {
    for (let pieces = 0; pieces < 10; pieces += 1) new EventStreamParser().push(line);
  }).not.toThrow();
  const other = new EventStreamParser();
  expect(() => {
    for (let pieces = 0; pieces < 10; pieces += 1) other.push(line);
  }).toThrow(RangeError);
});
