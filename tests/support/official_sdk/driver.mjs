// The official Trigger.dev SDK at the end of a pipe: one call a line in, one answer a line out.
//
//   {"call": "schedules.create", "args": [...]}     -> {"value": ...} or {"error": {...}}
//   {"call": "...", "all": true}                    every item of what it returns, page by page
//   {"call": "...", "token": "..."}                 with a public token instead of the key
//
// A value {"$date": "..."} is a Date, {"$items": [...]} an async iterable. Where and with which key:
// TRIGGER_API_URL and TRIGGER_SECRET_KEY, as always with this SDK.
import { createInterface } from "node:readline";

import * as sdk from "@trigger.dev/sdk";

const more = {
  sendInput: (stream, run, value) => sdk.streams.input({ id: stream }).send(run, value),
};

function revived(value) {
  if (Array.isArray(value)) return value.map(revived);
  if (value === null || typeof value !== "object") return value;
  if ("$date" in value) return new Date(value.$date);
  if ("$items" in value) return iterated(value.$items.map(revived));
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, revived(each)]));
}

async function* iterated(items) {
  yield* items;
}

async function called({ call, args = [], all = false }) {
  const [group, name] = call.split(".");
  const target = name === undefined ? more : sdk[group];
  const result = target[name ?? group](...args.map(revived));
  if (!all) return await result;
  const items = [];
  for await (const item of result) items.push(item);
  return items;
}

async function answered(request) {
  try {
    const { token } = request;
    const value = await (token === undefined
      ? called(request)
      : sdk.auth.withAuth({ accessToken: token }, () => called(request)));
    return { value: value ?? null };
  } catch (error) {
    const cause = error.cause === undefined ? undefined : String(error.cause);
    return { error: { name: error.name, message: error.message, status: error.status, cause } };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const answer = await answered(JSON.parse(line));
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
